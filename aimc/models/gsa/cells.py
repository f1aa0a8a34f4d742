"""A model's slots go into gain cells, are calibrated to them, and come back."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from aimc.hardware import Converter, Hardware
from aimc.models.gsa.arrays import GATE, SlotArrays
from aimc.models.gsa.memory import Memory, chunked, empty_memory
from aimc.models.gsa.model import GatedSlotAttention, GSAPreTrainedModel
from aimc.models.modes import evaluating
from aimc.models.own_config import take_own_config
from aimc.models.report import ConversionReport
from aimc.ops.effects.cell import leaking_cell, transfer
from aimc.ops.effects.noise import Chip

HEADROOM = 1.2
"""Full scale over the largest charge that calibration has seen."""
PLACES = 16
"""At so many tokens of each text memories are looked at."""


def slot_arrays(model: nn.Module) -> Iterator[tuple[str, SlotArrays]]:
    """Name and module of the cells of every layer, in order; none of a digital model."""
    for name, module in model.named_modules():
        if isinstance(module, SlotArrays):
            yield name, module


def put_on_cells(model: GSAPreTrainedModel, hardware: Hardware, *, gate: Converter = GATE) -> ConversionReport:
    """Put the slots of every layer into gain cells, in place; projections and MLPs stay digital. `save_pretrained`
    keeps it: the hardware is part of the model's config.

    Args:
        model: a GSA model, digital.
        hardware: with `activation="softmax"`, such as `presets.with_softmax(presets.gain_cell_cmos())`.
        gate: pulse widths of the write transistors, in time constants RC of the write path.

    Raises:
        TypeError: another model.
        ValueError: its slots are in cells already. :class:`aimc.hardware.ConfigError`: hardware without a circuit for
            slots.
    """
    layers = _layers(model)
    config = model.config
    if config.slot_cells is not None:
        raise ValueError(
            "the slots of this model are in cells already; change them with aimc.models.gsa.set_cells, or take them out"
            " with put_back"
        )
    made = [
        SlotArrays(config.num_attention_heads, config.num_slots, hardware, gate, number, config.num_hidden_layers)
        for number in range(len(layers))
    ]
    take_own_config(model)
    config = model.config
    for (_, layer), arrays in zip(layers, made, strict=True):
        layer.cells = arrays.to(layer.q_proj.weight.device).train(layer.training)
    config.slot_cells = made[0].record()
    return ConversionReport(
        layers=[name for name, _ in layers],
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_attention_heads,
        head_size=config.head_dim,
        n_scalers=sum(p.numel() for arrays in made for p in arrays.parameters()),
        notes=[
            f"memories of {config.num_slots} slots in place of a window of tokens: every token writes to all of them",
            "the scalers are not set yet: call aimc.models.gsa.calibrate_slots(model, batches)",
        ],
    )


def put_back(model: GSAPreTrainedModel) -> None:
    """Take the cells out again, in place: the digital model with its weights as they are now."""
    for _, layer in _layers(model):
        layer.cells = None
    model.config.slot_cells = None


def set_cells(model: GSAPreTrainedModel, hardware: Hardware, *, chip_seed: int | None = None) -> None:
    """Other hardware, such as the same with noise, and another chip, under the same scalers.

    Args:
        model: with its slots in cells.
        hardware: a copy is kept.
        chip_seed: whose mismatch the cells have; None: the one that they have.

    Raises:
        ValueError: its slots are digital, or no chip has such a number.
    """
    arrays = [arrays for _, arrays in slot_arrays(model)]
    if not arrays:
        raise ValueError("the slots of this model are digital; call aimc.models.gsa.put_on_cells(model, hardware)")
    if chip_seed is not None:
        chip_seed = Chip(seed=operator.index(chip_seed)).seed  # numpy's own could not be saved
    for one in arrays:
        one.take(hardware)
        one.chip_seed = one.chip_seed if chip_seed is None else chip_seed
    model.config.slot_cells = arrays[0].record()


def calibrate_slots(model: GSAPreTrainedModel, batches: Iterable[Tensor]) -> None:
    """Set scalers and full scales so that cells read, without noise and levels, what the digital slots would: ranges
    hold all that the digital model writes and asks in these texts, and a straight line stands for the cells' curve.

    With `array.full_scales` "head" or "layer" the references of score ADC and counters follow the largest charge; with
    "global" queries and values are written smaller where it would not fit.

    Args:
        model: with its slots in cells.
        batches: token ids `[B, T]`; a few suffice.

    Raises:
        ValueError: its slots are digital, or no batch was given.
    """
    layers = [(layer, layer.cells) for _, layer in _layers(model) if layer.cells is not None]
    if not layers:
        raise ValueError("the slots of this model are digital; call aimc.models.gsa.put_on_cells(model, hardware)")
    seen: dict[GatedSlotAttention, list[tuple[Tensor, ...]]] = {layer: [] for layer, _ in layers}

    def look(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, GatedSlotAttention)
        seen[layer].append(layer.operands(args[0], None))

    handles = [layer.register_forward_pre_hook(look) for layer, _ in layers]
    try:
        for layer, _ in layers:
            layer.cells = None
        with evaluating(model), torch.no_grad():
            for batch in batches:
                model(batch.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        for layer, arrays in layers:
            layer.cells = arrays
    if not all(seen.values()):
        raise ValueError("no batch was given, so there are no statistics; pass at least one batch of token ids [B, T]")
    with torch.no_grad():
        for layer, arrays in layers:
            _fit(arrays, seen[layer])


def _layers(model: nn.Module) -> list[tuple[str, GatedSlotAttention]]:
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, GatedSlotAttention)]
    if not found or not isinstance(model, GSAPreTrainedModel):
        raise TypeError(
            f"a {type(model).__name__} has no slots; pass a GSA model, or put attention on arrays with aimc.convert"
        )
    return found


def _fit(arrays: SlotArrays, operands: list[tuple[Tensor, ...]]) -> None:
    """The scalers of one layer, from what its digital slots meet."""
    hardware = arrays.hardware
    dac, cell = hardware.storage_dac, leaking_cell(hardware)
    rest_v = hardware.cell.offset_v
    half = min(dac.v_max - rest_v, rest_v - dac.v_min)
    q, k, v = (_largest([one[i] for one in operands]) for i in range(3))  # [H]
    scale_q, scale_k, scale_v = hardware.input_dac.v_max / q, half / k, half / v
    looked = [(one[0], memory) for one in operands for memory in _memories(one, arrays.n_slots)]
    slope_k, slope_v = (
        _slope(torch.cat([memory[i] for _, memory in looked]), scale, hardware)
        for i, scale in ((0, scale_k), (1, scale_v))
    )
    scores = [query @ memory.keys.mT for query, memory in looked]  # [B, H, T, m]
    largest = torch.stack([x.abs().amax(dim=(0, 2, 3)) for x in scores]).amax(dim=0)
    asked = torch.stack([one[0].sum(dim=-1).abs().amax(dim=(0, 2)) for one in operands]).amax(dim=0)
    # Resting cells answer, too, each feature of a query.
    charge = scale_q * scale_k * slope_k * largest + abs(cell.coefficients[0]) * asked * scale_q
    arrays.score_full_scale, scale_q = _full_scale(charge, hardware.array.saturation_qk, hardware, scale_q)
    rows = min(hardware.array.rows, arrays.n_slots)
    sums = []
    for x, (_, memory) in zip(scores, looked, strict=True):
        shares = torch.exp(x - x.amax(dim=-1, keepdim=True)).unflatten(-1, (-1, rows))  # [B, H, T, J, R]
        of_tiles = shares.movedim(3, 2) @ memory.values.unflatten(2, (-1, rows))  # [B, H, J, T, D]
        rest = abs(cell.coefficients[0]) * shares.sum(dim=-1).amax(dim=(0, 2, 3))
        sums.append(of_tiles.abs().amax(dim=(0, 2, 3, 4)) * scale_v * slope_v + rest)
    charge = torch.stack(sums).amax(dim=0)
    arrays.readout_full_scale, scale_v = _full_scale(charge, hardware.array.saturation_av, hardware, scale_v)
    for scaler, scale in (
        (arrays.query_scaler, scale_q),
        (arrays.key_scaler, scale_k),
        (arrays.value_scaler, scale_v),
    ):
        scaler.scale.copy_(scale)
    arrays.score_gain.copy_(hardware.array.saturation_qk * arrays.score_full_scale / (scale_q * scale_k * slope_k))
    arrays.output_scaler.scale.copy_(hardware.array.saturation_av * arrays.readout_full_scale / (scale_v * slope_v))
    arrays.output_scaler.offset.copy_(-cell.coefficients[0] / (scale_v * slope_v))


def _largest(parts: list[Tensor]) -> Tensor:
    """Largest absolute value of each head of `[B, H, T, D]`, `[H]`."""
    largest = torch.stack([part.abs().amax(dim=(0, 2, 3)) for part in parts]).amax(dim=0)
    return largest.clamp(min=torch.finfo(largest.dtype).tiny)


def _memories(operands: tuple[Tensor, ...], n_slots: int) -> Iterator[Memory]:
    """What slots hold at a few places of a text."""
    q, k, v, gate = operands
    for place in range(1, PLACES + 1):
        end = max(q.shape[2] * place // PLACES, 1)
        start = [x[:, :, :end] for x in (q, k, v, gate)]
        yield chunked(start[0], start[1], start[2], start[3], empty_memory(k, n_slots))[1]


def _slope(held: Tensor, scale: Tensor, hardware: Hardware) -> Tensor:
    """Of the straight line through rest that is nearest to the cells' charge at the voltages that slots hold, `[H]`, in
    signal units per volt."""
    cell = leaking_cell(hardware)
    u = held * scale[:, None, None]
    rise = transfer(u, cell) - cell.coefficients[0]
    energy = (u * u).sum(dim=(0, 2, 3)).clamp(min=torch.finfo(u.dtype).tiny)
    return (u * rise).sum(dim=(0, 2, 3)) / energy


def _full_scale(charge: Tensor, saturation: float, hardware: Hardware, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Full scale of each head in saturations, and by what its numbers are scaled so that the charge fits."""
    wanted = HEADROOM * charge / saturation
    kind = hardware.array.full_scales
    if kind == "global":
        return torch.ones_like(wanted), scale / wanted.clamp(min=1.0)
    return (wanted.amax().expand_as(wanted) if kind == "layer" else wanted).clone(), scale
