"""`convert(model, hardware)`: the attention of a pretrained model moves onto gain-cell arrays, in place, all or
nothing.

With `static=…`, its linear layers move onto aihwkit's static tiles as well.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from aimc.hardware import Hardware
from aimc.models.arrays import CONFIG_KEY, gain_cell_layers, has_arrays, n_layers_of, write_record
from aimc.models.families import FAMILIES, AttentionLayer, attention_dropout, attention_layers
from aimc.models.hook import IMPLEMENTATION, UNSUPPORTED, attach_cache, detach_cache
from aimc.nn.attention import GainCellAttention
from aimc.static.config import as_static
from aimc.static.layers import StaticPlan, plan, put_in_place, take_out
from aimc.static.tiles import STATIC_KEY, has_static, static_layers

_BEFORE = "_attention_before_arrays"
"""Where a converted model remembers its digital attention implementation (sdpa, eager, …)."""


@dataclass(slots=True, kw_only=True)
class ConversionReport:
    """What a conversion replaced."""

    layers: list[str] = field(default_factory=list)
    """Full names of the attention layers that now run on arrays."""
    skipped: list[str] = field(default_factory=list)
    """Full names of those that stay digital."""
    n_heads: int = 0
    """Query heads a layer."""
    n_kv_heads: int = 0
    """Key and value heads a layer; each has a key and a value array, shared by its group of query heads."""
    head_size: int = 0
    """D, features a token writes to each array."""
    n_scalers: int = 0
    """Trainable numbers added: gain and offset a head, of four scalers a layer, and with a softmax one gain of its
    scores."""
    static: dict[str, str] = field(default_factory=dict)
    """Full names of the layers that now are on static tiles, and what they are on."""
    digital: list[str] = field(default_factory=list)
    """With static tiles: full names of all other modules with weights of their own, which stay digital."""
    notes: list[str] = field(default_factory=list)
    """What the hardware does differently from the digital model."""

    def __str__(self) -> str:
        lines = []
        if self.layers:
            lines.append(
                f"{len(self.layers)} attention layers on gain-cell arrays: {self.n_heads} heads on the arrays of"
                f" {self.n_kv_heads} K/V heads × {self.head_size} features each, {self.n_scalers} scaler parameters"
            )
        lines += [f"  {name}" for name in self.layers] + [f"  {name}: stays digital" for name in self.skipped]
        if self.static:
            lines.append(f"{len(self.static)} layers on static tiles")
            lines += [f"  {name}: {what}" for name, what in self.static.items()]
        if self.digital:
            lines.append(f"{len(self.digital)} modules with weights stay digital")
            lines += [f"  {name}" for name in self.digital]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def convert(
    model: PreTrainedModel, hardware: Hardware | None, *, skip_layers: Collection[int] = (), static: Any = None
) -> ConversionReport:
    """Replace the attention of a decoder by gain-cell arrays, and its linear layers by static tiles, keeping all
    weights.

    Scalers start as published (a = 1; b = rest voltage for k and v, 0 for q and out); see
    :func:`aimc.initialise_scalers`. A layer with a sliding window shorter than the hardware's uses that many slots. A
    plain forward pass keeps no cache unless it is asked for one; `model.generate` writes each token once, to a
    :class:`aimc.GainCellCache`.

    Static tiles are aihwkit's: each chosen `Linear` or `Conv1D` becomes one of its analog layers with the configuration
        given, on as many
    tiles as `rpu_config.mapping` splits it into. Their weights are written as they are until
    :func:`aimc.static.program` writes them with the noise of real devices.

    Args:
        model: a decoder whose attention goes through transformers' attention interface, with or without its
            language-model head; the families in :data:`aimc.models.families.FAMILIES` are tested.
        hardware: what the arrays are; one description for all layers. None: attention is left as it is.
        skip_layers: indices of layers whose attention stays digital.
        static: an aihwkit inference configuration, the name of a preset (`pcm`, `reram`, `noiseless`), or an
            :class:`aimc.static.Static` that says which layers, and whether head and embedding as well. None: no static
            tiles.

    Returns:
        What was replaced.

    Raises:
        TypeError: not a transformers model.
        ValueError: attention that arrays cannot do, layers that do not exist, nothing left to replace, or replaced
            already. The model is then unchanged. :class:`aimc.hardware.ConfigError`: the arrays do not fit a layer's
            sliding window.
        aimc.static.MissingAihwkit: static tiles without aihwkit; the message is the line that installs it.
    """
    if hardware is None:
        if static is None:
            raise ValueError(
                "neither hardware nor static tiles are given, so nothing would be replaced; give hardware, or"
                " static='pcm'"
            )
        if not isinstance(model, PreTrainedModel):
            raise TypeError(
                f"a {type(model).__name__} is no transformers PreTrainedModel, whose layers could be found; pass the"
                " model itself"
            )
    if hasattr(getattr(model, "config", None), STATIC_KEY) and not has_static(model):
        delattr(model.config, STATIC_KEY)  # of a folder with tiles that was read as a digital model
    tiles = None if static is None else plan(model, as_static(static))
    report = ConversionReport() if hardware is None else _convert_attention(model, hardware, skip_layers)
    if tiles is not None:
        put_in_place(model, tiles)
        _report_static(model, tiles, report)
    return report


def _convert_attention(model: PreTrainedModel, hardware: Hardware, skip_layers: Collection[int]) -> ConversionReport:
    if has_arrays(model):
        raise ValueError(
            "this model is converted already; change its arrays with aimc.set_hardware, or go back with aimc.to_digital"
        )
    layers = attention_layers(model)
    _check_keywords(layers)
    skipped = _skipped(layers, skip_layers)
    chosen = [layer for layer in layers if layer not in skipped]
    arrays = [_arrays(layer, hardware, n_layers_of(model)) for layer in chosen]
    setattr(model, _BEFORE, model.config._attn_implementation)
    for layer, array in zip(chosen, arrays, strict=True):
        layer.module.add_module(IMPLEMENTATION, array)
    try:
        model.set_attn_implementation(IMPLEMENTATION)
        write_record(model)
        attach_cache(model)
    except Exception:
        _remove_arrays(model)
        raise
    _use_cache(model, False)
    return ConversionReport(
        layers=[layer.name for layer in chosen],
        skipped=[layer.name for layer in skipped],
        n_heads=chosen[0].n_heads,
        n_kv_heads=chosen[0].n_kv_heads,
        head_size=chosen[0].head_size,
        n_scalers=sum(
            parameter.numel() for array in arrays for parameter in array.parameters() if parameter.requires_grad
        ),
        notes=_notes(model, hardware, chosen),
    )


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
    if not has_arrays(model) and not has_static(model):
        raise ValueError(
            f"this {type(model).__name__} has no gain-cell layer and no static tile; it is digital already"
        )
    if has_static(model):
        take_out(model)
    if has_arrays(model):
        detach_cache(model)
        _remove_arrays(model)
        _use_cache(model, True)
    return model


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


def _skipped(layers: list[AttentionLayer], skip_layers: Collection[int]) -> list[AttentionLayer]:
    unknown = [index for index in skip_layers if index not in range(len(layers))]
    if unknown:
        raise ValueError(
            f"skip_layers={list(skip_layers)}: this model has no layer {', '.join(map(str, unknown))}; its layers are 0"
            f" to {len(layers) - 1}"
        )
    if len(set(skip_layers)) == len(layers):
        raise ValueError(
            f"skip_layers={list(skip_layers)} leaves none of the {len(layers)} layers, so nothing would be replaced;"
            " leave at least one out"
        )
    return [layer for layer in layers if layer.index in set(skip_layers)]


def _arrays(layer: AttentionLayer, hardware: Hardware, n_layers: int) -> GainCellAttention:
    arrays = GainCellAttention(
        layer.n_heads,
        layer.n_kv_heads,
        hardware,
        layer=layer.index,
        sliding_window=layer.sliding_window,
        n_layers=n_layers,
    )
    arrays.train(layer.module.training)
    return arrays.to(next(layer.module.parameters()).device)


def _notes(model: PreTrainedModel, hardware: Hardware, layers: list[AttentionLayer]) -> list[str]:
    notes = []
    family = model.config.model_type
    if family not in FAMILIES:
        notes.append(
            f"{family} is not among the tested families ({', '.join(FAMILIES)}): its layers follow transformers'"
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
    if hardware.activation == "softmax":
        notes.append(
            "the scalers and the scores' gain are not set yet: call aimc.calibrate_ranges(model, reference, batches)"
        )
    return notes


def _report_static(model: PreTrainedModel, tiles: StaticPlan, report: ConversionReport) -> None:
    """Every module with weights of its own: gain cell, static tile or digital."""
    for name, layer in static_layers(model):
        kind = type(layer.tiles[0].rpu_config).__name__
        n_tiles = len(layer.tiles)
        report.static[name] = (
            f"{layer.in_features} × {layer.out_features} on {n_tiles} {'tile' if n_tiles == 1 else 'tiles'} ({kind})"
        )
    analog = [*report.static, *(name for name, _ in gain_cell_layers(model))]
    report.digital = [
        name
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
        and not any(f"{name}.".startswith(f"{part}.") for part in analog)
    ]
    report.notes += tiles.notes


def _remove_arrays(model: PreTrainedModel) -> None:
    """The module tree, the attention implementation and the config of the digital model."""
    for name in [name for name, _ in gain_cell_layers(model)]:
        delattr(model.get_submodule(name.rpartition(".")[0]), IMPLEMENTATION)
    model.set_attn_implementation(getattr(model, _BEFORE))
    delattr(model, _BEFORE)
    if hasattr(model.config, CONFIG_KEY):
        delattr(model.config, CONFIG_KEY)


def _use_cache(model: PreTrainedModel, use: bool) -> None:
    """Whether a plain forward pass keeps a cache; generation always does."""
    model.config.use_cache = use
    if (generation_config := getattr(model, "generation_config", None)) is not None:  # a model without head has none
        generation_config.use_cache = True
