"""Terms of a leaking read, added up with a factor of the row in one pass."""

from __future__ import annotations

import numba
from torch import Tensor

from aimc.ops.compiled.threads import in_parts


def weighted_sum(terms: Tensor, factors: Tensor, constant: Tensor | None, out: Tensor) -> None:
    """`out[j, m, d] = constant[j, m] + Σ_i factors[m, i]·terms[j, m, i·D + d]`.

    Args:
        terms: float32 `[J, M, n·D]` on a CPU.
        factors: float32 `[M, n]`.
        constant: float32 `[J, M, 1]`; None: zero.
        out: float32 `[J, M, D]`.
    """
    c = out.new_zeros(1, 1).expand(out.shape[:2]) if constant is None else constant[..., 0]
    x, f, constants, y = (of.numpy() for of in (terms, factors, c, out))

    def add(start: int, stop: int) -> None:
        _weighted_sum(x[start:stop], f, constants[start:stop], y[start:stop])

    in_parts(add, len(y), out[0].numel())


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _weighted_sum(terms, factors, constant, out):  # type: ignore[no-untyped-def]
    size, n_terms = out.shape[2], factors.shape[1]
    for tile in range(out.shape[0]):
        for row in range(out.shape[1]):
            number = constant[tile, row]
            for d in range(size):
                out[tile, row, d] = number
            for i in range(n_terms):
                factor = factors[row, i]
                for d in range(size):
                    out[tile, row, d] += factor * terms[tile, row, i * size + d]
