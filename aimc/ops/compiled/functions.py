"""All compiled functions; importing this imports numba."""

from aimc.ops.compiled.cells import read_av, read_qk
from aimc.ops.compiled.levels import to_levels
from aimc.ops.compiled.normal import add_normal
from aimc.ops.compiled.operands import Arrays, Between, Counter, Line, ReadNoise
from aimc.ops.compiled.products import on_one_thread
from aimc.ops.compiled.read_gradients import Gathered, read_back
from aimc.ops.compiled.reads import read
from aimc.ops.compiled.sums import weighted_sum
from aimc.ops.compiled.terms import put_terms, term_gradient

__all__ = [
    "Arrays",
    "Between",
    "Counter",
    "Gathered",
    "Line",
    "ReadNoise",
    "add_normal",
    "on_one_thread",
    "put_terms",
    "read",
    "read_av",
    "read_back",
    "read_qk",
    "term_gradient",
    "to_levels",
    "weighted_sum",
]
