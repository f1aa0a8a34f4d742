"""How long the windows are: of training sequences, and of the measurement of a config."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from transformers import PretrainedConfig

from aimc.evaluate.measurement import Measurement

from .errors import RunError

if TYPE_CHECKING:
    from .schema import DataConfig


def context_of(data: DataConfig, model: PretrainedConfig) -> int:
    """Tokens a sequence: `data.context`, or as many as the model has positions.

    Raises:
        RunError: more than that, or neither is known.
    """
    positions = getattr(model, "max_position_embeddings", None)
    context = data.context or positions
    if context is None:
        raise RunError(
            f"data.context=null: a {model.model_type} model names no longest text; set data.context, 256 for example"
        )
    if positions is not None and context > positions:
        raise RunError(
            f"data.context={context}: the model has {positions} positions, so longer sequences cannot be read; set"
            f" data.context={positions} or less"
        )
    return context


def placed(measure: Measurement, data: DataConfig, model: PretrainedConfig) -> Measurement:
    """The measurement with its windows settled for one model: as long as they say, or as training sequences are.

    Raises:
        RunError: windows longer than the model's positions, or a stride that would leave tokens out.
    """
    context = measure.context or context_of(data, model)
    positions = getattr(model, "max_position_embeddings", None)
    if positions is not None and context > positions:
        raise RunError(
            f"measure.context={context}: the model has {positions} positions, so longer windows cannot be read; set"
            f" measure.context={positions} or less"
        )
    if measure.stride is not None and measure.stride > context:
        raise RunError(
            f"measure.stride={measure.stride}: windows of {context} tokens that far apart leave tokens out; set it to"
            f" {context} or less"
        )
    return replace(measure, context=context)
