"""Calibration by the error of the attention output: per head, layer after layer, with the earlier layers on arrays.

One pass of the model over the text is enough. When it reaches a layer on arrays, that layer's ranges are searched on
the queries, keys and values that have arrived, against digital attention of the same; then the pass goes on through the
calibrated layer. Nothing is random: the same text gives the same ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from aimc.calibrate.settings import Ranges, apply, sampled
from aimc.nn.attention import GainCellAttention
from aimc.ops.ring import visible

SHARES = {
    "query": (0.25, 0.35, 0.5, 0.7, 1.0),
    "key": (0.25, 0.35, 0.45, 0.6, 0.8, 1.0),
    "value": (0.25, 0.35, 0.45, 0.6, 0.8, 1.0),
    "score": (0.2, 0.3, 0.45, 0.7, 1.0),
    "readout": (0.1, 0.2, 0.35, 0.6, 1.0),
}
"""Shares of the largest value of a text that are tried as a range, in the order in which they are searched."""
NEIGHBOURS = (0.85, 1.0, 1.18)
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
        self.power = (self.target.square() * self.real).sum(dim=(0, 2, 3)).clamp(min=1e-30)
        if layer.features is not None:
            _set_features(layer, query, key, value, real)
            query, key, value = layer.features.before(query, key, value)
        self.keys, self.values = sampled(key, real), sampled(value, real)
        self.largest = self._largest(query, key, value)

    def error(self, ranges: Ranges) -> Tensor:
        """Squared error of the layer's output over the power of the target, per head `[H]`."""
        apply(self.layer, ranges, self.keys, self.values, self.scaling)
        out = self.layer(*self.arrived)
        return ((out - self.target).square() * self.real).sum(dim=(0, 2, 3)) / self.power

    def _largest(self, query: Tensor, key: Tensor, value: Tensor) -> Ranges:
        """The largest of everything that a converter meets, in the model's own units."""
        key = key - self.keys.centre[:, None, None]
        value = value - self.values.centre[:, None, None]
        real, rows = self.real, self.layer.machine.array.rows
        keys, values = (x.repeat_interleave(self.group, dim=1) for x in (key, value))
        n_tokens, score, readout = query.shape[2], [], []
        tiles = -(-n_tokens // rows)
        in_tiles = pad(values, (0, 0, 0, tiles * rows - n_tokens)).unflatten(2, (tiles, rows))
        for start in range(0, n_tokens, CHUNK):
            part = slice(start, min(start + CHUNK, n_tokens))
            seen = self.seen[..., part, :]
            logits = self.scaling * query[:, :, part] @ keys.mT
            score.append(logits.masked_fill(~seen, 0.0).abs().amax(dim=(0, 2, 3)))
            logits = logits.masked_fill(~seen, -torch.inf)
            pulses = torch.exp(logits - logits.amax(dim=-1, keepdim=True))
            pulses = pad(pulses, (0, tiles * rows - n_tokens)).unflatten(-1, (tiles, rows))
            sums = torch.einsum("bhtjr,bhjrd->bhtjd", pulses, in_tiles)
            readout.append(sums.abs().amax(dim=(0, 2, 3, 4)))
        eps = torch.finfo(torch.float32).eps
        return Ranges(
            query=(query.abs() * real).amax(dim=(0, 2, 3)).clamp(min=eps),
            key=(key.abs() * real).amax(dim=(0, 2, 3)).clamp(min=eps),
            value=(value.abs() * real).amax(dim=(0, 2, 3)).clamp(min=eps),
            score=torch.stack(score).amax(dim=0).clamp(min=eps),
            readout=torch.stack(readout).amax(dim=0).clamp(min=eps),
        )


def search(text: LayerText, parts: Sequence[str]) -> tuple[Ranges, Tensor]:
    """The ranges of the least error of each head, found for one converter after another, and that error `[H]`.

    Args:
        text: of one layer; the layer is left at what was found.
        parts: which converters are searched; the others keep the largest value of the text.
    """
    ranges, best = text.largest, text.error(text.largest)
    for of_part in (SHARES, dict.fromkeys(SHARES, NEIGHBOURS)):
        for part in parts:
            ranges, best = _best_of(text, ranges, part, of_part[part])
    apply(text.layer, ranges, text.keys, text.values, text.scaling)
    return ranges, best


def _best_of(text: LayerText, ranges: Ranges, part: str, shares: Sequence[float]) -> tuple[Ranges, Tensor]:
    start = getattr(ranges, part)
    errors = []
    for share in shares:
        error = text.error(replace(ranges, **{part: start * share}))
        errors.append(error)
    of_heads = torch.stack(errors)  # [N, H]
    judged = of_heads
    if len(start) != of_heads.shape[1]:  # a K/V head is judged by all query heads that read it
        judged = (of_heads * text.power).unflatten(1, (len(start), text.group)).sum(dim=2)
    which = judged.argmin(dim=0)
    found = replace(ranges, **{part: start * torch.tensor(shares, device=start.device)[which]})
    return found, of_heads.gather(0, which.repeat_interleave(of_heads.shape[1] // len(start))[None])[0]


def _set_features(layer: GainCellAttention, query: Tensor, key: Tensor, value: Tensor, real: Tensor | None) -> None:
    """Means of keys and values per feature, and how much more the queries vary in each than the keys."""

    def of_tokens(x: Tensor) -> Tensor:  # [H, N, D]
        x = x.transpose(0, 1)
        return (x.flatten(1, 2) if real is None else x[:, real]).float()

    features = layer.features
    assert features is not None  # the caller has looked
    queries, keys, values = of_tokens(query), of_tokens(key), of_tokens(value)
    features.key_centre.copy_(keys.mean(dim=1))
    features.value_centre.copy_(values.mean(dim=1))
    of_groups = queries.unflatten(0, (len(keys), -1)).flatten(1, 2)
    spread = of_groups.std(dim=1) / keys.std(dim=1).clamp(min=1e-6)
    features.key_scale.copy_(spread.clamp(min=1e-6).sqrt())
