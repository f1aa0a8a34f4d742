"""How the arrays meet Hugging Face: which layers can go onto them, conversion, the hook, checkpoints, model files.

Calibration, measurements and the pipeline call it. It imports `aimc.nn` and below.
"""

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
