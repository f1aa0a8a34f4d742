"""Static tiles of a converted model: finding them, their state, and the model's record of them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from aimc.models.modes import evaluating
from aimc.static.config import resolve
from aimc.static.encoding import encode

if TYPE_CHECKING:
    from aimc.static.layer import StaticLinear

STATIC_KEY = "aimc_static"
"""Where the tiles' configurations stand in `config.json`."""
STATIC_VERSION = 1
"""Version of that record."""
TILES = "analog_module"
"""The child of a layer that holds its tiles, which aihwkit calls so."""


def static_layers(model: nn.Module) -> Iterator[tuple[str, StaticLinear]]:
    """Name and module of every layer on static tiles, in order."""
    if "aimc.static.layer" not in sys.modules:  # none was ever made, and aihwkit may not be there
        return
    from aimc.static.layer import StaticLinear

    for name, module in model.named_modules():
        if isinstance(module, StaticLinear):
            yield name, module


def has_static(model: nn.Module) -> bool:
    """Whether any layer is on static tiles."""
    return next(static_layers(model), None) is not None


def is_aihwkits_own(module: nn.Module) -> bool:
    """Whether aihwkit's own conversion made this layer: analog already, and none of ours."""
    bases = {base.__name__ for base in type(module).__mro__ if base.__module__.startswith("aihwkit.")}
    return "AnalogLayerBase" in bases and type(module).__module__.startswith("aihwkit.")


def require_static(model: nn.Module) -> list[StaticLinear]:
    """The layers on static tiles.

    Raises:
        ValueError: there is none.
    """
    layers = [layer for _, layer in static_layers(model)]
    if not layers:
        raise ValueError(
            f"this {type(model).__name__} has no layer on static tiles; call aimc.convert(model, hardware,"
            " aimc.static.Static(rpu_config='pcm')) first"
        )
    return layers


def write_static_record(model: PreTrainedModel) -> None:
    """Note in the model's config what :func:`aimc.from_pretrained` needs to build the same tiles again.

    Raises:
        aimc.static.encoding.EncodingError: a configuration that is not aihwkit's own.
    """
    configs: list[Any] = []
    layers: dict[str, int] = {}
    for name, layer in static_layers(model):
        layer.recorded = encode(layer.tiles[0].rpu_config)
        if layer.recorded not in configs:
            configs.append(layer.recorded)
        layers[name] = configs.index(layer.recorded)
    before = getattr(model.config, STATIC_KEY, {})
    parted = before.get("parted", False)
    setattr(
        model.config, STATIC_KEY, {"version": STATIC_VERSION, "configs": configs, "layers": layers, "parted": parted}
    )


def set_rpu_config(model: PreTrainedModel, config: Any, *, layers: Collection[str] = ("*",)) -> None:
    """Put layers on tiles of another aihwkit configuration, keeping their weights; programmed tiles go back to their
    targets.

    Input ranges stay where both configurations have them.

    Args:
        model: with static tiles.
        config: an aihwkit configuration or the name of a preset.
        layers: patterns of full module names.

    Raises:
        ValueError: no layer on static tiles matches, one string in place of patterns, or a configuration that fits none
            of them; nothing is changed then.
        aimc.static.encoding.EncodingError: a configuration that is not aihwkit's own.
    """
    require_static(model)
    if isinstance(layers, str):
        raise ValueError(f"layers={layers!r}: a collection of patterns is needed; give [{layers!r}]")
    chosen = [layer for name, layer in static_layers(model) if any(fnmatchcase(name, pattern) for pattern in layers)]
    if not chosen:
        raise ValueError(
            f"layers={list(layers)}: no layer on static tiles has such a name; aimc.convert's report lists them"
        )
    config = resolve(config)
    encode(config)  # what could not be saved is refused before anything changes, and so is what fits no layer
    for layer, tiles in [(layer, layer.tiles_of(config)) for layer in chosen]:
        layer.take_tiles(tiles)
    write_static_record(model)


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """aihwkit draws from torch's global generators: these begin at a state of their own, and go on afterwards as if
    nothing had been drawn.

    Programming, drift and reading draw in the same order, so one seed for all would give one device the same number
    three times.

    Args:
        seed: of the chip.
        purpose: what is drawn; others are independent of it.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:8], "big"))
        yield


def post_update(model: nn.Module) -> None:
    """What aihwkit does after an optimiser's step: clip and remap the weights as the configurations ask."""
    for _, layer in static_layers(model):
        layer.post_update_step()


