"""Tokens as the blocked operator holds them: written to one array, prepared in spans, met by one run after another.

A read is a sum of terms, each a product of a number of the query and one of the cell. With leakage, the power j of a
voltage that has aged falls by `r_ts^j = exp(−jλ(t − t_0))·exp(−jλ(t_0 − s))` with any moment t_0, so every power is a
term. Where each cell leaks at a rate of its own the terms are moments, see :mod:`aimc.ops.blocked.interpolation`. All
terms together are one matrix product with n·D columns.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from aimc.ops import compiled
from aimc.ops.blocked.folds import fold
from aimc.ops.blocked.interpolation import Nodes, nodes, nodes_needed
from aimc.ops.blocked.runs import Run, Span
from aimc.ops.call import Call
from aimc.ops.effects.array import decayed, summed
from aimc.ops.effects.cell import cell_operands, powers_with_gradient, stored_gradient
from aimc.ops.effects.leakage import own_decay
from aimc.ops.effects.noise import ArrayId
from aimc.ops.heads import Heads
from aimc.ops.storage import storage_gradient, stored_u

MOST_FALL = 30.0
"""Largest exponent of a factor of a decay: `exp(±30)` leaves float32 room for what it multiplies."""
DEAD = -60.0
"""Exponent below which what is left of a voltage is zero: it would only slow down the arithmetic."""


def longest_span(heads: Heads) -> int:
    """Queries for which one moment t_0 does."""
    fall = (len(heads.cell.coefficients) - 1) * heads.decay_per_token
    return max(int(2 * MOST_FALL / fall), 1) if fall else 2**62


@dataclass(slots=True)
class Block:
    """Neighbouring tokens that one run meets in one array; P = B·H_kv."""

    tokens: slice
    """Which of the span's."""
    matrix: Tensor
    """Term by term, `[P, S, n·D]`, and behind them what the array adds, see :class:`Stored`."""
    decays: Tensor | None = None
    """Of each cell at the moments that are the terms, `[n, H_kv, S, D]`; None: all cells leak alike."""


@dataclass(slots=True)
class Cells:
    """What one run meets in one array."""

    blocks: list[Block]
    """The line, and maybe the oldest tokens in the sub-tiles that are being overwritten."""
    weights: Tensor | None
    """What a term counts for a query, `[T', n]`; None: one term, and it counts one."""
    factors: Tensor | None = None
    """What a term of the second array counts for a row, once it is known, `[P or 1, G·T', n]`."""


