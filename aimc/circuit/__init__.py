"""Circuit level: from transistors and curves to the numbers that the operator needs, and to what they cost."""

from aimc.circuit.budget import BudgetLine, noise_budget
from aimc.circuit.cell import GainCell
from aimc.circuit.curves import Sweep, read_sweep
from aimc.circuit.errors import CircuitError, CircuitWarning
from aimc.circuit.extract import Extraction, fit_transistor
from aimc.circuit.fit import TransferFit, choose_degree, fit_transfer, held_out_error
from aimc.circuit.hardware import FullScales, fit_cell, to_hardware
from aimc.circuit.retention import RetentionFit, fit_retention
from aimc.circuit.storage import Retention, leakage_current, retention, settling_error, tau_spread, write_time_constant
from aimc.circuit.surface import SurfaceFit, collapse, fit_surface
from aimc.circuit.technology import oxide_cell, silicon_cell
from aimc.circuit.transistor import Transistor

__all__ = [
    "BudgetLine",
    "CircuitError",
    "CircuitWarning",
    "Extraction",
    "FullScales",
    "GainCell",
    "Retention",
    "RetentionFit",
    "SurfaceFit",
    "Sweep",
    "TransferFit",
    "Transistor",
    "choose_degree",
    "collapse",
    "fit_cell",
    "fit_retention",
    "fit_surface",
    "fit_transfer",
    "fit_transistor",
    "held_out_error",
    "leakage_current",
    "noise_budget",
    "oxide_cell",
    "read_sweep",
    "retention",
    "settling_error",
    "silicon_cell",
    "tau_spread",
    "to_hardware",
    "write_time_constant",
]
