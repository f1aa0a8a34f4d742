"""`convert(model, *configs)`: parts of a pretrained model move onto analog hardware, in place, all or nothing.

The type of each config says what goes where: :class:`aimc.Hardware` attention onto gain-cell arrays,
:class:`aimc.static.Static` linear layers onto aihwkit's static tiles.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Collection
from typing import Any

from transformers import PreTrainedModel

from aimc.hardware import Hardware
from aimc.models.mark import erase_mark, write_mark
from aimc.models.own_config import take_own_config
from aimc.models.report import ConversionReport
from aimc.models.substrates import Substrate, forget_stale_records, substrate_for, substrates, substrates_under

_NOT_GIVEN = object()


def convert(
    model: PreTrainedModel,
    *configs: object,
    skip_layers: Collection[int] | None = None,
    static: object = _NOT_GIVEN,
) -> ConversionReport:
    """Put parts of a decoder onto analog hardware, keeping all weights.

    With a :class:`aimc.Hardware`, its attention goes onto gain-cell arrays. Scalers start as published (a = 1; b = rest
    voltage for k and v, 0 for q and out); see :func:`aimc.initialise_scalers`. A layer with a sliding window shorter
    than the hardware's uses that many slots. A plain forward pass keeps no cache unless it is asked for one;
    `model.generate` writes each token once, to a :class:`aimc.GainCellCache`. The model keeps a copy of the hardware.

    With a :class:`aimc.static.Static`, its linear layers go onto aihwkit's static tiles: each chosen `Linear` or
    `Conv1D` becomes one of aihwkit's analog layers with the configuration given, on as many tiles as
    `rpu_config.mapping` splits it into. Their weights are written as they are until :func:`aimc.static.program` writes
    them with the noise of real devices.

    Args:
        model: a decoder whose attention goes through transformers' attention interface, with or without its
            language-model head; the families in :data:`aimc.models.families.FAMILIES` are tested.
        configs: one for each kind of hardware, in any order; one description for all layers.
        skip_layers: indices of layers whose attention stays digital; only beside a `Hardware`. None: none.
        static: deprecated; give an `aimc.static.Static` among `configs`.

    Returns:
        What was replaced.

    Raises:
        TypeError: not a transformers model, or a config of another type.
        ValueError: attention that arrays cannot do, layers that do not exist, nothing left to replace, or replaced
            already. The model and its config are then unchanged. :class:`aimc.hardware.ConfigError`: the arrays do not
            fit a layer's sliding window.
        aimc.static.MissingAihwkit: static tiles without aihwkit; the message is the line that installs it.
    """
    if static is not _NOT_GIVEN or None in configs:
        configs = _by_type(configs, static)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"a {type(model).__name__} is no transformers PreTrainedModel, whose layers could be found; pass the model"
            " itself"
        )
    skipped = None if skip_layers is None else frozenset(skip_layers)
    in_order = by_substrate(configs, skip_layers)
    take_own_config(model)
    plans = [substrate.plan(model, config, skipped) for substrate, config in in_order]  # all that can be refused
    forget_stale_records(model)
    report = ConversionReport()
    for plan in plans:
        plan.put(model, report)
    write_mark(model.config)
    return report


def by_substrate(configs: Collection[object], skip_layers: Collection[int] | None) -> list[tuple[Substrate, Any]]:
    """Each config with the kind of hardware that it asks for, in the order in which they are put in place.

    Raises:
        TypeError: a config of another type.
        ValueError: none, two of one type, or layers to skip without a :class:`aimc.Hardware`.
    """
    if not configs:
        raise ValueError(
            "no config is given, so nothing would be replaced; give an aimc.Hardware, an aimc.static.Static, or both"
        )
    chosen = {}
    for config in configs:
        substrate = substrate_for(config)
        if substrate.record_key in chosen:
            raise ValueError(
                f"two configs of type {substrate.config_type.__name__}: a part of a model is on one kind of hardware"
                " only; give one of them"
            )
        chosen[substrate.record_key] = (substrate, config)
    if skip_layers is not None and not any(isinstance(config, Hardware) for config in configs):
        raise ValueError(
            f"skip_layers={list(skip_layers)}: it says which attention stays digital, and no aimc.Hardware is given;"
            " leave it out"
        )
    return [chosen[substrate.record_key] for substrate in substrates() if substrate.record_key in chosen]


def to_digital(model: PreTrainedModel) -> PreTrainedModel:
    """Take the arrays and scalers out again, and linear layers off their tiles, in place: the plain softmax model with
    its weights as they are now.

    Raises:
        TypeError: not a transformers model.
        ValueError: the model is not converted.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"a {type(model).__name__} is no transformers PreTrainedModel; of a peft model pass merge_and_unload() or"
            " get_base_model()"
        )
    under = substrates_under(model)
    if not under and getattr(model.config, "slot_cells", None) is not None:
        raise ValueError(
            f"this {type(model).__name__} has slots in cells, not attention; take them out with"
            " aimc.models.gsa.put_back(model)"
        )
    if not under:
        raise ValueError(
            f"this {type(model).__name__} has no gain-cell layer and no static tile; it is digital already"
        )
    for substrate in reversed(under):
        substrate.take_out(model)
    erase_mark(model.config)
    return model


def _by_type(configs: tuple[object, ...], static: object) -> tuple[object, ...]:
    """The spelling of one version ago, `convert(model, hardware_or_none, static=…)`, as configs by type."""
    warnings.warn(
        "convert(model, hardware, static=…) and a config of None go; give configs by type:"
        " convert(model, hardware, aimc.static.Static(rpu_config='pcm'))",
        DeprecationWarning,
        stacklevel=3,
    )
    kept = tuple(config for config in configs if config is not None)
    if static is _NOT_GIVEN or static is None:
        return kept
    return (*kept, importlib.import_module("aimc.static.config").as_static(static))
