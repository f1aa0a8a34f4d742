"""Attention on gain-cell arrays, as a substrate: which layers are chosen, how they get there, and how they leave."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from aimc.hardware import Hardware
from aimc.hardware.checks import require
from aimc.models.arrays import CONFIG_KEY, gain_cell_layers, has_arrays, n_layers_of, set_chip, write_record
from aimc.models.families import (
    FAMILIES,
    HYBRIDS,
    AttentionLayer,
    attention_dropout,
    attention_layers,
    without_attention,
)
from aimc.models.hook import IMPLEMENTATION, UNSUPPORTED, attach_cache, detach_cache
from aimc.models.hybrids import state_mixers
from aimc.models.report import ConversionReport
from aimc.models.substrates import register
from aimc.nn.attention import GainCellAttention

_BEFORE = "_attention_before_arrays"
"""Where a converted model remembers its digital attention implementation (sdpa, eager, …)."""


@dataclass(slots=True)
class Record:
    """What `config.json` says of the arrays."""

    hardware: Hardware
    chip_seed: int | None = None
    skip_layers: list[int] = field(default_factory=list)


@dataclass(slots=True)
class ArraysPlan:
    """The arrays of the chosen layers, not yet in the model."""

    hardware: Hardware
    chosen: list[AttentionLayer]
    skipped: list[AttentionLayer]
    arrays: list[GainCellAttention]

    def put(self, model: PreTrainedModel, report: ConversionReport) -> None:
        """Hang each layer's arrays into its attention; after an error the model is as it was."""
        generation = getattr(model, "generation_config", None)
        kept = (model.config.use_cache, getattr(generation, "use_cache", True))
        setattr(model, _BEFORE, (model.config._attn_implementation, *kept))
        for layer, arrays in zip(self.chosen, self.arrays, strict=True):
            layer.module.add_module(IMPLEMENTATION, arrays)
        try:
            model.set_attn_implementation(IMPLEMENTATION)
            write_record(model)
            attach_cache(model)
        except Exception:
            _remove_arrays(model)
            raise
        _use_cache(model, False, True)
        first = self.chosen[0]
        report.layers = [layer.name for layer in self.chosen]
        report.skipped = [layer.name for layer in self.skipped]
        report.n_heads, report.n_kv_heads, report.head_size = first.n_heads, first.n_kv_heads, first.head_size
        report.n_scalers = sum(p.numel() for arrays in self.arrays for p in arrays.parameters() if p.requires_grad)
        report.digital = state_mixers(model, self.chosen + self.skipped)
        report.notes += _notes(model, self.hardware, self.chosen)


class GainCells:
    """The substrate that a :class:`aimc.Hardware` asks for."""

    config_type = Hardware
    record_key = CONFIG_KEY
    child = IMPLEMENTATION

    def is_under(self, model: PreTrainedModel) -> bool:
        """Whether any layer of the model runs on arrays."""
        return has_arrays(model)

    def plan(self, model: PreTrainedModel, config: Hardware, skip_layers: frozenset[int] | None) -> ArraysPlan:
        """Find the layers and make their arrays.

        Raises:
            ValueError: attention that arrays cannot do, layers that do not exist, none left, or converted already.
                :class:`aimc.hardware.ConfigError`: the arrays do not fit a layer's sliding window.
        """
        if has_arrays(model):
            raise ValueError(
                "this model is converted already; change its arrays with aimc.set_hardware, or go back with"
                " aimc.to_digital"
            )
        layers = attention_layers(model)
        _check_keywords(layers)
        skipped = _skipped(layers, skip_layers or frozenset(), n_layers_of(model))
        chosen = [layer for layer in layers if layer not in skipped]
        return ArraysPlan(config, chosen, skipped, [_arrays(layer, config, n_layers_of(model)) for layer in chosen])

    def take_out(self, model: PreTrainedModel) -> None:
        """Arrays and scalers go; the attention is transformers' own again."""
        detach_cache(model)
        _remove_arrays(model)

    def read_record(self, record: Any) -> Record:
        """The hardware, chip and digital layers of a record in `config.json`.

        Raises:
            ValueError: of an unknown version, or damaged.
        """
        fields = dict(record)
        chip_seed, skip_layers = fields.pop("chip_seed", None), fields.pop("skip_layers", [])
        require(
            chip_seed is None or type(chip_seed) is int,
            f"{CONFIG_KEY}.chip_seed",
            chip_seed,
            "a chip is known by a whole number",
            "use another copy, or write null for chip 0",
        )
        require(
            isinstance(skip_layers, list) and all(type(layer) is int for layer in skip_layers),
            f"{CONFIG_KEY}.skip_layers",
            skip_layers,
            "layers that stay digital are listed by their numbers",
            "use another copy",
        )
        return Record(Hardware.from_dict(fields), chip_seed, skip_layers)

    def rebuild(self, model: PreTrainedModel, read: Record) -> None:
        """The same layers on the same hardware."""
        self.plan(model, read.hardware, frozenset(read.skip_layers)).put(model, ConversionReport())

    def finish(self, model: PreTrainedModel, read: Record) -> None:
        """The chip it was on.

        Raises:
            ValueError: a head with a full scale that no reference has.
        """
        for _, layer in gain_cell_layers(model):
            layer.check_full_scales()
        set_chip(model, read.chip_seed)


