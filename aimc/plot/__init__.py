"""Figures, as matplotlib figures to show, save or restyle: of runs, arrays, attention, circuits, costs, whole chips.

The pipeline, benchmarks and notebooks call it. It imports what it draws, from everywhere below.
"""

from aimc.plot import attention, chip, circuit, cost
from aimc.plot.arrays import ring_buffer, stored_voltages
from aimc.plot.characterise import characterisation
from aimc.plot.results import adaptation_curve, label, nonideality_bars, rescue_curves, training_curves
from aimc.plot.style import new_axes, save

__all__ = [
    "adaptation_curve",
    "attention",
    "characterisation",
    "chip",
    "circuit",
    "cost",
    "label",
    "new_axes",
    "nonideality_bars",
    "rescue_curves",
    "ring_buffer",
    "save",
    "stored_voltages",
    "training_curves",
]
