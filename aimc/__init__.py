"""Emulating analog in-memory-computing attention, and training language models for it."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Hardware": "aimc.config",
    "Noise": "aimc.config",
    "Chip": "aimc.ops.noise",
    "GainCellCache": "aimc.nn.cache",
    "gain_cell_attention": "aimc.ops.attention",
    "convert": "aimc.conversion",
    "to_digital": "aimc.conversion",
    "from_pretrained": "aimc.checkpoint",
    "set_hardware": "aimc.hf",
    "set_chip": "aimc.hf",
    "initialise_scalers": "aimc.calibrate",
    "match_statistics": "aimc.calibrate",
    "calibrate_ranges": "aimc.ranges",
    "clip_fractions": "aimc.record",
    "perplexity": "aimc.evaluate",
}
_PLOTS = ("plot", "plot_attention", "plot_chip", "plot_circuit", "plot_cost")
_MODULES = ("circuit", "config", "design", "evaluate", "explore", "hf", "llama2c", "ops", "presets", "record", "static", *_PLOTS)

__all__ = [*_PUBLIC, *_MODULES]


def __getattr__(name: str) -> Any:
    """Import on first use: `import aimc` stays light, transformers and matplotlib come only with what needs them."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"aimc.{name}")
    raise AttributeError(f"module 'aimc' has no attribute {name!r}")
