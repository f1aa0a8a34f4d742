"""Static weights on aihwkit's tiles: which layers, what the tiles are, programming and drift.

Measurements and the pipeline call it. It imports `aimc.models` and below, and aihwkit only where tiles are made.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "Static": "aimc.static.config",
    "MissingAihwkit": "aimc.static.install",
    "require_aihwkit": "aimc.static.install",
    "EncodingError": "aimc.static.encoding",
    "pcm": "aimc.static.presets",
    "reram": "aimc.static.presets",
    "noiseless": "aimc.static.presets",
    "static_layers": "aimc.static.tiles",
    "has_static": "aimc.static.tiles",
    "on_tiles": "aimc.static.copies",
    "static_of": "aimc.static.copies",
    "set_rpu_config": "aimc.static.tiles",
    "write_static_record": "aimc.static.tiles",
    "calibrate_input_ranges": "aimc.static.tiles",
    "program": "aimc.static.programming",
    "drift": "aimc.static.programming",
    "unprogram": "aimc.static.programming",
    "computing_digitally": "aimc.static.tiles",
    "follow_optimizer": "aimc.static.tiles",
    "post_update": "aimc.static.tiles",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import on first use."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'aimc.static' has no attribute {name!r}")
