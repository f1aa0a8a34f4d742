"""Calibration by the error of the attention output: per head, layer after layer, with the earlier layers on arrays.

One pass of the model over the text is enough. When it reaches a layer on arrays, that layer's ranges are searched on
the queries, keys and values that have arrived, against digital attention of the same; then the pass goes on through the
calibrated layer. Nothing is random: the same text gives the same ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from tqdm import tqdm
from transformers import PreTrainedModel

from aimc.calibrate.freedoms import by_feature, set_features
from aimc.calibrate.moments import moments_of
from aimc.calibrate.observation import (
    Batches,
    RealTokens,
    number_of,
    observing_digital,
    require_same_heads,
    run_batches,
)
from aimc.calibrate.range_report import LayerRanges, RangeReport
from aimc.calibrate.settings import (
    Ranges,
    apply,
    full_scales_needed,
    sampled,
    with_full_scales,
    without_full_scales,
)
from aimc.calibrate.thresholds import set_threshold
from aimc.hardware import Hardware
from aimc.models.arrays import gain_cell_layers, hardware_of, set_hardware
from aimc.nn.attention import GainCellAttention
from aimc.ops.ring import visible

SHARES = {
    "query": (1.0, 0.65),
    "key": (1.0, 0.65, 0.42),
    "value": (1.0, 0.65, 0.42),
    "score": (1.0, 0.65, 0.42),
    "readout": (1.0, 0.65, 0.42, 0.27),
}
"""Shares of the largest value of a text that are tried as a range, in the order in which they are searched."""
NEIGHBOURS = (1.0, 0.82, 1.2)
"""Tried once more about what was found."""
CHUNK = 128
"""Queries whose exact scores are held at once."""


class LayerText:
    """What has arrived at a layer, and what digital attention makes of it.

    Args:
        layer: the layer on arrays, with a softmax; its feature map is set here.
        query: `[B, H, T, D]`, as the model has it.
        key, value: `[B, H_kv, T, D]`.
        key_padding: bool `[B, T]`; None: none is padding.
        scaling: what the digital model's scores are multiplied by.
    """

    def __init__(
        self,
        layer: GainCellAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding: Tensor | None,
        scaling: float,
    ) -> None:
        self.layer, self.arrived, self.scaling = layer, (query, key, value, key_padding), scaling
        self.group, n_tokens = query.shape[1] // key.shape[1], query.shape[2]
        at = torch.arange(n_tokens, device=query.device)
        seen = visible(at, at, layer.machine.array.window, key_padding)
        if key_padding is not None:  # a row of padding sees itself: no empty softmax
            seen = seen | torch.eye(n_tokens, dtype=torch.bool, device=query.device)
        self.seen = seen
        real = None if key_padding is None else ~key_padding
        self.real = 1.0 if real is None else real[:, None, :, None]
        keys, values = (x.repeat_interleave(self.group, dim=1) for x in (key, value))
        self.target = scaled_dot_product_attention(query, keys, values, seen, scale=scaling)
        self.norms: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
        self.power = (self.target.square() * self.real).sum(dim=(0, 2, 3)).clamp(min=1e-30)
        if layer.features is not None:
            tokens = RealTokens(real)
            arrived = {part: tokens.of(x, 2) for part, x in (("query", query), ("key", key), ("value", value))}
            set_features(layer.features, moments_of(by_feature(arrived)))
            (query, key, value), norms = layer.features.before(query, key, value)
            self.norms = norms
        features = layer.machine.features
        self.keys = sampled(key, real, about_zero=features.normalise_keys)
        self.values = sampled(value, real, about_zero=features.normalise_values)
        self.largest = self._largest(query, key, value)

    def error(self, ranges: Ranges) -> Tensor:
        """Squared error of the layer's output over the power of the target, per head `[H]`."""
        apply(self.layer, ranges, self.keys, self.values, self.scaling)
        if self.layer.machine.noise.is_fresh():  # the same draws at every trial: what differs is the ranges
            self.layer.generator = torch.Generator().manual_seed(0)
        out = self.layer(*self.arrived)
        return ((out - self.target).square() * self.real).sum(dim=(0, 2, 3)) / self.power

    def _largest(self, query: Tensor, key: Tensor, value: Tensor) -> Ranges:
        """The largest of everything that a converter meets, in the model's own units."""
        key = key - self.keys.centre[:, None, None]
        value = value - self.values.centre[:, None, None]
        real, rows = self.real, self.layer.machine.array.rows
        query_norm, key_norm, value_norm = (
            1.0 if norm is None else norm.repeat_interleave(query.shape[1] // norm.shape[1], dim=1)
            for norm in self.norms
        )
        keys, values = (x.repeat_interleave(self.group, dim=1) for x in (key, value))
        n_tokens, score, readout = query.shape[2], [], []
        tiles = -(-n_tokens // rows)
        in_tiles = pad(values, (0, 0, 0, tiles * rows - n_tokens)).unflatten(2, (tiles, rows))
        for start in range(0, n_tokens, CHUNK):
            part = slice(start, min(start + CHUNK, n_tokens))
            seen = self.seen[..., part, :]
            logits = self.scaling * query[:, :, part] @ keys.mT
            score.append(logits.masked_fill(~seen, 0.0).abs().amax(dim=(0, 2, 3)))
            if isinstance(query_norm, Tensor):
                logits = logits * query_norm[:, :, part, None]
            if isinstance(key_norm, Tensor):
                logits = logits * key_norm[:, :, None]
            shares = torch.softmax(logits.masked_fill(~seen, -torch.inf), dim=-1)
            pulses = shares if isinstance(value_norm, float) else shares * value_norm[:, :, None]
            pulses = pulses / pulses.amax(dim=-1, keepdim=True)
            pulses = pad(pulses, (0, tiles * rows - n_tokens)).unflatten(-1, (tiles, rows))
            sums = torch.einsum("bhtjr,bhjrd->bhtjd", pulses, in_tiles)
            readout.append(sums.abs().amax(dim=(0, 2, 3, 4)))
        eps = torch.finfo(torch.float32).eps
        # While a sub-tile is overwritten, tokens of two runs share its counters.
        shared = 2.0 if n_tokens > self.layer.machine.array.window else 1.0
        return Ranges(
            query=(query.abs() * real).amax(dim=(0, 2, 3)).clamp(min=eps),
            key=(key.abs() * real).amax(dim=(0, 2, 3)).clamp(min=eps),
            value=(value.abs() * real).amax(dim=(0, 2, 3)).clamp(min=eps),
            score=torch.stack(score).amax(dim=0).clamp(min=eps),
            readout=(shared * torch.stack(readout).amax(dim=0)).clamp(min=eps),
        )


def calibrate_by_output(
    model: PreTrainedModel, reference: PreTrainedModel, batches: Sequence[Tensor | dict[str, Tensor]], progress: bool
) -> RangeReport:
    """Search the ranges of every layer on arrays; see :func:`aimc.calibrate_ranges`, which has checked the arguments
    and switched noise off.

    Raises:
        ValueError: rows of one token, or layers that the reference does not have.
    """
    hardware = hardware_of(model)
    inputs = joined(batches)
    if inputs["input_ids"].shape[1] < 2:
        raise ValueError(
            "the calibration text has rows of one token, which attends to itself alone; give rows as long as the model"
            " will read"
        )
    layers = [layer for _, layer in gain_cell_layers(model)]
    scalings = digital_scalings(reference, inputs["input_ids"][:1, :2], layers)
    report = RangeReport(method="output_error")
    parts, shared = _searched(hardware), hardware.array.full_scales == "global"
    if shared:  # one reference for all layers is known only when all have been seen
        set_hardware(model, without_full_scales(hardware))
    needed: list[tuple[float, float]] = []
    with tqdm(total=len(layers), desc="calibrating", unit="layer", disable=None if progress else True) as bar:

        def calibrate(layer: GainCellAttention, text: LayerText) -> None:
            generator = layer.generator
            try:
                ranges, error = search(text, parts)
            finally:
                layer.generator = generator
            needed.append(full_scales_needed(layer, ranges))
            if layer.prune_threshold is not None:
                set_threshold(layer, *text.arrived)
            report.layers.append(_told(layer, ranges, error, shared))
            bar.update()

        try:
            with _on_arrival(layers, scalings, calibrate):
                run_batches(model, [inputs])
        except BaseException:
            set_hardware(model, hardware)  # not the converters without ranges
            raise
    report.score_full_scale, report.readout_full_scale = (max(of_layers) for of_layers in zip(*needed, strict=True))
    if shared:
        set_hardware(model, with_full_scales(hardware, report.score_full_scale, report.readout_full_scale))
    return report


def joined(batches: Batches) -> dict[str, Tensor]:
    """All batches as one, padded on the right: the pass that calibrates goes through the model once.

    Raises:
        ValueError: no batch.
    """
    rows: list[Tensor] = []
    for batch in batches:
        ids = batch["input_ids"] if isinstance(batch, dict) else batch
        mask = batch.get("attention_mask") if isinstance(batch, dict) else None
        rows += [row if mask is None else row[mask[i].bool()] for i, row in enumerate(ids)]
    if not rows:
        raise ValueError(
            "no batch was given, so there is nothing to calibrate on; pass at least one batch of token ids [B, T]"
        )
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    if all(len(row) == ids.shape[1] for row in rows):
        return {"input_ids": ids}
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long(),
    }


@contextmanager
def _on_arrival(
    layers: list[GainCellAttention],
    scalings: dict[int, float],
    calibrate: Callable[[GainCellAttention, LayerText], None],
) -> Iterator[None]:
    """Call `calibrate` on each layer before it computes for the first time, with what has arrived at it."""
    handles: dict[int, Any] = {}

    def arrived(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(layer, GainCellAttention)  # hooked below
        handles.pop(layer.layer).remove()  # it computes many times while it is searched
        query, key, value = args
        padding = kwargs.get("key_padding")
        calibrate(layer, LayerText(layer, query, key, value, padding, scalings[layer.layer]))

    try:
        for layer in layers:
            handles[layer.layer] = layer.register_forward_pre_hook(arrived, with_kwargs=True)
        yield
    finally:
        for handle in handles.values():
            handle.remove()


def digital_scalings(reference: PreTrainedModel, ids: Tensor, layers: list[GainCellAttention]) -> dict[int, float]:
    """What the scores of each layer of a digital model are multiplied by.

    Raises:
        ValueError: it lacks one of the layers, or has other heads there.
    """
    found: dict[int, tuple[float, tuple[int, int]]] = {}

    def observe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, output: Tensor, scaling: float) -> None:
        found[number_of(module)] = scaling, (query.shape[1], key.shape[1])

    with observing_digital(reference, observe):
        run_batches(reference, [ids])
    for layer in layers:
        require_same_heads(layer, found[layer.layer][1] if layer.layer in found else None)
    return {number: scaling for number, (scaling, _) in found.items()}


def _searched(hardware: Hardware) -> list[str]:
    """Whose range is searched: converters that the layer has, with references of its own."""
    parts = ["query", "key"]
    if hardware.activation == "softmax":
        parts.append("value")
    if hardware.array.full_scales != "global":
        parts += ["score", "readout"] if hardware.activation == "softmax" else ["score"]
    return parts


def _told(layer: GainCellAttention, ranges: Ranges, error: Tensor, shared: bool) -> LayerRanges:
    lists = {part: getattr(ranges, part).tolist() for part in ("query", "key", "value")}
    if not shared:
        lists |= {part: getattr(ranges, part).tolist() for part in ("score", "readout")}
    return LayerRanges(layer=layer.layer, error=error.tolist(), **lists)


def search(text: LayerText, parts: Sequence[str]) -> tuple[Ranges, Tensor]:
    """The ranges of the least error of each head, found for one converter after another, and that error `[H]`.

    Args:
        text: of one layer; the layer is left at what was found.
        parts: which converters are searched; the others keep the largest value of the text.
    """
    ranges, best = text.largest, text.error(text.largest)
    for of_part in (SHARES, dict.fromkeys(SHARES, NEIGHBOURS)):
        for part in parts:
            ranges, best = _best_of(text, ranges, best, part, of_part[part])
    apply(text.layer, ranges, text.keys, text.values, text.scaling)
    return ranges, best


def _best_of(
    text: LayerText, ranges: Ranges, best: Tensor, part: str, shares: Sequence[float]
) -> tuple[Ranges, Tensor]:
    """The best of some shares of one range for each head; `best` is the error with the first of them, one."""
    start = getattr(ranges, part)
    others = [text.error(replace(ranges, **{part: start * share})) for share in shares[1:]]
    of_heads = torch.stack([best, *others])  # [N, H]
    judged = of_heads
    if len(start) != of_heads.shape[1]:  # a K/V head is judged by all query heads that read it
        judged = (of_heads * text.power).unflatten(1, (len(start), text.group)).sum(dim=2)
    which = judged.argmin(dim=0)
    found = replace(ranges, **{part: start * torch.tensor(shares, device=start.device)[which]})
    return found, of_heads.gather(0, which.repeat_interleave(of_heads.shape[1] // len(start))[None])[0]
