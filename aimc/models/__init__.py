"""How the arrays meet Hugging Face: which layers can go onto them, conversion, the hook, checkpoints, model files.

Calibration, measurements and the pipeline call it. It imports `aimc.nn` and below.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aimc.models.arrays import (
        gain_cell_layers,
        hardware_of,
        has_arrays,
        is_digital,
        machine_of,
        set_chip,
        set_generator,
        set_hardware,
    )
    from aimc.models.checkpoint import from_pretrained, is_converted
    from aimc.models.conversion import convert, to_digital
    from aimc.models.families import FAMILIES, attention_layers
    from aimc.models.pretrained import load_pretrained, load_tokenizer
    from aimc.models.report import ConversionReport

_PUBLIC = {
    "FAMILIES": "families",
    "ConversionReport": "report",
    "attention_layers": "families",
    "convert": "conversion",
    "from_pretrained": "checkpoint",
    "gain_cell_layers": "arrays",
    "hardware_of": "arrays",
    "has_arrays": "arrays",
    "is_converted": "checkpoint",
    "is_digital": "arrays",
    "load_pretrained": "pretrained",
    "load_tokenizer": "pretrained",
    "machine_of": "arrays",
    "set_chip": "arrays",
    "set_generator": "arrays",
    "set_hardware": "arrays",
    "to_digital": "conversion",
}
__all__ = [
    "FAMILIES",
    "ConversionReport",
    "attention_layers",
    "convert",
    "from_pretrained",
    "gain_cell_layers",
    "hardware_of",
    "has_arrays",
    "is_converted",
    "is_digital",
    "load_pretrained",
    "load_tokenizer",
    "machine_of",
    "set_chip",
    "set_generator",
    "set_hardware",
    "to_digital",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the quantisation method is registered before transformers has any models."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"aimc.models.{_PUBLIC[name]}"), name)
    if importlib.util.find_spec(f"aimc.models.{name}"):
        return importlib.import_module(f"aimc.models.{name}")
    raise AttributeError(f"module 'aimc.models' has no attribute {name!r}")
