"""What one power of the decay multiplies, in one pass."""

from __future__ import annotations

import numba
import numpy as np
from torch import Tensor

from aimc.ops.compiled.threads import in_parts

ONE = np.float32(1.0)


def put_term(
    u: Tensor, power: int, coefficient: Tensor | float, scale: Tensor | float, fall: Tensor | None, out: Tensor
) -> None:
    """`out = coefficient · u^power · scale · fall`.

    Args:
        u: float32 `[B, H, S, D]` on a CPU.
        power: of the decay, and of u.
        coefficient: `[H, S, D]` or a number.
        scale: `[H, S, 1 or D]` or a number.
        fall: `[S]`; None: one.
        out: `[B, H, S, D]`, each number in its place.
    """
    number, errors = _split(coefficient)
    scale_number, scales = _split(scale)
    factor = np.float32(number * scale_number)
    falls = None if fall is None else fall.numpy()
    x, y = u.contiguous().numpy(), out.numpy()
    for batch in range(len(x)):

        def put(start: int, stop: int, batch: int = batch) -> None:
            of_heads = [None if table is None else table[start:stop] for table in (errors, scales)]
            _put_term(x[batch, start:stop], power, factor, of_heads[0], of_heads[1], falls, y[batch, start:stop])

        in_parts(put, x.shape[1], x.shape[2] * x.shape[3])


def _split(x: Tensor | float) -> tuple[np.float32, np.ndarray | None]:
    return (ONE, x.contiguous().numpy()) if isinstance(x, Tensor) else (np.float32(x), None)


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _put_term(u, power, factor, errors, scales, fall, out):  # type: ignore[no-untyped-def]
    """What is None is compiled away."""
    size = u.shape[2]
    for head in range(u.shape[0]):
        for s in range(u.shape[1]):
            row = factor if fall is None else factor * fall[s]
            for d in range(size):
                out[head, s, d] = row
            for _ in range(power):
                for d in range(size):
                    out[head, s, d] *= u[head, s, d]
            if errors is not None:
                for d in range(size):
                    out[head, s, d] *= errors[head, s, d]
            if scales is not None:
                step = 0 if scales.shape[2] == 1 else 1
                for d in range(size):
                    out[head, s, d] *= scales[head, s, step * d]
