"""The one loop over chips: whatever is random in a model belongs to the chip at hand, and afterwards to nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from aimc.hardware import Noise
from aimc.models.arrays import gain_cell_layers, has_arrays, set_chip, set_draws, set_generator, write_record
from aimc.models.gsa import SlotArrays, slot_arrays
from aimc.models.ranks import Ranks
from aimc.models.substrates import require_as_saved
from aimc.nn.attention import GainCellAttention
from aimc.ops.effects.noise import draw_seed
from aimc.static.tiles import seeded, static_layers


class chips_of:
    """`for chip in chips_of(model, n, noise, seed):` gives chip after chip, with the model on each.

    A chip is a draw of the gain cells' mismatch, of write and read noise, and of the reads of static tiles, all from
    its number: the same number, the same chip. After the loop, also when it is left by `break` or an exception,
    hardware, chip, generator and torch's global generator are as they were: each loop has its own iterator, which only
    the loop holds, so that it ends with the loop.

    Args:
        model: digital or converted, with or without static tiles.
        n: how many chips; one is enough where nothing is random, see :func:`is_random`.
        noise: of the gain cells in place of the hardware's own; None: the hardware's own.
        seed: number of the first chip; the others follow it.

    Raises:
        ValueError: no chip, noise asked of a model without gain cells, or a converted model that a plain loader read.
    """

    def __init__(self, model: PreTrainedModel, n: int = 1, noise: Noise | None = None, seed: int = 0) -> None:
        if n < 1:
            raise ValueError(f"chips={n}: at least one chip is needed; give chips=1 or more")
        require_as_saved(model)
        if not in_cells(model) and noise is not None and noise.active():
            raise ValueError(
                "a digital model has no analog arrays to be non-ideal; call aimc.convert first, or leave nonideality"
                " out"
            )
        self.model, self.noise = model, noise
        self.numbers = range(seed, seed + (n if is_random(model, noise) else 1))

    def __len__(self) -> int:
        return len(self.numbers)

    def only(self, ranks: Ranks) -> chips_of:
        """The same less the chips that other processes take."""
        self.numbers = ranks.mine(self.numbers)
        return self

    def __iter__(self) -> Iterator[int]:
        with noise_of(self.model, self.noise):
            set_draws(self.model, None)
            for chip in self.numbers:
                set_chip(self.model, chip)
                set_generator(self.model, torch.Generator().manual_seed(chip))
                for _, slots in slot_arrays(self.model):
                    slots.chip_seed, slots.generator = chip, torch.Generator().manual_seed(chip)
                with ExitStack() as drawn:
                    if any(True for _ in static_layers(self.model)):
                        drawn.enter_context(seeded(chip, "reads"))  # aihwkit draws from torch's own generator
                    yield chip


def noise_of_windows(model: PreTrainedModel, chip: int, first: int) -> None:
    """Have the next pass meet the write and read noise that the windows of a text meet on a chip, numbered from `first`
    on: it is a window's own, whatever others are read beside it, and on whatever device. (Slots in cells draw theirs
    from a generator, pass after pass.)"""
    seed = int(draw_seed(torch.Generator().manual_seed(chip), torch.device("cpu")))  # chips are counted from zero
    set_draws(model, seed, first)


def is_random(model: PreTrainedModel, noise: Noise | None = None) -> bool:
    """Whether one chip differs from another: gain cells under `noise` (None: the hardware's own), or static tiles that
    are read."""
    of_cells = any((layer.machine.noise if noise is None else noise).active() for layer in in_cells(model))
    return of_cells or any(not layer.computes_digitally for _, layer in static_layers(model))


@contextmanager
def noise_of(model: PreTrainedModel, noise: Noise | None) -> Iterator[None]:
    """Other noise on the same hardware; hardware, chip, the source of noise and the model's record of them are put
    back."""
    layers = in_cells(model)
    drawn = [(layer, layer.draws) for _, layer in gain_cell_layers(model)]
    before = [(layer.hardware, layer.chip_seed, layer.generator) for layer in layers]
    try:
        for layer in layers:
            if noise is not None:
                layer.hardware = replace(layer.hardware, noise=noise)
        yield
    finally:
        for layer, (hardware, chip_seed, generator) in zip(layers, before, strict=True):
            layer.hardware, layer.chip_seed, layer.generator = hardware, chip_seed, generator
        for attention, draws in drawn:
            attention.draws = draws
        if has_arrays(model):
            write_record(model)  # choosing chips noted the last one, with this noise


def in_cells(model: PreTrainedModel) -> list[GainCellAttention | SlotArrays]:
    """Everything of a model that is in gain cells: attention's arrays, and slots."""
    return [*(layer for _, layer in gain_cell_layers(model)), *(layer for _, layer in slot_arrays(model))]
