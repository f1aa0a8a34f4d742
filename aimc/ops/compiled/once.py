"""Compiled once, called by address.

Numba compiles a helper's code again inside everything that calls it, level by level, and once more for each layout and
literal that it is given: half a minute for a dozen seconds' worth of code. Functions with a declared signature are
compiled when their module is imported, if numba's cache does not have them; a caller holds no more of them than their
name, and its arguments are cast to the signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import llvmlite.binding
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from aimc.ops.effects import words

CACHE = Path(__file__).parent / "__pycache__"
"""Where numba keeps what it has compiled, if it may write there."""

INT, BOOL, INTS = types.int64, types.boolean, types.Array(types.int64, 1, "C")
FLOAT, F1, F2, F3, F4 = (types.float32, *(types.Array(types.float32, n, "C") for n in (1, 2, 3, 4)))
ANY = types.Array(types.float32, 2, "A")
"""A matrix `[M, N]` that lies in memory in any way."""
WORDS1, WORDS3 = (types.Array(types.uint32, n, "C") for n in (1, 3))
HIDDEN1, HIDDEN2 = (types.Array(types.boolean, n, "C") for n in (1, 2))
NOTHING = types.void


def type_of(named: type, *fields: Any) -> Any:
    """The type of a `NamedTuple`."""
    return types.BaseTuple.from_types(fields, named)


def once(result: Any, *arguments: Any, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function for these types; it is called by compiled functions only, and must raise nothing."""

    def compiled(function: Callable[..., Any]) -> Any:
        name = f"{function.__module__}.{function.__name__}"
        made = numba.cfunc(result(*arguments), cache=True, error_model="numpy", **options)(function)
        llvmlite.binding.add_symbol(name, made.address)

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            given = signature.args[0]
            numbers = [
                context.cast(builder, value, source, target)
                for value, source, target in zip(
                    cgutils.unpack_tuple(builder, values[0]), given, arguments, strict=True
                )
            ]
            returned = ir.VoidType() if result is NOTHING else context.get_value_type(result)
            of_function = ir.FunctionType(returned, [context.get_value_type(of) for of in arguments])
            found = builder.call(cgutils.get_or_insert_function(builder.module, of_function, name), numbers)
            return context.get_dummy_value() if result is NOTHING else found

        @intrinsic
        def call(typing_context, *given):  # type: ignore[no-untyped-def]
            fits = len(given) == len(arguments) and None not in map(typing_context.can_convert, given, arguments)
            return (result(types.StarArgTuple.from_types(given)), emit) if fits else None

        return call

    return compiled


@contextmanager
def one_process_at_a_time() -> Iterator[None]:
    """While functions are compiled: who waits finds them in the cache."""
    try:
        CACHE.mkdir(exist_ok=True)
        lock = filelock.FileLock(CACHE / "compiling.lock")
        lock.acquire()
    except OSError:  # an installation that may not be written to: numba keeps its cache elsewhere, each for itself
        yield
        return
    try:
        _forget_what_is_stale()
        yield
    finally:
        lock.release()


def _forget_what_is_stale() -> None:
    """Numba compiles a function again when its own file has changed, not when what it calls has; whose signature a
    caller knows."""
    sources = (*sorted(CACHE.parent.glob("*.py")), Path(words.__file__))
    now = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    stamp = CACHE / "compiled-from.txt"
    if stamp.exists() and stamp.read_text() == now:
        return
    for pattern in ("*.nbi", "*.nbc"):
        for file in CACHE.glob(pattern):
            file.unlink(missing_ok=True)
    stamp.write_text(now)
