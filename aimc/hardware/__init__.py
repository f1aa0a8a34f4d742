"""What a chip is: :class:`Hardware` and its parts as typed values in SI units, and presets with their sources.

Everybody may call it: it is the only way the rest of the package is told about a device. It imports the standard
library alone. The defaults are the off values, so that `Hardware()` is the machine without any non-ideality except the
clip ranges.
"""

from aimc.hardware.array import Array
from aimc.hardware.cell import GRADIENTS, Cell
from aimc.hardware.checks import ConfigError
from aimc.hardware.converter import CODINGS, Converter
from aimc.hardware.hardware import ACTIVATIONS, BACKENDS, HARDWARE_VERSION, Hardware
from aimc.hardware.leakage import Leakage
from aimc.hardware.noise import Noise
from aimc.hardware.protection import Protection

__all__ = [
    "ACTIVATIONS",
    "BACKENDS",
    "CODINGS",
    "GRADIENTS",
    "HARDWARE_VERSION",
    "Array",
    "Cell",
    "ConfigError",
    "Converter",
    "Hardware",
    "Leakage",
    "Noise",
    "Protection",
]
