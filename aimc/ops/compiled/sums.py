"""Terms of a leaking read, added up with a factor of the row in one pass."""

from __future__ import annotations

import numba
from torch import Tensor

from aimc.ops.compiled.threads import in_parts


def weighted_sum(terms: Tensor, factors: Tensor, constant: Tensor | None, out: Tensor) -> None:
    """`out[p, j, m, d] = constant[p, j, m] + Σ_i factors[p, m, i]·terms[p, j, m, i·D + d]`.

    Args:
        terms: float32 `[P, J, M, n·D]` on a CPU, contiguous.
        factors: float32 `[P or 1, M, n]`.
        constant: float32 `[P, J, M, 1]`; None: zero.
        out: float32 `[P, J, M, D]`, contiguous.
    """
    n_tiles, n_rows, size = out.shape[1:]
    x, y = terms.view(-1, n_rows, terms.shape[-1]).numpy(), out.view(-1, n_rows, size).numpy()
    c = out.new_zeros(1, 1).expand(len(y), n_rows) if constant is None else constant.reshape(len(y), n_rows)
    f = factors.expand(len(terms), -1, -1)
    of_rows = f.numpy(), c.numpy()
    in_parts(lambda start, stop: _weighted_sum(x, *of_rows, y, n_tiles, start, stop), len(y), n_rows * size)


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _weighted_sum(terms, factors, constant, out, n_tiles, start, stop):  # type: ignore[no-untyped-def]
    size, n_terms = out.shape[2], factors.shape[2]
    for tile in range(start, stop):
        for row in range(out.shape[1]):
            number = constant[tile, row]
            for d in range(size):
                out[tile, row, d] = number
            for i in range(n_terms):
                factor = factors[tile // n_tiles, row, i]
                for d in range(size):
                    out[tile, row, d] += factor * terms[tile, row, i * size + d]
