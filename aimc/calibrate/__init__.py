"""Bring a converted model to where its hardware works: what passes through attention (`observation`); without a
gradient, statistics matching and the start from a digital model's statistics (`statistics`), range calibration for
softmax (`ranges`), full scales of the counters behind pulses (`full_scales`) and the least-squares fit of output
projections (`projections`); by gradient, layer by layer, the outputs of attention (`outputs`).

Measurements and the pipeline call it. It imports `aimc.models` and below.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "Moments": "moments",
    "analog_moments": "observation",
    "digital_moments": "observation",
    "observing": "observation",
    "observing_digital": "observation",
    "run_batches": "observation",
    "MatchReport": "statistics",
    "match_statistics": "statistics",
    "initialise_scalers": "statistics",
    "OutputMatching": "output_report",
    "LayerOutput": "output_report",
    "match_outputs": "outputs",
    "ProjectionFit": "projections",
    "FittedLayer": "projections",
    "fit_projections": "projections",
    "RangeReport": "ranges",
    "calibrate_ranges": "ranges",
    "FullScaleReport": "full_scales",
    "LayerFullScales": "full_scales",
    "fit_full_scales": "full_scales",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import on first use."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
