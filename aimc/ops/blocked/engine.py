"""Gain-cell attention in runs of queries, with its backward pass by hand: memory grows with the tokens, not with their
square.

The walk is that of the eager operator, cut into runs: the charges of one run of queries and all keys that they see, at
most T'·(W + R) a head, become pulses in place, and the backward pass computes them again instead of keeping them, but
for small calls that are compiled as a whole. Query heads that share a K/V head are rows of the same matrix products.
Sequences and K/V heads have nothing in common, so that few of them are taken at a time and what is being computed stays
in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aimc.ops.blocked.digital import Digital
from aimc.ops.blocked.reader import Reader
from aimc.ops.blocked.runs import Run, Span, runs, spans
from aimc.ops.blocked.stored import Stored, longest_span
from aimc.ops.blocked.whole import N_KEPT, Whole, fitting_kernels, one_thread_each, room
from aimc.ops.call import Call
from aimc.ops.conversion import converted, converter_gradient, scaler_gradient
from aimc.ops.effects.noise import ArrayId
from aimc.ops.effects.normaliser import reciprocal
from aimc.ops.effects.protection import digital_pulses, has_memory, sink_tokens
from aimc.ops.heads import Heads
from aimc.ops.scaling import scaled
from aimc.ops.threads import side_by_side

WORK_BUFFER_BYTES = 2**21
"""Aimed size of the charges of one run: more leave the cache, fewer cost more calls."""
ON_ACCELERATORS = 2**28
"""The same anywhere but on a CPU: calls are dear there."""
WHOLE = 2**19
"""Numbers of a span's keys that are read as a whole by one thread, some 20 MB with all that is made of them: more cost
memory, fewer cost more calls."""
LENGTH = 64
"""Queries that a run has at least, where sub-tiles are shorter: fewer cost more calls, more read above the diagonal."""
LENGTH_ON_ACCELERATORS = 256
"""The same anywhere but on a CPU."""
SPAN = 2048
"""Queries whose tokens are prepared together."""
MOST_KEPT = 2**24
"""Pairs of query and key of a call whose charges and counts are kept for the way back, some 75 MB, with a softmax half
as much again; beyond they are computed again, so that memory does not grow with the square of the tokens."""


def forward(call: Call) -> Tensor:
    """Digital sums `[B, T, H, D]` in the dtype of the query."""
    return _forward(call)[0]


def forward_keeping(call: Call) -> tuple[Tensor, list[Tensor]]:
    """:func:`forward` of a call that :func:`keeps`, and what :func:`backward` then need not compute again."""
    return _forward(call, keep=True)


def keeps(call: Call) -> bool:
    """Whether a call is computed as a whole, and so small that it pays to keep its charges for the way back."""
    heads = call.heads
    return heads.n_batch * heads.n_heads * heads.n_tokens**2 <= MOST_KEPT and fitting_kernels(call) is not None


def _forward(call: Call, *, keep: bool = False) -> tuple[Tensor, list[Tensor]]:
    heads = call.heads
    out = call.query.new_empty(heads.n_batch, heads.n_tokens, heads.n_heads, heads.head_size)
    all_spans = _spans(call)
    kept = [room(fitting_kernels(call), call, span) for span in all_spans] if keep else []

    def read(part: Call) -> None:
        batch, of_heads = _slice(part.heads.batch), _slice(part.heads.query_heads)
        into = out[batch, :, of_heads]
        reader, sink = Reader(part), _sink(part)
        for number, span in enumerate(all_spans):
            tokens = _Tokens(part, span, sink)
            if tokens.whole is not None:
                of_span = tokens.whole.read([x[batch, of_heads] for x in kept[number]] if keep else None)
                into[:, span.start : span.stop] = _without_padding(part, span, of_span).transpose(1, 2)
                continue
            for run in span.runs:
                into[:, run.start : run.stop] = _Read(reader, run, tokens).out.transpose(1, 2)

    with one_thread_each(call):
        side_by_side(read, _parts(call))
    return out, [x for of_span in kept for x in of_span]


def backward(call: Call, grad: Tensor, kept: tuple[Tensor | None, list[Tensor]] | None = None) -> list[Tensor]:
    """Gradients of query, key and value in their dtypes, of their scalers `[2, H]`, of the score gain and of the
    threshold `[H]`, from that of the sums `[B, H, T, D]`; `kept` is what :func:`forward_keeping` gave for the same
    call."""
    heads = call.heads
    all_spans, of_spans = _spans(call), [] if kept is None else kept[1]
    at_once = len(all_spans) == 1 and heads.hardware.activation != "pruned_softmax"  # no value is read from there
    make = torch.empty if at_once else torch.zeros
    shapes = [(len(x), x.shape[2], x.shape[1], x.shape[3]) for x in call[:3]]  # by token, as they are given on
    inputs = [make(shape, dtype=heads.dtype, device=heads.device).transpose(1, 2) for shape in shapes]

    def read_back(part: Call) -> tuple[list[Tensor], list[Tensor | None]]:
        batch, of_heads, of_kv = (_slice(x) for x in (part.heads.batch, part.heads.query_heads, part.heads.kv_heads))
        of_inputs = [x[batch, at] for x, at in zip(inputs, (of_heads, of_kv, of_kv), strict=True)]
        gradients = _Gradients(
            of_inputs, [x.new_zeros(2, x.shape[1]) for x in of_inputs], {0, 1, 2} if at_once else set()
        )
        reader, sink = Reader(part), _sink(part)
        for number, span in enumerate(all_spans):
            tokens = _Tokens(part, span, sink)
            if tokens.whole is not None:
                upstream = _without_padding(part, span, grad[batch, of_heads, span.start : span.stop].to(heads.dtype))
                of_span = [x[batch, of_heads] for x in of_spans[number * N_KEPT : (number + 1) * N_KEPT]]
                tokens.of_pulses = tokens.whole.back(upstream, reader.activation, of_span or None)
            for run in span.runs if tokens.whole is None else ():
                upstream = grad[batch, of_heads, run.start : run.stop].to(heads.dtype)
                _Read(reader, run, tokens, keep=True).back(upstream)
            tokens.back(gradients)
        return gradients.affines, [reader.activation.of_score_gain, reader.activation.of_threshold]

    affines = [x.new_zeros(2, x.shape[1]) for x in inputs]
    of_activation = [inputs[0].new_zeros(heads.n_heads) for _ in range(2)]
    parts = _parts(call)
    with one_thread_each(call):
        found = side_by_side(read_back, parts)
    for part, (of_scalers, of_heads_numbers) in zip(parts, found, strict=True):
        of_heads, of_kv = _slice(part.heads.query_heads), _slice(part.heads.kv_heads)
        for whole, own, at in zip(affines, of_scalers, (of_heads, of_kv, of_kv), strict=True):
            whole[:, at] += own
        for gathered, of_part in zip(of_activation, of_heads_numbers, strict=True):
            if of_part is not None:
                gathered[of_heads] += of_part
    of_inputs = [x.to(of.dtype) for x, of in zip(inputs, call[:3], strict=True)]
    return [*of_inputs, *affines, *of_activation]


@dataclass(slots=True)
class _Gradients:
    """Of query, key and value, `[B, H, T, D]`, and of their scalers, `[2, H]`: added to what is there."""

    inputs: list[Tensor]
    affines: list[Tensor]
    unset: set[int]
    """Numbers of inputs that hold nothing yet; the first that is added is all of them."""

    def add(self, number: int, tokens: slice | Tensor, gradient: tuple[Tensor, Tensor]) -> None:
        of_input, of_scaler = gradient
        if number in self.unset:
            self.inputs[number].copy_(of_input)
            self.unset.remove(number)
        elif isinstance(tokens, slice):
            self.inputs[number][:, :, tokens] += of_input
        else:
            self.inputs[number].index_add_(2, tokens, of_input)
        self.affines[number] += of_scaler


class _Tokens:
    """The queries of a span, and the tokens that they read: in both arrays, and in the digital memory where there is
    one. Queries are relative, over S_sat of their heads, `[B, H, T', D]`."""

    def __init__(self, call: Call, span: Span, sink: Tensor | None) -> None:
        hardware = call.heads.hardware
        self.call, self.start, self.queries = call, span.start, slice(span.start, span.stop)
        self.full_scale = call.heads.full_scale_qk(call.scaling)
        query, scaler = call.query[:, :, self.queries], call.scaling.query
        self.pulses = converted(query, scaler, hardware.input_dac, over=self.full_scale)
        self.digital_pulses = (
            None if sink is None else digital_pulses(scaled(query, scaler), hardware) / self.full_scale
        )
        self.of_pulses: Tensor | None = None
        self.of_digital: Tensor | None = None
        self.keys = Stored(call, ArrayId.QK, span)
        self.values = Stored(call, ArrayId.AV, span) if hardware.activation != "pruned_softmax" else None
        self.digital = None if sink is None else Digital(call, span, sink)
        self.whole: Whole | None = None
        if self.values is not None and (kernels := fitting_kernels(call)) is not None:
            self.whole = Whole(kernels, call, span, (self.keys, self.values), self.pulses)
        self.text = slice(span.first, min(span.behind, call.heads.n_tokens))

    def of(self, run: Run, x: Tensor) -> Tensor:
        """The queries of a run."""
        return x[:, :, run.start - self.start : run.stop - self.start]

    def gather(self, run: Run, of_pulses: Tensor, of_digital: Tensor | None) -> None:
        """Take in the gradients of the queries of a run, in whatever shape has their numbers in order."""
        if self.of_pulses is None:
            self.of_pulses = torch.empty_like(self.pulses)
            self.of_digital = None if of_digital is None else torch.empty_like(self.pulses)
        into = self.of(run, self.of_pulses)
        into.copy_(of_pulses.reshape(into.shape))
        if of_digital is not None and self.of_digital is not None:
            self.of(run, self.of_digital).copy_(of_digital.view(into.shape))

    def back(self, gradients: _Gradients) -> None:
        """What the runs have gathered, to the model's numbers."""
        self._back_to_query(gradients)
        gradients.add(1, self.text, self.keys.gradient())
        if self.values is not None:
            gradients.add(2, self.text, self.values.gradient())
        if self.digital is not None:
            gradients.add(1, self.digital.tokens, self.digital.gradient(ArrayId.QK))
            gradients.add(2, self.digital.tokens, self.digital.gradient(ArrayId.AV))

    def _back_to_query(self, gradients: _Gradients) -> None:
        of_query, hardware = (self.call.query[:, :, self.queries], self.call.scaling.query), self.call.heads.hardware
        of_pulses, of_digital = self.of_pulses, self.of_digital
        assert of_pulses is not None  # every query has read
        if of_digital is not None:
            if hardware.has_softmax:
                gradients.add(0, self.queries, scaler_gradient(of_digital.div_(self.full_scale), *of_query))
            else:  # behind the same clip
                of_pulses += of_digital
        of_pulses.div_(self.full_scale)
        gradients.add(0, self.queries, converter_gradient(of_pulses, *of_query, hardware.input_dac))


