"""The digital memory as a run of queries reads it: protected tokens, or what the arrays may select."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aimc.ops.blocked.runs import Run, Span
from aimc.ops.blocked.stored import storage_gradient
from aimc.ops.call import Call
from aimc.ops.effects.cell import powers_with_gradient, stored_gradient
from aimc.ops.effects.converters import storage_dac
from aimc.ops.effects.levels import line_of
from aimc.ops.effects.noise import ArrayId
from aimc.ops.effects.protection import ideal_charge, protected_tokens, undivided
from aimc.ops.scaling import Affine, scaled, scaler_gradient


@dataclass(slots=True)
class DigitalRead:
    """What one run reads of the memory, M tokens; P = B·H_kv."""

    at: Tensor
    """Where they are among the span's, `[M]`."""
    keys: Tensor
    """Charge per unit pulse in signal units, `[P, M, D]`."""
    values: Tensor
    """In units of `array.saturation_av`, `[P, M, D]`."""
    protected: Tensor
    """Which of them a query reads from here in any case, `[B, 1, T', M]`."""
    sink: Tensor
    """Which tokens of the text are digital for ever, `[B, T]`."""


class Digital:
    """The tokens of the memory that the queries of a span read.

    Args:
        call: all tokens.
        span: the queries.
        sink: which tokens of the text are digital for ever, bool `[B, T]`.
    """

    def __init__(self, call: Call, span: Span, sink: Tensor) -> None:
        heads = call.heads
        self.call, self.sink, self.stop = call, sink, span.stop
        self.n_recent = heads.hardware.protection.n_recent
        self.pruned = heads.hardware.activation == "pruned_softmax"
        held = sink[:, : span.stop].any(dim=0)
        held[max(span.start - self.n_recent + 1, 0) if self.n_recent else span.stop :] = True
        if self.pruned:
            held[span.first :] = True
        self.tokens = held.nonzero()[:, 0]
        self.keys = self._charge(ArrayId.QK).flatten(0, 1)
        self.values = self._charge(ArrayId.AV).flatten(0, 1).div(heads.hardware.array.saturation_av)
        self.of_keys, self.of_values = torch.zeros_like(self.keys), torch.zeros_like(self.values)

    def _source(self, array: ArrayId) -> tuple[Tensor, Affine | None, Affine | None]:
        """Keys or values as the model has them, `[B, H_kv, M, D]`, their scaler, and the line that stands for a
        cell."""
        scaling, is_key = self.call.scaling, array == ArrayId.QK
        raw = (self.call.key if is_key else self.call.value).index_select(2, self.tokens)
        return (raw, scaling.key, scaling.memory_key) if is_key else (raw, scaling.value, scaling.memory_value)

    def _charge(self, array: ArrayId) -> Tensor:
        raw, affine, line = self._source(array)
        charge = ideal_charge(scaled(raw, affine), self.call.heads.hardware, line)
        return undivided(charge, self._norm(array), self.call.heads.hardware)

    def _norm(self, array: ArrayId) -> Tensor | None:
        """By what the tokens were divided, `[B, H_kv, M]`; None: by one."""
        norm = self.call.scaling.key_norm if array == ArrayId.QK else self.call.scaling.value_norm
        return None if norm is None else norm[..., self.tokens].to(self.call.heads.dtype)

    def read(self, run: Run) -> DigitalRead:
        """What one run reads: first, with pruning, the tokens of its columns, then what is protected beyond them."""
        heads, tokens = self.call.heads, self.tokens
        wanted = self.sink[:, tokens].any(dim=0)
        wanted = wanted | (tokens > run.start - self.n_recent) if self.n_recent else wanted
        wanted &= tokens < run.stop
        if self.pruned:  # columns for which there is no token yet take the last one; no query sees them
            columns = run.tokens.clamp(max=self.stop - 1)
            wanted &= tokens < (run.first if run.oldest is None else run.oldest)
            at = torch.cat([torch.searchsorted(tokens, columns), wanted.nonzero()[:, 0]])
        else:
            at = wanted.nonzero()[:, 0]
        rows, tokens = run.rows, tokens[at]
        protected = protected_tokens(rows, tokens, self.sink[:, tokens], heads.hardware.protection)
        protected = protected & (tokens <= rows[:, None])
        if self.call.key_padding is not None:
            protected = protected & ~self.call.key_padding[:, None, None, tokens]
        if self.pruned:
            protected[..., : run.n_columns] &= run.tokens < self.stop
        return DigitalRead(at, self.keys[:, at], self.values[:, at], protected, self.sink)

    def gather(self, read: DigitalRead, of_keys: Tensor, of_values: Tensor) -> None:
        """Take in the gradients of what was read."""
        self.of_keys.index_add_(1, read.at, of_keys)
        self.of_values.index_add_(1, read.at, of_values)

    def gradient(self, array: ArrayId) -> tuple[Tensor, Tensor]:
        """What was gathered, back through the line or the cell and its converter, and the scaler: `[B, H_kv, M, D]` for
        the tokens, and `[2, H_kv]`."""
        heads, hardware = self.call.heads, self.call.heads.hardware
        raw, affine, line = self._source(array)
        grad = self.of_keys if array == ArrayId.QK else self.of_values / hardware.array.saturation_av
        grad = grad.view(heads.n_batch, heads.n_kv_heads, *grad.shape[1:])
        if hardware.has_softmax:
            slope = line_of(hardware)[1] if line is None else line.scale.to(heads.dtype)[:, None, None]
            norm = self._norm(array)
            grad = grad if norm is None else grad * norm[..., None]
            return scaler_gradient(grad * slope, raw, affine)
        u = storage_dac(scaled(raw, affine), hardware, straight=True) - hardware.cell.offset_v
        of_u = stored_gradient(dict.fromkeys(powers_with_gradient(hardware.cell), grad), u, hardware.cell)
        return storage_gradient(of_u, raw, affine, hardware)
