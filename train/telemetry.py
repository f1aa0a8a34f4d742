"""What the hardware does while a model trains, as numbers to log."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from aimc.evaluate.clipping import clip_fractions
from aimc.models.arrays import gain_cell_layers, has_arrays
from aimc.nn.attention import PARTS

from .sharding import whole


def hardware_metrics(model: PreTrainedModel, sample: Tensor) -> dict[str, float]:
    """Scaler values (mean over layers and heads) and clip fractions on a sample of text.

    Args:
        model: digital (gives nothing) or converted.
        sample: token ids `[B, T]`, small: what happens inside the arrays is materialised.
    """
    if not has_arrays(model):
        return {}
    layers = [layer for _, layer in gain_cell_layers(model)]
    metrics = {f"clip/{name}": value for name, value in clip_fractions(model, [sample]).items()}
    for part in PARTS:
        for number in ("scale", "offset"):
            values = [whole(getattr(layer.scaler(part), number).detach()).mean().item() for layer in layers]
            metrics[f"scaler/{part}_{number}"] = sum(values) / len(values)
    return metrics
