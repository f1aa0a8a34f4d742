"""The measurement of a config, settled for one model."""

from __future__ import annotations

from dataclasses import replace

from aimc.evaluate.measurement import Measurement

from .errors import RunError


def placed(measure: Measurement, context: int, positions: int | None) -> Measurement:
    """The measurement with its windows settled for one model: a context of its own, or the given one.

    Raises:
        RunError: windows longer than the model's positions, or a stride that would leave tokens out.
    """
    context = measure.context or context
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
