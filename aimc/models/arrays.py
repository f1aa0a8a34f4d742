"""What a converted model says about its arrays, and how they are changed: hardware, chip, source of noise, record."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from aimc.hardware import Hardware
from aimc.nn.attention import GainCellAttention
from aimc.ops.effects.noise import Chip, brought, draws_of

CONFIG_KEY = "aimc"
"""Where the hardware stands in `config.json`."""


def gain_cell_layers(model: nn.Module) -> Iterator[tuple[str, GainCellAttention]]:
    """Name and module of every converted layer, in order."""
    for name, module in model.named_modules():
        if isinstance(module, GainCellAttention):
            yield name, module


def has_arrays(model: nn.Module) -> bool:
    """Whether some layer of the model runs on arrays."""
    return next(gain_cell_layers(model), None) is not None


def is_digital(model: nn.Module) -> bool:
    """Deprecated: :func:`has_arrays` is its truthful opposite, for a model without arrays may have static tiles."""
    warnings.warn(
        "is_digital(model) calls a model with static tiles digital; use not aimc.models.has_arrays(model)",
        DeprecationWarning,
        stacklevel=2,
    )
    return not has_arrays(model)


def hardware_of(model: PreTrainedModel) -> Hardware:
    """The hardware that a converted model was given: a copy, which changes nothing until :func:`set_hardware` has it.

    `leakage.token_time_s` is None where it was left to the model; see :func:`machine_of`.

    Raises:
        ValueError: the model is not converted.
    """
    for _, layer in gain_cell_layers(model):
        return layer.hardware
    raise _not_converted(model)


def _not_converted(model: nn.Module) -> ValueError:
    return ValueError(f"this {type(model).__name__} has no gain-cell layer; call aimc.convert(model, hardware) first")


def machine_of(model: PreTrainedModel) -> Hardware:
    """:func:`hardware_of`, with the time of a token filled in where it was left to the model: a step in each layer.

    Raises:
        ValueError: the model is not converted.
    """
    hardware = hardware_of(model)
    leakage = hardware.leakage
    if leakage.token_time_s is not None:
        return hardware
    return replace(hardware, leakage=replace(leakage, token_time_s=n_layers_of(model) * leakage.step_latency_s))


def set_hardware(model: PreTrainedModel, hardware: Hardware) -> None:
    """Put a converted model on a copy of other hardware, keeping its weights and scalers; refused, nothing changes.

    What only some hardware has goes when that goes, and starts anew when it comes back, though it was trained or
    calibrated: gains and lines of the softmax activation (`score_gain`, `memory_key`, `memory_value`), thresholds,
    exponents of the gain by position, full scales of heads, levels of comparators, centres and scales of features. Keep
    a copy of the `state_dict` where it is to come back as it was. Features that are to be centred or balanced and never
    were measured are warned of.

    Raises:
        ValueError: the model is not converted. :class:`aimc.hardware.ConfigError`: the arrays do not fit a layer's
            sliding window.
    """
    layers = [layer for _, layer in gain_cell_layers(model)]
    if not layers:
        raise _not_converted(model)
    for layer in layers:
        layer.machine_on(hardware)  # all are checked before one is changed
    before = layers[0].hardware.features
    for layer in layers:
        layer.hardware = hardware
    write_record(model)
    if before != hardware.features and any(x.features is not None and x.features.lacks_vectors for x in layers):
        warnings.warn(
            "features: what centres and balances them was never measured for this model, so they stay as they are until"
            " aimc.initialise_scalers or aimc.calibrate_ranges has measured it",
            stacklevel=2,
        )


def set_chip(model: PreTrainedModel, seed: int | None) -> None:
    """Choose the chip whose mismatch, column errors and spread of retention the model meets; None: chip 0. Slots in
    cells have theirs by :func:`aimc.models.gsa.set_cells`.

    Raises:
        ValueError: no chip has such a number.
    """
    seed = None if seed is None else Chip(seed=operator.index(seed)).seed  # numpy's own could not be saved
    for _, layer in gain_cell_layers(model):
        layer.chip_seed = seed
    if has_arrays(model):
        write_record(model)


def set_generator(model: PreTrainedModel, generator: torch.Generator | None) -> None:
    """Choose the source of write and read noise; None: torch's global generator."""
    for _, layer in gain_cell_layers(model):
        layer.generator = generator


def set_draws(model: PreTrainedModel, seed: int | None, first_sequence: int = 0) -> None:
    """Choose whose write and read noise whole texts meet from now on, whatever the generator: that of the `seed`, for
    sequences that are numbered from `first_sequence` on, see :func:`aimc.ops.effects.noise.draws_of`. Every pass meets
    the same noise until it is chosen anew. `seed` None: each pass its own noise, from the generator.

    Tokens that are read one after the other with a cache meet the generator's noise.
    """
    layers = [layer for _, layer in gain_cell_layers(model)]
    draws = None if seed is None else draws_of(seed, first_sequence)
    for layer in layers:
        if draws is not None:
            draws = brought(draws, layer.query_scaler.scale.device)  # once: most models are on one
        layer.draws = draws


def n_layers_of(model: PreTrainedModel) -> int:
    """Layers of the decoder, on arrays or not: a token takes one step in each."""
    return model.config.get_text_config(decoder=True).num_hidden_layers


def write_record(model: PreTrainedModel) -> None:
    """Note in the model's config what :func:`aimc.from_pretrained` needs to build the same machine again."""
    layers = [layer for _, layer in gain_cell_layers(model)]
    on_arrays = {layer.layer for layer in layers}
    record = {
        **hardware_of(model).to_dict(),
        "chip_seed": layers[0].chip_seed,
        "skip_layers": [i for i in range(n_layers_of(model)) if i not in on_arrays],
    }
    setattr(model.config, CONFIG_KEY, record)
