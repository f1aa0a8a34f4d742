"""The digital memory as a run of queries reads it: protected tokens, or what the arrays may select."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aimc.ops.blocked.runs import Run, Span
from aimc.ops.call import Call
from aimc.ops.effects.noise import ArrayId
from aimc.ops.effects.protection import protected_tokens
from aimc.ops.storage import Remembered


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
        self._held = {array: Remembered(call, array, self.tokens) for array in ArrayId}
        self.keys, values = (held.charge().flatten(0, 1) for held in self._held.values())
        self.values = values.div(heads.hardware.array.saturation_av)
        self.of_keys, self.of_values = torch.zeros_like(self.keys), torch.zeros_like(self.values)

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
        heads, is_key = self.call.heads, array == ArrayId.QK
        grad = self.of_keys if is_key else self.of_values / heads.hardware.array.saturation_av
        return self._held[array].gradient(grad.view(heads.n_batch, heads.n_kv_heads, *grad.shape[1:]))
