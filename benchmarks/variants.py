"""The operator's cases under noise, on one frozen chip and with a softmax: each against the clean operator with the
published activation, in turn with it, at T = W."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from aimc import presets
from aimc.hardware import Hardware
from benchmarks.case import SUBJECT, Point
from benchmarks.operators import (
    GRADIENT_TOLERANCE,
    SOFTMAX_GRADIENT_TOLERANCE,
    check_gradients,
    check_output,
    gain_cell,
    make_inputs,
    shapes_of,
)
from benchmarks.settings import Settings, smooth

Change = Callable[[Hardware], Hardware]


def typical_noise(hardware: Hardware) -> Hardware:
    """With all of :func:`aimc.presets.typical`; write and read noise are drawn anew in every call."""
    return replace(hardware, noise=presets.typical())


def frozen_chip(hardware: Hardware) -> Hardware:
    """With what of it is frozen in a chip: mismatch of cells, errors of columns. Nothing is drawn from the second call
    on."""
    return replace(hardware, noise=replace(presets.typical(), write_v=0.0, read_qk=0.0, read_av=0.0))


def softmax(hardware: Hardware) -> Hardware:
    """With a digital softmax between the arrays, and the converters that belong to it."""
    return presets.with_softmax(hardware)


def pruned_softmax(hardware: Hardware) -> Hardware:
    """The same where the arrays only select a quarter of the tokens."""
    return replace(presets.with_softmax(hardware), activation="pruned_softmax")


def variant_points(settings: Settings, *, change: Change, against: str, gradient: bool) -> Iterator[partial[Point]]:
    """Forward, or forward and backward, at T = W.

    Args:
        settings: sizes and budget.
        change: makes the subject's hardware of the comparison's.
        against: name of the comparison.
        gradient: whether the backward pass belongs to it.
    """
    yield partial(_point, settings, change, against, gradient)


def _point(settings: Settings, change: Change, against: str, gradient: bool) -> Point:
    tokens = settings.window
    inputs = make_inputs(settings, tokens, gradient=gradient)
    upstream = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(tokens + 1)).to(inputs[0])
    plain = settings.hardware(tokens, backend=settings.backend)
    hardware, reference = (
        change(settings.hardware(tokens, backend=backend)) for backend in (settings.backend, "eager")
    )

    def run(on: Hardware) -> object:
        if gradient:
            return torch.autograd.grad(gain_cell(inputs, on), inputs, upstream)
        with torch.no_grad():
            return gain_cell(inputs, on)

    def check() -> str:
        found = check_output(inputs, hardware, reference)
        if not gradient:
            return found
        tolerance = GRADIENT_TOLERANCE[settings.dtype]
        if hardware.has_softmax:
            tolerance = max(tolerance, SOFTMAX_GRADIENT_TOLERANCE)
        return f"{found}; {check_gradients(inputs, upstream, smooth(hardware), smooth(reference), tolerance=tolerance)}"

    return Point(
        tokens=tokens,
        window=tokens,
        shapes=shapes_of(settings),
        check=check,
        contenders={SUBJECT: partial(run, hardware), against: partial(run, plain)},
    )
