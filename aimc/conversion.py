"""`convert(model, hardware)`: the attention of a pretrained model moves onto gain-cell arrays, in place, all or nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from aimc.config import Hardware
from aimc.hf import CONFIG_KEY, IMPLEMENTATION, gain_cell_layers, is_digital
from aimc.nn.attention import GainCellAttention

FAMILIES = {"gpt2": "GPT2Attention"}
"""Model type to the class of its self-attention layer; families known to pass plain causal attention to the interface."""


@dataclass(slots=True, kw_only=True)
class ConversionReport:
    """What a conversion replaced."""

    layers: list[str] = field(default_factory=list)
    """Full names of the attention layers that now run on arrays."""
    n_heads: int = 0
    """Heads a layer; each has a key and a value array."""
    head_size: int = 0
    """D, features a token writes to each array."""
    n_scalers: int = 0
    """Trainable numbers added (four scalers a layer, gain and offset a head)."""
    notes: list[str] = field(default_factory=list)
    """What the hardware does differently from the digital model."""

    def __str__(self) -> str:
        lines = [
            f"{len(self.layers)} attention layers on gain-cell arrays: {self.n_heads} heads × {self.head_size} features each, {self.n_scalers} scaler parameters"
        ]
        lines += [f"  {name}" for name in self.layers] + [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def convert(model: PreTrainedModel, hardware: Hardware) -> ConversionReport:
    """Replace the attention of every layer by gain-cell arrays, keeping all weights.

    Scalers start as published (a = 1; b = rest voltage for k and v, 0 for q and out); see :func:`aimc.initialise_scalers`.

    Args:
        model: a GPT-2 of any size.
        hardware: what the arrays are; one description for all layers.

    Returns:
        What was replaced.

    Raises:
        ValueError: nothing that can be replaced, or replaced already. The model is then unchanged.
    """
    if not is_digital(model):
        raise ValueError("this model is converted already; change its arrays with aimc.set_hardware, or go back with aimc.to_digital")
    layers = _attention_layers(model)
    first = layers[0][1]
    n_heads, head_size = int(first.num_heads), int(first.head_dim)  # type: ignore[arg-type]  # modules are typed as holding tensors
    device = next(model.parameters()).device
    arrays = [GainCellAttention(n_heads, n_heads, hardware, layer=i).to(device) for i in range(len(layers))]
    for (_, layer), array in zip(layers, arrays, strict=True):
        array.train(model.training)
        layer.add_module(IMPLEMENTATION, array)
    model.set_attn_implementation(IMPLEMENTATION)
    setattr(model.config, CONFIG_KEY, hardware.to_dict())
    _use_cache(model, False)
    notes = ["generation recomputes the text at every token: a digital key/value cache would bypass the arrays"]
    if dropout := getattr(model.config, "attn_pdrop", 0.0):
        notes.append(f"attention dropout ({dropout}) is not applied: the arrays have none")
    return ConversionReport(
        layers=[name for name, _ in layers],
        n_heads=n_heads,
        head_size=head_size,
        n_scalers=sum(p.numel() for array in arrays for p in array.parameters()),
        notes=notes,
    )


def to_digital(model: PreTrainedModel) -> PreTrainedModel:
    """Take the arrays and scalers out again, in place: the plain softmax model with the weights as they are now.

    Raises:
        ValueError: the model is not converted.
    """
    names = [name for name, _ in gain_cell_layers(model)]
    if not names:
        raise ValueError(f"this {type(model).__name__} has no gain-cell layer; it is digital already")
    model.set_attn_implementation("sdpa")
    for name in names:
        delattr(model.get_submodule(name.rpartition(".")[0]), IMPLEMENTATION)
    delattr(model.config, CONFIG_KEY)
    _use_cache(model, True)
    return model


def _attention_layers(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    family = getattr(model.config, "model_type", type(model).__name__)
    if family not in FAMILIES:
        raise ValueError(
            f"{type(model).__name__} (model_type={family!r}) has no supported attention layer, so nothing would be replaced; supported: {', '.join(FAMILIES)}"
        )
    if getattr(model.config, "add_cross_attention", False):
        raise ValueError("add_cross_attention=True: the arrays attend to the model's own past only; use a decoder without cross-attention")
    layers = [(name, module) for name, module in model.named_modules() if type(module).__name__ == FAMILIES[family]]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} holds no {FAMILIES[family]} layer, so nothing would be replaced; pass the whole language model"
        )
    return layers


def _use_cache(model: PreTrainedModel, use: bool) -> None:
    model.config.use_cache = use
    if model.generation_config is not None:
        model.generation_config.use_cache = use
