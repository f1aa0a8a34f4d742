"""Circuit level: from transistor curves to the numbers that the operator needs."""

from aimc.circuit.fit import TransferFit, fit_transfer

__all__ = ["TransferFit", "fit_transfer"]