register(GainCells())


def _check_keywords(layers: list[AttentionLayer]) -> None:
    """Refuse what a layer would tell the attention interface and the arrays cannot do. Layers to be skipped too: there,
    it would be lost as well."""
    for layer in layers:
        for name, what in UNSUPPORTED.items():
            value = layer.keywords.get(name)
            if value is not None:
                shown = f"a tensor of {value.numel()} numbers" if hasattr(value, "numel") else value
                raise ValueError(
                    f"{layer.name} passes {name}={shown} to the attention interface: the arrays cannot do {what}; load"
                    " the model with that setting off in its config, if it has one, or choose another model"
                )


def _skipped(layers: list[AttentionLayer], skip_layers: Collection[int], n_layers: int) -> list[AttentionLayer]:
    """Those of the layers with attention that stay digital; of a hybrid, others may be named too, and are digital."""
    unknown = [index for index in skip_layers if index not in range(n_layers)]
    if unknown:
        raise ValueError(
            f"skip_layers={list(skip_layers)}: this model has no layer {', '.join(map(str, unknown))}; its layers are 0"
            f" to {n_layers - 1}"
        )
    if {layer.index for layer in layers} <= set(skip_layers):
        raise ValueError(
            f"skip_layers={list(skip_layers)} leaves none of the {len(layers)} layers, so nothing would be replaced;"
            " leave at least one out"
        )
    return [layer for layer in layers if layer.index in set(skip_layers)]


def _arrays(layer: AttentionLayer, hardware: Hardware, n_layers: int) -> GainCellAttention:
    device = next(layer.module.parameters()).device
    if device.type == "meta":
        raise ValueError(
            f"{layer.name} has its weights on no device (offloaded, or not loaded), so its arrays would be on none;"
            " load the model with a device_map that keeps its attention on devices, or without one"
        )
    arrays = GainCellAttention(
        layer.n_heads,
        layer.n_kv_heads,
        hardware,
        layer=layer.index,
        sliding_window=layer.sliding_window,
        n_layers=n_layers,
        head_size=layer.head_size,
    )
    arrays.train(layer.module.training)
    return arrays.to(device)


def _notes(model: PreTrainedModel, hardware: Hardware, layers: list[AttentionLayer]) -> list[str]:
    notes = []
    family = model.config.model_type
    if stateful := without_attention(model):
        notes.append(f"layers {', '.join(map(str, stateful))} have no attention and stay digital")
    if family not in FAMILIES | HYBRIDS:
        notes.append(
            f"{family} is not among the tested families ({', '.join(FAMILIES | HYBRIDS)}): its layers follow"
            " transformers'"
            " attention interface in a trial of two tokens; check its perplexity"
        )
    if dropout := attention_dropout(model):
        notes.append(f"attention dropout ({dropout}) is not applied: the arrays have none")
    windows = {
        layer.sliding_window
        for layer in layers
        if layer.sliding_window is not None and layer.sliding_window < hardware.array.window
    }
    for window in sorted(windows):
        indices = [str(layer.index) for layer in layers if layer.sliding_window == window]
        notes.append(
            f"a sliding window of {window} tokens: that many slots of {hardware.array.window} are used, in layers"
            f" {', '.join(indices)}"
        )
    if len({(layer.n_heads, layer.n_kv_heads, layer.head_size) for layer in layers}) > 1:
        notes.append("heads differ from layer to layer; those of the first are given")
    if hardware.has_softmax:
        notes.append(
            "the scalers and the scores' gain are not set yet: call aimc.calibrate_ranges(model, reference, batches)"
        )
    return notes


def _remove_arrays(model: PreTrainedModel) -> None:
    """The module tree, the attention implementation and the config of the digital model."""
    for name in [name for name, _ in gain_cell_layers(model)]:
        delattr(model.get_submodule(name.rpartition(".")[0]), IMPLEMENTATION)
    implementation, *kept = getattr(model, _BEFORE)
    model.set_attn_implementation(implementation)
    _use_cache(model, *kept)
    delattr(model, _BEFORE)
    if hasattr(model.config, CONFIG_KEY):
        delattr(model.config, CONFIG_KEY)


def _use_cache(model: PreTrainedModel, in_passes: bool, in_generation: bool) -> None:
    """Whether a plain forward pass keeps a cache, and whether generation does."""
    model.config.use_cache = in_passes
    if (generation_config := getattr(model, "generation_config", None)) is not None:  # a model without head has none
        generation_config.use_cache = in_generation