class _Read:
    """One run through all steps of docs/physics.md; with `keep`, what its way back needs is kept."""

    def __init__(self, reader: Reader, run: Run, tokens: _Tokens, keep: bool = False) -> None:
        self.reader, self.run, self.tokens = reader, run, tokens
        call, heads = reader.call, reader.heads
        pulses = tokens.of(run, tokens.pulses)
        digital = self.digital = None if tokens.digital is None else tokens.digital.read(run)
        self.digital_pulses = None
        if tokens.digital_pulses is not None:
            self.digital_pulses = self._by_array(tokens.of(run, tokens.digital_pulses))
        self.key_cells = tokens.keys.cells(run)
        by_group = pulses.unflatten(1, (heads.n_kv_heads, heads.group)).flatten(0, 1)  # [P, G, T', D]
        self.left = reader.left(by_group, tokens.keys, self.key_cells)
        charge = reader.charges(run, self.left, self.key_cells, digital, self.digital_pulses)
        self.columns = reader.columns(run, digital, pulses)
        norm = call.scaling.query_norm
        norm = None if norm is None else norm[:, :, run.start : run.stop, None].to(heads.dtype)
        widths, self.normaliser, self.lost = reader.activation.widths(charge, self.columns, norm, keep)
        self.widths = self._by_array(widths)
        if tokens.values is not None:
            self.value_cells = tokens.values.cells(run)
            counts = reader.counts(run, self.widths, tokens.values, self.value_cells)
            self.counts = counts.clone() if keep else counts
            total = reader.total(run, counts)
        else:
            total = self.widths.new_zeros(*self.widths.shape[:2], heads.head_size)
        if digital is not None:
            total.baddbmm_(self.widths[..., run.n_columns :], digital.values)
        self.total = total.view(pulses.shape)
        if self.lost is not None:
            self.total += self.lost * reader.resting_output
        self.pulse = None
        if heads.hardware.normaliser.is_on:
            self.pulse = reader.pulse(run, self.widths)
            self.normaliser = reciprocal(heads, self.pulse.total, reader.full_scale_of_sum)
        self.out = self._without_padding(self.total if self.normaliser is None else self.total * self.normaliser)

    def back(self, upstream: Tensor) -> None:
        """From the gradient `[B, H, T', D]` of the output."""
        reader, run, tokens, digital = self.reader, self.run, self.tokens, self.digital
        heads, n_columns = reader.heads, run.n_columns
        upstream = self._without_padding(upstream)
        of_normaliser = None if self.normaliser is None else (upstream * self.total).sum(dim=-1, keepdim=True)
        of_total = self._by_array(upstream if self.normaliser is None else upstream * self.normaliser)
        of_widths = torch.zeros_like(self.widths)
        if tokens.values is not None:
            of_counts = reader.back_through_counters(run, self.counts, of_total)
            reader.back_through_second(run, of_counts, self.widths, tokens.values, self.value_cells, of_widths)
        if digital is not None:
            torch.bmm(of_total, digital.values.mT, out=of_widths[..., n_columns:])
        if self.pulse is not None and of_normaliser is not None:
            reader.back_through_pulse(run, self.pulse, of_normaliser, of_widths)
        of_lost = None
        if self.lost is not None:
            of_lost = of_total.view(upstream.shape).sum(dim=-1, keepdim=True) * reader.resting_output
        of_charge = reader.activation.back(of_widths.view(*upstream.shape[:3], -1), of_normaliser, of_lost)
        of_charge = self._by_array(of_charge)
        of_pulses = reader.back_through_first(of_charge[..., :n_columns], self.left, tokens.keys, self.key_cells)
        if reader.activation.of_rest is not None:
            of_pulses = of_pulses + self._by_array(reader.activation.of_rest) * heads.cell.coefficients[0]
        of_digital = None
        if digital is not None and tokens.digital is not None and self.digital_pulses is not None:
            of_memory = of_charge[..., n_columns:]
            of_digital = torch.bmm(of_memory, digital.keys)
            of_keys = torch.bmm(of_memory.mT, self.digital_pulses)
            tokens.digital.gather(digital, of_keys, torch.bmm(self.widths[..., n_columns:].mT, of_total))
        tokens.gather(run, of_pulses, of_digital)

    def _by_array(self, x: Tensor) -> Tensor:
        """`[B, H, T', …]` → `[P, G·T', …]`."""
        return x.reshape(self.reader.n_arrays, -1, x.shape[-1])

    def _without_padding(self, x: Tensor) -> Tensor:
        return _without_padding(self.reader.call, self.run, x)


