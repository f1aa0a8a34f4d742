"""What pruned softmax selects: how many of the tokens, and how much of the attention they hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from aimc.calibrate.layerwise import digital_scalings
from aimc.calibrate.observation import observing, run_batches
from aimc.models.arrays import gain_cell_layers, hardware_of
from aimc.ops.attention import Details
from aimc.ops.ring import visible


@dataclass(frozen=True, slots=True)
class Selection:
    """Of one layer, means over heads and queries."""

    layer: int
    """Its number in the model."""
    kept_share: float
    """Of the tokens that a query sees."""
    recalled_mass: float
    """Of what exact softmax attention gives to the tokens that a query sees, the part of those that are kept."""


def selection(model: PreTrainedModel, reference: PreTrainedModel, input_ids: Tensor) -> list[Selection]:
    """What every layer keeps of a text.

    Args:
        model: calibrated, with the activation `pruned_softmax`.
        reference: the digital model that it was made of, for the scaling of its scores.
        input_ids: `[B, T]`, without padding; a matrix of T×T scores a head is held for one layer at a time.

    Raises:
        ValueError: another activation.
    """
    if (activation := hardware_of(model).activation) != "pruned_softmax":
        raise ValueError(
            f"the arrays' activation is {activation}, which selects nothing; convert the model with"
            " presets.for_pretrained(hardware, pruned=True)"
        )
    scalings = digital_scalings(reference, input_ids[:1, :2], [layer for _, layer in gain_cell_layers(model)])
    windows = {layer.layer: layer.machine.array.window for _, layer in gain_cell_layers(model)}
    found: list[Selection] = []
    arrived: dict[int, tuple[Tensor, Tensor]] = {}

    def observe(number: int, _: dict[str, Tensor], inside: Details | None) -> None:
        assert inside is not None  # details are asked for
        query, key = arrived.pop(number)
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        at = torch.arange(query.shape[2], device=query.device)
        seen = visible(at, at, windows[number], None)
        scores = (scalings[number] * query @ keys.mT).masked_fill(~seen, -torch.inf)
        kept = inside.phi > 0
        recalled = torch.softmax(scores, dim=-1).mul_(kept).sum(dim=-1).mean()
        found.append(Selection(number, float((kept.sum(dim=-1) / seen.sum(dim=-1)).mean()), float(recalled)))

    with _arriving(model, arrived), observing(model, observe, details=True):
        run_batches(model, [input_ids])
    return found


@contextmanager
def _arriving(model: PreTrainedModel, arrived: dict[int, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Note the queries and keys that arrive at each layer."""

    def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
        arrived[layer.layer] = args[0], args[1]  # type: ignore[index]

    handles = [layer.register_forward_pre_hook(note) for _, layer in gain_cell_layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
