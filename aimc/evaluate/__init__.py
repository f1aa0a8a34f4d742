"""Everything that measures a model: perplexity and tasks over chips, sweeps, ageing, the budget of error, designs.

The pipeline, figures and notebooks call it. It imports everything below, down to `aimc.hardware`, and each only when it
is asked for.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

_PUBLIC = {
    "ablation": "ablation",
    "ageing": "ageing",
    "agreement": "agreement",
    "Agreement": "agreement",
    "AgedPerplexity": "ageing",
    "Design": "design",
    "Estimate": "estimates",
    "Measurement": "measurement",
    "Perplexity": "perplexity",
    "Point": "tradeoff",
    "Score": "tasks",
    "TaskComparison": "scores",
    "Tradeoff": "tradeoff",
    "chips_of": "chips",
    "clip_fractions": "clipping",
    "compare_tasks": "tasks",
    "error_budget": "error_budget",
    "load_tasks": "tasks",
    "nonideality_sweep": "sweeps",
    "perplexity": "perplexity",
    "recall": "recall",
    "rescue": "sweeps",
    "run_tasks": "tasks",
    "selection": "selection",
    "Selection": "selection",
    "sweep": "tradeoff",
}
_FORMER = {
    "Aged": ("aimc.evaluate.ageing", "AgedPerplexity"),
    "on_tiles": ("aimc.static.copies", "on_tiles"),
    "retention": ("aimc.evaluate.ageing", "ageing"),
}
"""Names until version 0.1, and where that is now."""
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import on first use: a config names :class:`Measurement` long before transformers is needed."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    if name in _FORMER:
        module, now = _FORMER[name]
        warnings.warn(f"aimc.evaluate.{name} is {module}.{now} now", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(module), now)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Face(ModuleType):
    """`aimc.evaluate.ageing` is the function, whether or not the module of that name, which holds it, was imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _PUBLIC.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