def _without_padding(call: Call, of: Run | Span, x: Tensor) -> Tensor:
    """Zero at padded queries of a run or span, `[B, H, T', D]`."""
    padding = call.key_padding
    return x if padding is None else x.masked_fill(padding[:, None, of.start : of.stop, None], 0.0)


def _parts(call: Call) -> list[Call]:
    """Sequences and K/V heads whose runs have charges of the aimed size, or whose tokens are as many as aimed at where
    they are read as a whole, together; at least one part a thread."""
    heads, array = call.heads, call.heads.hardware.array
    on_cpu = heads.device.type == "cpu"
    if fitting_kernels(call) is not None:
        n_arrays = max(WHOLE // (min(heads.n_tokens, SPAN) * heads.head_size), 1)
    else:
        of_array = heads.group * _length(heads) * (min(heads.n_tokens, array.window) + array.rows)
        most = WORK_BUFFER_BYTES if on_cpu else ON_ACCELERATORS
        n_arrays = max(most // (of_array * heads.dtype.itemsize), 1)
    if on_cpu:  # as many for each thread
        n_all, n_threads = heads.n_batch * heads.n_kv_heads, torch.get_num_threads()
        n_arrays = -(-n_all // (-(-n_all // (n_arrays * n_threads)) * n_threads))
    n_kv = min(n_arrays, heads.n_kv_heads)
    n_batch = max(n_arrays // heads.n_kv_heads, 1)
    return [
        call.part(range(batch, min(batch + n_batch, heads.n_batch)), range(first, min(first + n_kv, heads.n_kv_heads)))
        for batch in range(0, heads.n_batch, n_batch)
        for first in range(0, heads.n_kv_heads, n_kv)
    ]


def _length(heads: Heads) -> int:
    """Queries of a run."""
    rows = heads.hardware.array.rows
    length = LENGTH if heads.device.type == "cpu" else LENGTH_ON_ACCELERATORS
    several = 1 if heads.leaks_apart else max(length // rows, 1)  # moments are chosen for a sub-tile
    return min(rows * several, longest_span(heads))


def _spans(call: Call) -> list[Span]:
    heads = call.heads
    all_runs = runs(heads.n_tokens, _length(heads), heads.hardware.array, heads.device)
    return list(spans(all_runs, min(longest_span(heads), SPAN)))


def _sink(call: Call) -> Tensor | None:
    """Which tokens are digital for ever, `[B, T]`; None: there is no digital memory."""
    heads, padding = call.heads, call.key_padding
    if not has_memory(heads.hardware):
        return None
    if padding is None:
        padding = torch.zeros(heads.n_batch, heads.n_tokens, dtype=torch.bool, device=heads.device)
    return sink_tokens(padding, 0, heads.hardware.protection)


def _slice(numbers: range) -> slice:
    return slice(numbers.start, numbers.stop)
