"""Emulating analog in-memory-computing attention, and training language models for it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Hardware": "aimc.hardware",
    "Noise": "aimc.hardware",
    "presets": "aimc.hardware.presets",
    "Chip": "aimc.ops.effects.noise",
    "gain_cell_attention": "aimc.ops.attention",
    "GainCellCache": "aimc.nn.cache",
    "convert": "aimc.models.conversion",
    "to_digital": "aimc.models.conversion",
    "from_pretrained": "aimc.models.checkpoint",
    "set_hardware": "aimc.models.arrays",
    "set_chip": "aimc.models.arrays",
    "initialise_scalers": "aimc.calibrate.statistics",
    "match_statistics": "aimc.calibrate.statistics",
    "calibrate_ranges": "aimc.calibrate.ranges",
    "clip_fractions": "aimc.evaluate.clipping",
    "perplexity": "aimc.evaluate.perplexity",
}
_PACKAGES = ("calibrate", "circuit", "evaluate", "hardware", "models", "nn", "ops", "plot", "static")

__all__ = [*_PUBLIC, *_PACKAGES]


def __getattr__(name: str) -> Any:
    """Import on first use: `import aimc` stays light, transformers and matplotlib come only with what needs them."""
    if name in _PUBLIC:
        module = importlib.import_module(_PUBLIC[name])
        return module if module.__name__.endswith(f".{name}") and not hasattr(module, name) else getattr(module, name)
    if name in _PACKAGES:
        return importlib.import_module(f"aimc.{name}")
    raise AttributeError(f"module 'aimc' has no attribute {name!r}")


def _command() -> None:
    """The console command `aimc`: its code is in `aimc.train` once installed, in `train` beside `aimc` in a clone."""
    package = "aimc.train" if importlib.util.find_spec("aimc.train") else "train"
    try:
        command = importlib.import_module(f"{package}.cli")
    except ImportError as error:
        sys.exit(f"error: {error}")
    command.main()
