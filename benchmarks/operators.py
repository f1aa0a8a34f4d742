"""The operator's cases: inputs, contenders, and the comparison with the eager operator that a number depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import aimc
from aimc.hardware import Hardware
from aimc.ops.effects.noise import Chip
from benchmarks.case import DIGITAL, EAGER, PRODUCTS, SUBJECT, CheckError, Point
from benchmarks.products import products_of
from benchmarks.settings import Settings

MOVED_FRACTION = 1e-3
"""A rounding difference ahead of a quantiser becomes a whole step: so many outputs may be one step off."""
GRADIENT_TOLERANCE = {"float32": 1e-5, "bfloat16": 2.0**-7}
"""Largest error of a gradient relative to its largest element, quantisers off; two roundings of a result in
bfloat16."""
FLIPPED = 0.1
"""Largest such error of one of :data:`MOVED_FRACTION` of the elements: where a charge lies within rounding of a clip,
its gradient is there in one order of summation and not in another."""
SOFTMAX_ERROR, SOFTMAX_MOVED = 1e-4, 0.05
"""With a softmax a division follows the counters, so there are no steps to count: an output is off if it is by more
than the first, and none may be by more than the second, of the largest output."""
SOFTMAX_GRADIENT_TOLERANCE = 1e-4
"""A softmax behind rounding has gradients of rows that nearly cancel: eager and blocked are up to 8e-6 apart in
float32."""
SEED = 0
"""Of the chip, and of the noise of a check."""
Inputs = tuple[Tensor, Tensor, Tensor]


def gain_cell(inputs: Inputs, hardware: Hardware) -> Tensor:
    """The subject, `[B, H, T, D]`: always the same chip, its fresh noise from torch's global generator."""
    return aimc.gain_cell_attention(*inputs, hardware, chip=_chip(hardware))


def eager(inputs: Inputs, hardware: Hardware) -> Tensor:
    """The reference, `[B, H, T, D]`."""
    return aimc.gain_cell_attention(*inputs, hardware, chip=_chip(hardware))


def _chip(hardware: Hardware) -> Chip | None:
    return Chip(seed=SEED) if hardware.noise.is_frozen_in_chip() else None


@contextmanager
def same_noise() -> Iterator[None]:
    """Fresh noise in the block is the same at every time, and torch's generators are behind it as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        yield


def digital(inputs: Inputs) -> Tensor:
    """Softmax attention over the whole past (it has no window), `[B, H, T, D]`; FlashAttention where torch has it."""
    return F.scaled_dot_product_attention(*inputs, is_causal=True)


def make_inputs(settings: Settings, tokens: int, *, gradient: bool) -> Inputs:
    """Pulse fractions uniform in [0, 1], voltages normal about the rest voltage: charges reach every part of every
    range.

    Args:
        settings: sizes, dtype and device.
        tokens: T.
        gradient: whether q, k and v require one.

    Returns:
        query, key, value, each `[B, H, T, D]`, the same at every call.
    """
    generator = torch.Generator().manual_seed(tokens)
    shape = (settings.batch, settings.heads, tokens, settings.head_size)
    query = torch.rand(shape, generator=generator)
    key, value = (0.45 + 0.2 * torch.randn(shape, generator=generator) for _ in range(2))
    q, k, v = (x.to(settings.device, settings.torch_dtype).requires_grad_(gradient) for x in (query, key, value))
    return q, k, v


def forward_points(settings: Settings) -> Iterator[partial[Point]]:
    """Forward only, over T, and over W at one T."""
    for tokens in settings.tokens:
        for window in settings.windows(tokens):
            yield partial(_forward_point, settings, tokens, window, True)


def no_leakage_points(settings: Settings) -> Iterator[partial[Point]]:
    """Forward only, over T up to W: what leakage costs is seen there."""
    for tokens in settings.tokens:
        if tokens <= settings.window or len(settings.tokens) == 1:
            yield partial(_forward_point, settings, tokens, settings.window, False)


def training_points(settings: Settings) -> Iterator[partial[Point]]:
    """Forward and backward, over T."""
    for tokens in settings.tokens:
        yield partial(_training_point, settings, tokens, settings.window)


def demo_points(settings: Settings) -> Iterator[partial[Point]]:
    """Forward and backward at the shape of the demo's model."""
    batch, heads, tokens, head_size = settings.demo
    yield partial(
        _training_point, replace(settings, batch=batch, heads=heads, head_size=head_size), tokens, window=tokens
    )


def _forward_point(settings: Settings, tokens: int, window: int, leakage: bool) -> Point:
    inputs = make_inputs(settings, tokens, gradient=False)
    hardware = settings.hardware(window, backend=settings.backend, leakage=leakage)
    reference = settings.hardware(window, backend="eager", leakage=leakage)
    contenders: dict[str, Callable[[], object]] = {
        SUBJECT: lambda: gain_cell(inputs, hardware),
        DIGITAL: lambda: digital(inputs),
    }
    if tokens <= settings.eager_tokens:
        contenders[EAGER] = lambda: eager(inputs, reference)
    shapes = shapes_of(settings)
    if settings.backend == "blocked":
        products = products_of(inputs, hardware)
        contenders[PRODUCTS] = products.run
        shapes |= {"products": len(products.calls), "multiply_adds": products.multiply_adds}
    return Point(
        tokens=tokens,
        window=window,
        shapes=shapes,
        check=lambda: check_output(_checked(inputs, settings), hardware, reference),
        contenders={name: torch.no_grad()(call) for name, call in contenders.items()},
    )


