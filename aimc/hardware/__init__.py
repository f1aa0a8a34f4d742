"""What a chip is: :class:`Hardware` and its parts as typed values in SI units, and presets with their sources.

Everybody may call it: it is the only way the rest of the package is told about a device. It imports the standard
library alone. The defaults are the off values, so that `Hardware()` is the machine without any non-ideality except the
clip ranges.
"""

from aimc.hardware.array import FULL_SCALES, Array
from aimc.hardware.cell import GRADIENTS, Cell
from aimc.hardware.checks import ConfigError
from aimc.hardware.converter import CODINGS, SPACINGS, Converter
from aimc.hardware.features import ROTATIONS, Features
from aimc.hardware.hardware import ACTIVATIONS, BACKENDS, HARDWARE_VERSION, NOISE_GRADIENTS, Hardware
from aimc.hardware.leakage import Leakage
from aimc.hardware.noise import Noise
from aimc.hardware.normaliser import Normaliser
from aimc.hardware.protection import Protection
from aimc.hardware.pruning import RECOMPUTED, SELECTIONS, Pruning

__all__ = [
    "ACTIVATIONS",
    "BACKENDS",
    "CODINGS",
    "FULL_SCALES",
    "GRADIENTS",
    "HARDWARE_VERSION",
    "NOISE_GRADIENTS",
    "RECOMPUTED",
    "ROTATIONS",
    "SELECTIONS",
    "SPACINGS",
    "Array",
    "Cell",
    "ConfigError",
    "Converter",
    "Features",
    "Hardware",
    "Leakage",
    "Noise",
    "Normaliser",
    "Protection",
    "Pruning",
]
