"""Watch what passes through attention, and its statistics per layer and head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from aimc.calibrate.moments import LayerMoments, Moments
from aimc.models.arrays import gain_cell_layers
from aimc.models.families import layer_number
from aimc.models.modes import evaluating
from aimc.models.ranks import all_ranks
from aimc.models.substrates import require_as_saved
from aimc.nn.attention import PARTS, GainCellAttention
from aimc.ops.attention import Details

Batches = Iterable[Tensor | dict[str, Tensor]]
"""Token ids `[B, T]`, or the keyword arguments of the model's forward."""


@dataclass(slots=True)
class RealTokens:
    """Which tokens of the batch at hand are not padding; given to :func:`run_batches`, which tells it each batch's
    attention mask."""

    mask: Tensor | None = None

    def of(self, x: Tensor, dim: int) -> Tensor:
        """`x` with batch at 0 and tokens at `dim` → the same with the real tokens of all rows at `dim`, and a batch of
        one."""
        if self.mask is None:
            return x
        return x.movedim(dim, 1)[self.mask.to(x.device).bool()][None].movedim(1, dim)


def run_batches(model: PreTrainedModel, batches: Batches, real: RealTokens | None = None) -> None:
    """Forward passes without gradients or cache, in evaluation mode, with the global random state put back
    afterwards."""
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for batch in batches:
            inputs = batch if isinstance(batch, dict) else {"input_ids": batch}
            if real is not None:
                real.mask = inputs.get("attention_mask")
            model(**{name: x.to(device) for name, x in inputs.items()}, use_cache=False)


@contextmanager
def observing(
    model: PreTrainedModel, observer: Callable[[int, dict[str, Tensor], Details | None], None], details: bool = False
) -> Iterator[None]:
    """Call `observer(layer, scaled parts, details)` at every gain-cell layer inside the block; a layer goes by its
    number in the model, in which skipped layers count."""
    layers = [layer for _, layer in gain_cell_layers(model)]

    def forward(layer: GainCellAttention, parts: dict[str, Tensor], inside: Details | None) -> None:
        observer(layer.layer, parts, inside)

    try:
        for layer in layers:
            layer.observer, layer.observe_details = forward, details
        yield
    finally:
        for layer in layers:
            layer.observer, layer.observe_details = None, False


def analog_moments(model: PreTrainedModel, batches: Batches) -> dict[int, LayerMoments]:
    """Moments of scaled q, k, v (before their converters) and of the scaled output, per head of every converted layer,
    by its number in the model."""
    moments = {layer.layer: {part: Moments() for part in PARTS} for _, layer in gain_cell_layers(model)}
    real = RealTokens()

    def observe(number: int, parts: dict[str, Tensor], _: Details | None) -> None:
        for part, x in parts.items():
            moments[number][part].add(real.of(x, 2))

    with observing(model, observe):
        run_batches(model, batches, real)
    return _reduced(moments)


def digital_moments(
    model: PreTrainedModel,
    batches: Batches,
    view: Callable[[int, dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> dict[int, LayerMoments]:
    """The same for a digital model: its q, k and v as the attention receives them, and the attention's output per head;
    or what `view(layer, these parts)` makes of them."""
    moments: dict[int, LayerMoments] = {}
    real = RealTokens()

    def observe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, output: Tensor, scaling: float) -> None:
        number, arrived = number_of(module), (query, key, value, output.transpose(1, 2))
        parts = {part: real.of(x, 2) for part, x in zip(PARTS, arrived, strict=True)}
        of_layer = moments.setdefault(number, {})
        for part, x in (parts if view is None else view(number, parts)).items():
            of_layer.setdefault(part, Moments()).add(x)

    with observing_digital(model, observe):
        run_batches(model, batches, real)
    return _reduced(moments)


def number_of(attention: nn.Module) -> int:
    """The number of an attention layer of a digital model that is being observed; layers without attention count."""
    number = layer_number(_names[attention], attention)
    assert number is not None  # a model without numbers could not have been converted
    return number


def require_same_heads(layer: GainCellAttention, found: tuple[int, int] | None) -> None:
    """Raise unless a layer of the digital model has the query and K/V heads of a layer on arrays; None: it has none.

    Raises:
        ValueError: it is another model.
    """
    wanted = (len(layer.query_scaler.scale), len(layer.key_scaler.scale))
    if found != wanted:
        raise ValueError(
            f"layer {layer.layer} has {wanted[0]} query and {wanted[1]} K/V heads, and the reference has"
            f" {found or 'no such layer'}; use the digital model it was converted from"
        )


DigitalObserver = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor, float], None]
"""Called with (attention layer, query, key, value, output, scaling)."""
OBSERVED = "aimc_observer"
"""Name of the attention implementation that shows what it computes."""
_observers: WeakKeyDictionary[nn.Module, DigitalObserver] = WeakKeyDictionary()
"""Who looks at which module; weak, because transformers keeps what is registered for ever, and no model should be kept
by having been looked at."""
_names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Full names of those modules."""


@contextmanager
def observing_digital(model: PreTrainedModel, observe: DigitalObserver) -> Iterator[None]:
    """Call `observe(layer, query, key, value, output, scaling)` at every attention of a digital model inside the block.

    q, k and v are as the attention receives them, `[B, H, T, D]` and `[B, H_kv, T, D]`, the output is `[B, T, H, D]`,
    and `scaling` is what the scores are multiplied by.

    Raises:
        ValueError: a converted model that a plain loader has read.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    require_as_saved(model)
    AttentionInterface.register(OBSERVED, _observed_attention)
    AttentionMaskInterface.register(OBSERVED, sdpa_mask)
    before = model.config._attn_implementation
    modules = {module: name for name, module in model.named_modules()}
    try:
        for module, name in modules.items():
            _observers[module], _names[module] = observe, name
        model.set_attn_implementation(OBSERVED)
        yield
    finally:
        model.set_attn_implementation(before)
        for module in modules:
            _observers.pop(module, None)
            _names.pop(module, None)


def _observed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    scaling = kwargs.get("scaling")
    _observers[module](module, query, key, value, output, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return output, None


def _reduced(moments: dict[int, LayerMoments]) -> dict[int, LayerMoments]:
    """With the batches of all processes of a data-parallel run, so that each sees the same statistics."""
    ranks = all_ranks()
    if ranks.n > 1:
        of_ranks = ranks.united({ranks.number: moments})
        moments = {number: {part: Moments() for part in of_layer} for x in of_ranks for number, of_layer in x.items()}
        for of_rank in of_ranks:
            for number, of_layer in of_rank.items():
                for part, found in of_layer.items():
                    both = moments[number][part]
                    both.counts += found.counts
                    both.totals += found.totals
                    both.squares += found.squares
    if not moments or any(not of_part.counts for of_layer in moments.values() for of_part in of_layer.values()):
        raise ValueError("no batch was given, so there are no statistics; pass at least one batch of token ids [B, T]")
    return moments