def _training_point(settings: Settings, tokens: int, window: int) -> Point:
    inputs = make_inputs(settings, tokens, gradient=True)
    gradient = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(tokens + 1)).to(inputs[0])
    hardware, reference = (settings.hardware(window, backend=backend) for backend in (settings.backend, "eager"))
    contenders = {
        SUBJECT: lambda: torch.autograd.grad(gain_cell(inputs, hardware), inputs, gradient),
        DIGITAL: lambda: torch.autograd.grad(digital(inputs), inputs, gradient),
    }
    if tokens <= settings.eager_tokens:
        contenders[EAGER] = lambda: torch.autograd.grad(eager(inputs, reference), inputs, gradient)

    def check() -> str:
        checked = _checked(inputs, settings)
        smooth = (
            settings.hardware(window, backend=backend, converters=False) for backend in (settings.backend, "eager")
        )
        tolerance = GRADIENT_TOLERANCE[settings.dtype]
        found = check_output(checked, hardware, reference)
        return f"{found}; {check_gradients(checked, gradient[:, : checked[0].shape[1]], *smooth, tolerance=tolerance)}"

    shapes = shapes_of(settings)
    return Point(
        tokens=tokens, window=window, shapes=shapes, check=check, contenders=contenders, memory=dict(contenders)
    )


def check_output(inputs: Inputs, hardware: Hardware, reference: Hardware) -> str:
    """The subject's output against the eager one, quantisers on, both under the same noise.

    Raises:
        CheckError: more than :data:`MOVED_FRACTION` of the elements differ, or one by more than a step (with a softmax:
            than :data:`SOFTMAX_MOVED`), or one is no number.
    """
    assert hardware.readout.n_levels is not None, "a step is what the differences are measured in"
    step = 1.0 / (hardware.readout.n_levels // 2 - 1)
    with torch.no_grad():
        with same_noise():
            got = gain_cell(inputs, hardware).float()
        with same_noise():
            expected = eager(inputs, reference).float()
    difference = (got - expected).abs()
    if not torch.isfinite(difference).all():
        raise CheckError("output is not finite")
    if hardware.has_softmax:
        return _check_softmax(difference / expected.abs().max(), inputs[0].shape[1])
    # sums of steps differ by whole steps or by rounding, nothing between: half a step tells them apart
    moved = (difference > 0.5 * step).float().mean().item()
    largest = difference.max().item() / step
    found = f"output: {moved:.2e} of the elements moved, by at most {largest:.2f} steps, on {inputs[0].shape[1]} heads"
    if moved > MOVED_FRACTION or largest > 1.01:
        raise CheckError(f"{found}; allowed are {MOVED_FRACTION:g} and one step")
    return found


def _check_softmax(error: Tensor, n_heads: int) -> str:
    moved, largest = (error > SOFTMAX_ERROR).float().mean().item(), error.max().item()
    found = f"output: {moved:.2e} of the elements moved, by at most {largest:.1e} of the largest, on {n_heads} heads"
    if moved > MOVED_FRACTION or largest > SOFTMAX_MOVED:
        raise CheckError(f"{found}; allowed are {MOVED_FRACTION:g} and {SOFTMAX_MOVED:g}")
    return found


def check_gradients(
    inputs: Inputs, gradient: Tensor, hardware: Hardware, reference: Hardware, *, tolerance: float
) -> str:
    """dq, dk and dv of the subject against the eager ones, on hardware without quantisers.

    Args:
        inputs: query, key, value, each requiring a gradient.
        gradient: of the output, in its shape.
        hardware: of the subject.
        reference: of the eager operator.
        tolerance: relative to the largest element of each gradient.

    Raises:
        CheckError: more than :data:`MOVED_FRACTION` of the elements are further off than `tolerance`, one by more than
            :data:`FLIPPED`, or one is no number.
    """
    with same_noise():
        got = torch.autograd.grad(gain_cell(inputs, hardware), inputs, gradient)
    with same_noise():
        expected = torch.autograd.grad(eager(inputs, reference), inputs, gradient)
    errors, off = {}, 0.0
    for name, one, other in zip(("dq", "dk", "dv"), got, expected, strict=True):
        error = (one - other).abs() / other.abs().max()
        beyond = ~(error <= tolerance)  # a NaN is not within anything
        errors[name] = error.masked_fill(beyond, 0.0).max().item()
        off += beyond.float().mean().item()
        if not (error[beyond] <= FLIPPED).all():
            off = 1.0
    found = "gradients, quantisers off: " + ", ".join(f"{name} within {error:.1e}" for name, error in errors.items())
    found += f", {off:.1e} of the elements beyond that" if off else ""
    if off > MOVED_FRACTION:
        raise CheckError(
            f"{found}; allowed is {tolerance:.1e}, of all but {MOVED_FRACTION:g}, and {FLIPPED:g} of those"
        )
    return found


def _checked(inputs: Inputs, settings: Settings) -> Inputs:
    """All heads, or the first alone where the eager operator's T×T would not fit."""
    if inputs[0].shape[2] <= settings.eager_tokens:
        return inputs
    q, k, v = (x.detach()[:, :1].contiguous().requires_grad_(x.requires_grad) for x in inputs)
    return q, k, v


def shapes_of(settings: Settings) -> dict[str, int]:
    """Sizes of the operator's inputs, for the record."""
    return {"batch": settings.batch, "heads": settings.heads, "head_size": settings.head_size}
