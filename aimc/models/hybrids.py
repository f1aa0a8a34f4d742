"""What a hybrid has instead of attention, or beside it."""

from __future__ import annotations

import re

from transformers import PreTrainedModel

from aimc.models.families import STATE_LAYERS, AttentionLayer, without_attention


def state_mixers(model: PreTrainedModel, layers: list[AttentionLayer]) -> list[str]:
    """Full names of what a hybrid has instead of attention or beside it: state spaces, convolutions, linear attention,
    or whole layers that have neither; none of a model of which every layer has attention alone.

    They are found by `layer_idx`, by which transformers' own modules address their part of a cache.
    """
    types = getattr(model.config, "layer_types", None) or []
    if not set(types) & {*STATE_LAYERS, "hybrid"}:
        return []
    attention = {layer.name for layer in layers}
    numbered = [name for name, module in model.named_modules() if isinstance(getattr(module, "layer_idx", None), int)]
    innermost = [name for name in numbered if not any(other.startswith(f"{name}.") for other in numbered)]
    mixers = [name for name in innermost if name not in attention]
    stack = next(re.split(r"\.\d+\.", name, maxsplit=1)[0] for name in attention)
    whole = [f"{stack}.{number}" for number in without_attention(model)]
    return mixers + [name for name in whole if not any(f"{mixer}.".startswith(f"{name}.") for mixer in mixers)]
