"""All compiled functions; importing this imports numba."""

from aimc.ops.compiled.cells import read_av, read_qk
from aimc.ops.compiled.levels import to_levels
from aimc.ops.compiled.normal import add_normal
from aimc.ops.compiled.sums import weighted_sum
from aimc.ops.compiled.terms import put_term

__all__ = ["add_normal", "put_term", "read_av", "read_qk", "to_levels", "weighted_sum"]
