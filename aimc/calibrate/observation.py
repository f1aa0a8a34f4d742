"""Watch what passes through attention: statistics per layer and head, and how often a value hits a bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from aimc.hardware import Converter
from aimc.models.hook import gain_cell_layers
from aimc.nn.attention import PARTS, GainCellAttention
from aimc.ops.attention import Details

Batches = Iterable[Tensor | dict[str, Tensor]]
"""Token ids `[B, T]`, or the keyword arguments of the model's forward."""


@dataclass(slots=True)
class Moments:
    """Running count, sum and sum of squares of a quantity, per head, in float64."""

    count: float = 0.0
    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, x: Tensor) -> None:
        """Take in `[B, H, T, D]`."""
        x = x.detach().double()
        self.count += x.numel() / x.shape[1]
        self.total = self.total + x.sum(dim=(0, 2, 3)).cpu()
        self.squares = self.squares + x.square().sum(dim=(0, 2, 3)).cpu()

    def reduce(self) -> None:
        """Sum over the processes of a data-parallel run, so that each sees the statistics of all batches."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            packed = torch.cat([torch.tensor([self.count], dtype=torch.float64), self.total, self.squares])
            if torch.distributed.get_backend() == "nccl":
                packed = packed.cuda()
            torch.distributed.all_reduce(packed)
            packed = packed.cpu()
            self.count = float(packed[0])
            self.total, self.squares = packed[1:].chunk(2)

    @property
    def mean(self) -> Tensor:
        """`[H]`."""
        return self.total / self.count

    @property
    def std(self) -> Tensor:
        """`[H]`, of the population."""
        return (self.squares / self.count - self.mean.square()).clamp(min=0).sqrt()


LayerMoments = dict[str, Moments]
"""Part (query, key, value, output) to its moments."""


class RealTokens:
    """Which tokens of the batch at hand are not padding; given to :func:`run`, which tells it each batch's attention
    mask."""

    mask: Tensor | None = None

    def of(self, x: Tensor, dim: int) -> Tensor:
        """`x` with batch at 0 and tokens at `dim` → the same with the real tokens of all rows at `dim`, and a batch of
        one."""
        if self.mask is None:
            return x
        return x.movedim(dim, 1)[self.mask.to(x.device).bool()][None].movedim(1, dim)


def run(model: PreTrainedModel, batches: Batches, real: RealTokens | None = None) -> None:
    """Forward passes without gradients or cache, in evaluation mode, with the global random state put back
    afterwards."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for batch in batches:
            inputs = batch if isinstance(batch, dict) else {"input_ids": batch}
            if real is not None:
                real.mask = inputs.get("attention_mask")
            model(**{name: x.to(device) for name, x in inputs.items()}, use_cache=False)
    model.train(was_training)


@contextmanager
def observing(
    model: PreTrainedModel, observer: Callable[[int, dict[str, Tensor], Details | None], None], details: bool = False
) -> Iterator[None]:
    """Call `observer(layer number, scaled parts, details)` at every gain-cell layer inside the block."""
    layers = [layer for _, layer in gain_cell_layers(model)]

    def forward(number: int) -> Callable[[GainCellAttention, dict[str, Tensor], Details | None], None]:
        return lambda _, parts, inside: observer(number, parts, inside)

    for number, layer in enumerate(layers):
        layer.observer, layer.observe_details = forward(number), details
    try:
        yield
    finally:
        for layer in layers:
            layer.observer, layer.observe_details = None, False


def analog_moments(model: PreTrainedModel, batches: Batches) -> list[LayerMoments]:
    """Moments of scaled q, k, v (before their converters) and of the scaled output, per layer and head of a converted
    model."""
    moments: list[LayerMoments] = [{part: Moments() for part in PARTS} for _ in gain_cell_layers(model)]

    real = RealTokens()

    def observe(number: int, parts: dict[str, Tensor], _: Details | None) -> None:
        for part, x in parts.items():
            moments[number][part].add(real.of(x, 2))

    with observing(model, observe):
        run(model, batches, real)
    return _reduced(moments)


def digital_moments(model: PreTrainedModel, batches: Batches) -> list[LayerMoments]:
    """The same for a digital model: its q, k and v as the attention receives them, and the attention's output per
    head."""
    seen: dict[nn.Module, LayerMoments] = {}
    real = RealTokens()

    def observe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, output: Tensor, scaling: float) -> None:
        of_layer = seen.setdefault(module, {part: Moments() for part in PARTS})
        for part, x in zip(PARTS, (query, key, value, output.transpose(1, 2)), strict=True):
            of_layer[part].add(real.of(x, 2))

    with observing_digital(model, observe):
        run(model, batches, real)
    return _reduced(list(seen.values()))  # layers report in the order they run


@contextmanager
def observing_digital(
    model: PreTrainedModel, observe: Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor, float], None]
) -> Iterator[None]:
    """Call `observe(layer, query, key, value, output, scaling)` at every attention of a digital model inside the block.

    q, k and v are as the attention receives them, `[B, H, T, D]` and `[B, H_kv, T, D]`, the output is `[B, T, H, D]`,
    and `scaling` is what the scores are multiplied by.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        scaling = kwargs.get("scaling")
        observe(module, query, key, value, output, query.shape[-1] ** -0.5 if scaling is None else scaling)
        return output, None

    before = model.config._attn_implementation
    AttentionInterface.register("aimc_observer", attention)
    AttentionMaskInterface.register("aimc_observer", sdpa_mask)
    model.set_attn_implementation("aimc_observer")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _reduced(moments: list[LayerMoments]) -> list[LayerMoments]:
    for of_layer in moments:
        for of_part in of_layer.values():
            if of_part.count == 0:
                raise ValueError(
                    "no batch was given, so there are no statistics; pass at least one batch of token ids [B, T]"
                )
            of_part.reduce()
    return moments


def clip_fractions(model: PreTrainedModel, batches: Batches) -> dict[str, float]:
    """Fraction of values that meet a bound of the hardware, over all layers: q, k and v at their converters, S at the
    charge-to-pulse circuit (`S_off` gives no pulse, `S_full` the longest) or, as `S`, at the ADC, A at the counters.
    Causal entries only.
    """
    hits: dict[str, float] = {}
    counts: dict[str, float] = {}

    def add(name: str, hit: Tensor) -> None:
        hits[name] = hits.get(name, 0.0) + float(hit.sum())
        counts[name] = counts.get(name, 0.0) + hit.numel()

    def observe(number: int, parts: dict[str, Tensor], inside: Details | None) -> None:
        hardware = layers[number].hardware
        add("query", _outside(parts["query"], hardware.input_dac))
        for part in ("key", "value"):
            add(part, _outside(parts[part], hardware.storage_dac))
        assert inside is not None  # observing(details=True) below
        n_tokens = inside.S.shape[-1]
        window = layers[number].machine.array.window
        past = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=inside.S.device).tril().triu(1 - window)
        visible = inside.S[..., past]
        if hardware.activation == "softmax":
            add("S", _outside(visible / hardware.array.saturation_qk, hardware.score_adc))
        else:
            add("S_off", visible <= 0)
            add("S_full", visible >= hardware.array.saturation_qk)
        add("A", (hardware.readout.v_min >= inside.A) | (hardware.readout.v_max <= inside.A))

    layers = [layer for _, layer in gain_cell_layers(model)]
    with observing(model, observe, details=True):
        run(model, batches)
    return {name: hits[name] / counts[name] for name in hits}


def _outside(x: Tensor, converter: Converter) -> Tensor:
    return (x < converter.v_min) | (x > converter.v_max)
