"""All compiled functions; importing this imports numba.

Whole reads are compiled when one is first computed, and their way back when it is first gone: half of all calls have
none.
"""

import functools
import importlib
from types import ModuleType
from typing import Any

from aimc.ops.compiled.cells import read_av, read_qk
from aimc.ops.compiled.conversion import back_through_converter, convert
from aimc.ops.compiled.levels import to_levels
from aimc.ops.compiled.normal import add_normal
from aimc.ops.compiled.once import one_process_at_a_time
from aimc.ops.compiled.operands import Arrays, Between, Gathered, Kept, Line, ReadNoise, counter_of, kept_shapes
from aimc.ops.compiled.sums import weighted_sum
from aimc.ops.compiled.terms import put_terms, term_gradient
from aimc.ops.compiled.token import Circuits, Held, Scalers, read_token

__all__ = [
    "Arrays",
    "Between",
    "Circuits",
    "Gathered",
    "Held",
    "Kept",
    "Line",
    "ReadNoise",
    "Scalers",
    "add_normal",
    "back_through_converter",
    "convert",
    "counter_of",
    "kept_shapes",
    "on_one_thread",
    "put_terms",
    "read",
    "read_av",
    "read_back",
    "read_qk",
    "read_token",
    "term_gradient",
    "to_levels",
    "weighted_sum",
]


@functools.cache
def _compiled(name: str) -> ModuleType:
    with one_process_at_a_time():
        return importlib.import_module(f"aimc.ops.compiled.{name}")


def on_one_thread() -> Any:
    """See :func:`aimc.ops.compiled.products.on_one_thread`."""
    return _compiled("products").on_one_thread()


def read(*arguments: Any) -> None:
    """See :func:`aimc.ops.compiled.reads.read`."""
    _compiled("reads").read(*arguments)


def read_back(*arguments: Any) -> None:
    """See :func:`aimc.ops.compiled.read_gradients.read_back`."""
    _compiled("read_gradients").read_back(*arguments)
