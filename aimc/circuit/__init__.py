"""Circuit level: from transistors and curves to the numbers that the operator needs, and to what attention costs."""

from aimc.circuit.budget import BudgetLine, noise_budget
from aimc.circuit.cell import GainCell
from aimc.circuit.cell_cost import to_cost
from aimc.circuit.chip_cost import ChipCost, chip_cost
from aimc.circuit.cost import Cost, Parts, attention_cost
from aimc.circuit.cost_parameters import CostParameters
from aimc.circuit.cost_sensitivity import Sensitivity, sensitivity
from aimc.circuit.curves import Sweep, read_sweep
from aimc.circuit.errors import CircuitError, CircuitWarning
from aimc.circuit.extract import Extraction, fit_transistor
from aimc.circuit.fit import TransferFit, choose_degree, fit_transfer, held_out_error
from aimc.circuit.hardware import FullScales, fit_cell, to_hardware
from aimc.circuit.model_cost import DigitalBaseline, ModelCost, model_cost, published_baselines
from aimc.circuit.model_shape import ModelShape
from aimc.circuit.retention import RetentionFit, fit_retention
from aimc.circuit.static_cost import StaticCost, TileParameters, hermes_chip, hermes_core, static_cost
from aimc.circuit.storage import Retention, leakage_current, retention, settling_error, tau_spread, write_time_constant
from aimc.circuit.surface import SurfaceFit, collapse, fit_surface
from aimc.circuit.technology import oxide_cell, silicon_cell
from aimc.circuit.transistor import Transistor

__all__ = [
    "ChipCost",
    "StaticCost",
    "TileParameters",
    "chip_cost",
    "hermes_chip",
    "hermes_core",
    "static_cost",
    "BudgetLine",
    "CircuitError",
    "CircuitWarning",
    "Cost",
    "CostParameters",
    "DigitalBaseline",
    "Extraction",
    "FullScales",
    "GainCell",
    "ModelCost",
    "ModelShape",
    "Parts",
    "Retention",
    "RetentionFit",
    "Sensitivity",
    "SurfaceFit",
    "Sweep",
    "TransferFit",
    "Transistor",
    "attention_cost",
    "choose_degree",
    "collapse",
    "fit_cell",
    "fit_retention",
    "fit_surface",
    "fit_transfer",
    "fit_transistor",
    "held_out_error",
    "leakage_current",
    "model_cost",
    "noise_budget",
    "oxide_cell",
    "published_baselines",
    "read_sweep",
    "retention",
    "sensitivity",
    "settling_error",
    "silicon_cell",
    "tau_spread",
    "to_cost",
    "to_hardware",
    "write_time_constant",
]