class Stored:
    """Tokens written to one array, and what their cells do to a pulse.

    Behind the terms, the first array's matrix has a column each for what is multiplied by the sum of a query's pulses
    and by one: the constant of the cells, and the offsets of the columns.

    Args:
        call: all tokens.
        array: which of the two.
        span: whose tokens are prepared.
    """

    def __init__(self, call: Call, array: ArrayId, span: Span) -> None:
        heads, sizes = call.heads, call.heads.hardware.array
        self.heads, self.array, self.span = heads, array, span
        source, self.affine = (call.key, call.scaling.key) if array == ArrayId.QK else (call.value, call.scaling.value)
        self.tokens = torch.arange(span.first, span.behind, device=heads.device)
        self.tiles = self.tokens[:: sizes.rows] % sizes.window // sizes.rows  # numbers of their sub-tiles, [J]
        self.raw = source[:, :, span.first : span.behind]  # [B, H_kv, S, D]
        if span.behind > heads.n_tokens:  # nobody sees what is in the slots behind the text
            self.raw = pad(self.raw, (0, 0, 0, span.behind - heads.n_tokens))
        self.u = stored_u(heads, self.raw, self.affine, array, self.tokens)
        self.coefficients = heads.coefficients(array, self.tokens)
        self.rates = heads.leak_rates(array, self.tokens)  # [H_kv, S, D]
        # A column of the first array is a token, of the second a feature of a sub-tile, so that its gain is one of
        # cells.
        self.scale: Tensor | float = 1.0  # of a cell's charge, beyond the cell itself
        if array == ArrayId.QK:
            gain, self.column_offset = heads.column_tables_qk(self.tokens % sizes.window)  # [H_kv, S]
            self.scale = 1.0 if gain is None else 1.0 + gain[..., None]
        else:
            gain, self.column_offset = heads.column_tables_av(self.tiles)  # [H_kv, J, D]
            gain = None if gain is None else gain.repeat_interleave(sizes.rows, dim=1)
            self.scale = (1.0 if gain is None else 1.0 + gain) / sizes.saturation_av
        self.constant = self._taken_constant()
        self.powers = self._powers()
        with_gradient = powers_with_gradient(heads.cell)
        # Without leakage one operand is the sum of all.
        self.differentiated = self.powers if self.powers == [0] else [j for j in self.powers if j in with_gradient]
        self.matrix = None if self.rates is not None else self._matrix()
        self.gradients: dict[int, Tensor] = {}  # of the powers, where cells leak apart
        self.of_terms: Tensor | None = None  # of the matrix elsewhere, `[P, S, n·D]`

    @functools.cached_property
    def operands(self) -> list[Tensor | float]:
        """What each power of the decay multiplies, `[B, H_kv, S, D]`, or a number; one of all without leakage."""
        operands = cell_operands(self.u, self.heads.cell, self.coefficients)
        operands = operands if self.heads.decay_per_token else [summed(operands)]
        return [o.expand_as(self.u) if isinstance(o, Tensor) else o for o in operands]

    def _taken_constant(self) -> float:
        """What all cells add alike, to be multiplied by a sum of pulses; none where the second array's columns or the
        moments of a run tell the cells apart."""
        number = self.coefficients[0]
        if isinstance(number, Tensor) or self.rates is not None or not self.heads.decay_per_token:
            return 0.0
        if isinstance(self.scale, float):
            return number * self.scale
        return number if self.array == ArrayId.QK else 0.0

    def _powers(self) -> list[int]:
        """Those of the decay that are terms."""
        if not self.heads.decay_per_token:
            return [0]
        passes = powers_with_gradient(self.heads.cell)  # the surrogate's first, though the cell may have none
        powers = [
            j for j, c in enumerate(self.coefficients) if isinstance(c, Tensor) or c or (j == 1 and 2 not in passes)
        ]
        own_constant = isinstance(self.coefficients[0], Tensor) or not (self.constant or self.rates is not None)
        return powers if own_constant else [j for j in powers if j]

    @property
    def differentiated_columns(self) -> slice:
        """Those of the terms that have a gradient, which are neighbours; of moments, all."""
        if self.rates is not None or not self.differentiated:
            return slice(None)
        first, size = self.powers.index(self.differentiated[0]), self.heads.head_size
        return slice(first * size, (first + len(self.differentiated)) * size)

    @property
    def has_constant_column(self) -> bool:
        """Whether a column of the matrix is for the sum of the pulses."""
        return self.array == ArrayId.QK and self.constant != 0.0

    @property
    def has_offset_column(self) -> bool:
        """Whether a column of the matrix is for one."""
        return self.array == ArrayId.QK and self.column_offset is not None

    @property
    def n_extra(self) -> int:
        """Columns behind the terms; with empty ones, because odd sizes make slow products."""
        return -(-(self.has_constant_column + self.has_offset_column) // 4) * 4

    def _matrix(self, terms: Tensor | None = None, tokens: slice = slice(None)) -> Tensor:
        """`[P, S, n·D + …]`, of all powers or of terms `[B, H_kv, n, S, D]`."""
        u, size = self.u[:, :, tokens], self.heads.head_size
        scale = self.scale[:, tokens] if isinstance(self.scale, Tensor) else self.scale
        n_terms = len(self.powers) if terms is None else terms.shape[2]
        out = u.new_empty(*u.shape[:3], n_terms * size + self.n_extra)
        if terms is None:
            self._put_terms(out)
        else:
            for i in range(n_terms):
                torch.mul(terms[:, :, i], scale, out=out[..., i * size : (i + 1) * size])
        out[..., n_terms * size :] = 0.0
        if self.has_constant_column:
            out[..., n_terms * size] = self.constant * (scale[..., 0] if isinstance(scale, Tensor) else 1.0)
        if self.column_offset is not None and self.has_offset_column:
            out[..., n_terms * size + self.has_constant_column] = self.column_offset[:, tokens]
        return out.flatten(0, 1)

    def _put_terms(self, out: Tensor) -> None:
        """`κ_j·u^j`, scaled and with their falls, into the first columns of `[B, H_kv, S, …]`."""
        if self.heads.decay_per_token and (kernels := compiled.kernels_for(self.u)) is not None:
            coefficients = [self.coefficients[j] for j in self.powers]
            kernels.put_terms(self.u, self.powers, coefficients, self.scale, self._falls(self.powers), out)
            return
        for j, columns in zip(self.powers, out.split(self.heads.head_size, dim=-1), strict=False):
            columns.copy_(torch.as_tensor(self.operands[j] * self._with_fall(self.scale, j)))  # j = 0 without leakage

    def _falls(self, powers: Sequence[int]) -> Tensor:
        """The column factors of powers, `[n, S]`."""
        of = torch.tensor(powers, dtype=torch.float64, device=self.heads.device)[:, None]
        falls = of * self.heads.decay_per_token * (self.tokens.to(torch.float64) - self._moment)
        dead = (falls < DEAD) | ((self.tokens >= self.span.stop) & (of > 0))
        return falls.exp_().masked_fill_(dead, 0.0).to(self.u.dtype)

    def _with_fall(self, scale: Tensor | float, j: int) -> Tensor | float:
        """`scale` times the column factor of a power."""
        fall = self._fall(j)
        return scale if fall is None else scale * fall[:, None]

    def _fall(self, j: int) -> Tensor | None:
        """The column factor `exp(−jλ(t_0 − s))`, `[S]`; None: one."""
        if not self.heads.decay_per_token or j == 0:
            return None
        return self._falls([j])[0]

    @property
    def _moment(self) -> float:
        return (self.span.start + self.span.stop - 1) / 2

    def cells(self, run: Run) -> Cells:
        """Those that a run meets."""
        places = [slice(run.first - self.span.first, run.behind - self.span.first)]
        if run.oldest is not None:
            at = run.oldest - self.span.first
            places.append(slice(at, at + run.n_oldest))
        if self.rates is not None:
            number = nodes_needed(self.heads.hardware) or 0  # with None the call does not come here
            at_nodes = nodes(run.start, run.stop, number, self.heads.device, self.heads.dtype)
            return Cells([self._at(at_nodes, place) for place in places], at_nodes.weights)
        assert self.matrix is not None  # made where cells leak alike
        return Cells([Block(place, self.matrix[:, place]) for place in places], self.row_factors(run.rows))

    def row_factors(self, queries: Tensor) -> Tensor | None:
        """What each term counts for the queries `[T']`, `exp(−jλ(t − t_0))`, `[T', n]`; None: one term, and it counts
        one."""
        if self.powers == [0]:
            return None
        times = queries.to(torch.float64) - self._moment
        powers = torch.tensor(self.powers, device=self.heads.device)
        return torch.exp(-self.heads.decay_per_token * times[:, None] * powers).to(self.heads.dtype)

    def folds(self, queries: Tensor, length: int) -> tuple[Tensor, Tensor] | None:
        """Fewer terms for the queries `[T']`, `length` of which are taken at a time, N times: what each counts for a
        query, `[T', K]`, and how they are made of those of the matrix, `[N, K, n]`; None: no fewer would do, see
        :mod:`aimc.ops.blocked.folds`."""
        rate, heads = self.heads.decay_per_token, self.heads
        if not rate or len(self.powers) < 2:
            return None
        dac, cell = heads.hardware.storage_dac, heads.cell
        largest = max(abs(dac.v_min - cell.offset_v), abs(dac.v_max - cell.offset_v))
        sizes = tuple(cell.coefficients[j] * largest**j for j in self.powers)
        found = fold(tuple(self.powers), sizes, rate, length)
        if found is None:
            return None
        n_times = -(-len(queries) // length)
        middles = int(queries[0]) + length * np.arange(n_times) + (length - 1) / 2
        falls = np.exp(-rate * (middles[:, None] - self._moment) * np.array(self.powers))  # [N, n]
        weights = torch.from_numpy(found.weights).repeat(n_times, 1)[: len(queries)]
        matrices = torch.from_numpy(found.matrix * falls[:, None])
        return weights.to(heads.dtype), matrices.to(heads.dtype)

    def _at(self, at: Nodes, tokens: slice) -> Block:
        """Cells evaluated at the nodes, each at its own rate."""
        assert self.rates is not None  # the caller's condition
        decays = own_decay(self.rates[:, tokens], at.times[:, None] - self.tokens[tokens]).transpose(0, 1)
        operands = [o[:, :, None, tokens] if isinstance(o, Tensor) else o for o in self.operands]
        terms = decayed(operands, decays.transpose(0, 1))  # [B, H_kv, n, S, D]
        return Block(tokens, self._matrix(terms, tokens), decays)

    def gather(self, block: Block, left: Tensor, right: Tensor) -> None:
        """Take in the gradient `left·right` of a block's terms, `[P', S', R']·[P', R', n·D]`, where P'·S' are the
        block's P·S tokens."""
        heads, right = self.heads, right[..., self.differentiated_columns]
        if block.decays is None:
            into = self.gathered_terms()[:, block.tokens]
            if len(into) == 1 or len(left) == len(into):  # what is gathered is added to in place
                into.view(len(left), -1, right.shape[-1]).baddbmm_(left, right)
            else:
                into += torch.bmm(left, right).view(into.shape)
            return
        terms = torch.bmm(left, right).view(heads.n_batch, heads.n_kv_heads, -1, len(block.decays), heads.head_size)
        for j in powers_with_gradient(heads.cell):
            if j not in self.gradients:
                self.gradients[j] = torch.zeros_like(self.u)
            of_power = (terms * (block.decays**j).permute(1, 2, 0, 3)).sum(dim=3)
            self.gradients[j][:, :, block.tokens] += of_power

    def gathered_terms(self) -> Tensor:
        """The gradient of the terms that have one, `[P, S, n'·D]`, to be added to in place."""
        if self.of_terms is None:
            n_columns = len(self.differentiated) * self.heads.head_size
            self.of_terms = self.u.new_zeros(self.heads.n_batch * self.heads.n_kv_heads, len(self.tokens), n_columns)
        return self.of_terms

    def gradient(self) -> tuple[Tensor, Tensor]:
        """What was gathered, back through cell, converter and scaler: `[B, H_kv, S, D]` for the tokens of the text, and
        `[2, H_kv]`."""
        heads = self.heads
        of_raw, of_scaler = storage_gradient(self._gradient_of_u(), self.raw, self.affine, heads.hardware)
        return of_raw[:, :, : heads.n_tokens - self.span.first], of_scaler

    def _gradient_of_u(self) -> Tensor:
        """Of the voltages, `[B, H_kv, S, D]`."""
        heads = self.heads
        if self.of_terms is not None and (kernels := compiled.kernels_for(self.u)) is not None:
            powers, slopes = list(powers_with_gradient(heads.cell)), self.coefficients
            if heads.cell.gradient == "linear":
                slopes = [heads.cell.surrogate_slope] * len(slopes)
            if self.powers != [0]:
                powers = [j for j in powers if j in self.differentiated]
                columns, falls = [self.differentiated.index(j) * heads.head_size for j in powers], self._falls(powers)
            else:  # one operand is the sum of all
                columns, falls = [0] * len(powers), self._falls([0] * len(powers))
            slopes = [slopes[j] for j in powers]
            return kernels.term_gradient(self.of_terms, columns, self.u, powers, slopes, self.scale, falls)
        if self.of_terms is not None:
            terms = self.of_terms.view(*self.u.shape[:3], -1, heads.head_size).unbind(dim=3)
            of_cells = {
                j: of * self._with_fall(self.scale, j) for j, of in zip(self.differentiated, terms, strict=True)
            }
        else:
            of_cells = {j: grad * self.scale for j, grad in self.gradients.items()}
        if list(of_cells) == [0]:  # without leakage one operand is the sum of all
            of_cells = dict.fromkeys(powers_with_gradient(heads.cell), of_cells[0])
        return stored_gradient(of_cells, self.u, heads.cell, self.coefficients)