def follow_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """Let :func:`post_update` follow every step of any torch optimiser; aihwkit's own optimisers are not needed.

    Returns:
        A handle whose `remove()` ends it.
    """
    return optimizer.register_step_post_hook(lambda *_: post_update(model))


@contextmanager
def computing_digitally(model: PreTrainedModel) -> Iterator[None]:
    """The model's linear layers as if they were not on tiles.

    Raises:
        ValueError: no static tiles.
    """
    with temporarily(require_static(model), "computes_digitally", True):
        yield


@contextmanager
def temporarily(owners: Sequence[Any], name: str, value: Any) -> Iterator[None]:
    """An attribute of several objects with another value, which is put back afterwards."""
    before = [getattr(owner, name) for owner in owners]
    for owner in owners:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, was in zip(owners, before, strict=True):
            setattr(owner, name, was)


@torch.no_grad()
def calibrate_input_ranges(
    model: PreTrainedModel, batches: Sequence[Tensor], *, quantile: float = 0.9999
) -> dict[str, float]:
    """Set each tile's input range from what the layers see when they compute digitally: training starts from there,
    inference needs it.

    Args:
        model: with static tiles; put into evaluation for the passes.
        batches: token ids `[B, T]` each.
        quantile: share of the inputs' absolute values within the range; mean over the batches.

    Returns:
        Range by name of the layer; the largest, where its tiles differ. Empty if no configuration has input ranges;
        without the layers that the model never called, whose ranges stay.

    Raises:
        ValueError: no static tiles, no batches, or a quantile that is none.
    """
    require_static(model)
    if not batches:
        raise ValueError("batches is empty: nothing to measure input ranges on; give token ids [B, T]")
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile={quantile}: must be above 0 and at most 1; 0.9999 is usual")
    seen: dict[str, list[list[float]]] = {}
    handles = []
    for name, layer in static_layers(model):
        seen[name] = []
        handles.append(layer.register_forward_pre_hook(_measure(seen[name], quantile)))
    try:
        with evaluating(model), computing_digitally(model):
            for batch in batches:
                model(batch.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: _set_ranges(layer, torch.tensor(seen[name]))
        for name, layer in static_layers(model)
        if layer.has_input_ranges and seen[name]
    }


def _measure(into: list[list[float]], quantile: float) -> Any:
    def hook(layer: StaticLinear, args: tuple[Tensor, ...]) -> None:
        if layer.is_embedding:
            into.append([1.0 for _ in layer.tiles])
            return
        flat = args[0].reshape(-1, layer.in_features).abs().float()
        into.append([_quantile(flat[:, columns], quantile) for _, _, columns in layer.parts()])

    return hook


def _quantile(values: Tensor, quantile: float) -> float:
    """The smallest value that a share of at least `quantile` does not exceed; torch's own refuses so many values."""
    flat = values.flatten()
    return float(flat.kthvalue(max(1, min(len(flat), round(quantile * len(flat))))).values)


def _set_ranges(layer: StaticLinear, measured: Tensor) -> float:
    ranges = measured.mean(0)  # [tiles]
    for tile, value in zip(layer.tiles, ranges.tolist(), strict=True):
        tile.set_input_range(max(value, 1e-6))
        tile.input_range_update_idx.fill_(
            tile.rpu_config.pre_post.input_range.init_from_data
        )  # aihwkit's own start from data is over
    return float(ranges.max())
