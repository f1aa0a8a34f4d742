"""Everything that measures a model: perplexity over chips, sweeps, ageing, the budget of error, designs.

The pipeline, figures and notebooks call it. It imports everything below, down to `aimc.hardware`, and each only when it
is asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "Aged": "ageing",
    "Design": "design",
    "Measurement": "measurement",
    "Perplexity": "perplexity",
    "Point": "tradeoff",
    "Tradeoff": "tradeoff",
    "ablation": "perplexity",
    "error_budget": "error_budget",
    "nonideality_sweep": "perplexity",
    "on_tiles": "error_budget",
    "retention": "ageing",
    "sweep": "tradeoff",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import on first use: a config names :class:`Measurement` long before transformers is needed."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
