"""Circuit level: from transistors and measured curves to the numbers that the operator needs, and to what they cost.

`physics/` is a gain cell made of transistors, `curves/` one fitted to measurements, `hardware.py` makes either a
:class:`aimc.hardware.Hardware`, `budget.py` says what limits it, `cost/` its energy, latency and area. Designs, figures
and notebooks call it. It imports `aimc.hardware`, numpy and scipy, no torch.
"""

from aimc.circuit.budget import BudgetLine, noise_budget
from aimc.circuit.cost.attention import Breakdown, Cost, attention_cost
from aimc.circuit.cost.cell import to_cost
from aimc.circuit.cost.chip import ChipCost, chip_cost
from aimc.circuit.cost.model import DigitalBaseline, ModelCost, model_cost, published_baselines
from aimc.circuit.cost.parameters import CostParameters
from aimc.circuit.cost.sensitivity import Sensitivity, sensitivity
from aimc.circuit.cost.shape import ModelShape
from aimc.circuit.cost.state import StateCost, StateParameters, StateShape, digital_state, state_cost
from aimc.circuit.cost.static import StaticCost, TileParameters, hermes_chip, hermes_core, static_cost
from aimc.circuit.curves.extraction import Extraction, fit_transistor
from aimc.circuit.curves.retention import RetentionFit, fit_retention
from aimc.circuit.curves.surface import SurfaceFit, collapse, fit_surface
from aimc.circuit.curves.sweep import Sweep, read_sweep
from aimc.circuit.curves.transfer import TransferFit, choose_degree, fit_transfer, held_out_error
from aimc.circuit.errors import CircuitError, CircuitWarning
from aimc.circuit.hardware import FullScales, fit_cell, to_hardware
from aimc.circuit.physics.gain_cell import GainCell
from aimc.circuit.physics.storage import (
    Retention,
    leakage_current,
    retention,
    settling_error,
    tau_spread,
    write_time_constant,
)
from aimc.circuit.physics.technology import oxide_cell, silicon_cell
from aimc.circuit.physics.transistor import Transistor

__all__ = [
    "ChipCost",
    "StateCost",
    "StateParameters",
    "StateShape",
    "StaticCost",
    "TileParameters",
    "chip_cost",
    "digital_state",
    "state_cost",
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
    "Breakdown",
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
