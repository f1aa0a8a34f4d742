"""The model's cases: a GPT-2 of random weights on arrays against the same model digital."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import aimc
from aimc import presets
from aimc.hardware import Hardware, Noise
from benchmarks.case import DIGITAL, NOISY, SUBJECT, CheckError, Point
from benchmarks.operators import same_noise
from benchmarks.settings import Settings
from train.memory import keep_freed_memory

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Error of logits and loss relative to their norm, quantisers off: rounding that has gone through every layer."""
GRADIENT_TOLERANCE = {"float32": 2e-2, "bfloat16": 2e-1}
"""The same of a parameter's gradient. A clip passes a gradient or none, so a rounding difference from the layers before
decides it for a few charges at the clip: the eager model in float32 is itself up to 2e-3 from the eager model in
float64 (8 layers, T=1024). This is for wiring, scalers and missing gradients; the operator's own gradients are held to
1e-5 in its own cases."""
LEARNING_RATE = 1e-4
CHECKED_SHARE = 4
"""A training step is compared with the eager operator on a quarter of its tokens; its operator is compared on all of
them in cases of its own."""
OUTPUTS = ("logits", "loss")
Tensors = dict[str, Tensor]


def training_points(settings: Settings) -> Iterator[partial[Point]]:
    """One step of training."""
    yield partial(_training_point, settings)


def make_models(settings: Settings) -> tuple[GPT2LMHeadModel, GPT2LMHeadModel]:
    """A digital model and its conversion, same weights. Without dropout: the arrays have none, and softmax attention is
    slower with it."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=settings.vocabulary,
        n_positions=settings.model_tokens,
        n_embd=settings.heads * settings.head_size,
        n_layer=settings.layers,
        n_head=settings.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    digital = GPT2LMHeadModel(config)
    digital.loss_type = "ForCausalLM"  # what transformers falls back to, with a warning
    digital.to(device=settings.device, dtype=settings.torch_dtype)  # type: ignore[call-arg, arg-type]  # transformers hides torch's signature
    digital.set_attn_implementation("sdpa")
    analog = copy.deepcopy(digital)
    aimc.convert(analog, settings.hardware(settings.window, backend=settings.backend))
    return analog, digital


def make_tokens(settings: Settings) -> Tensor:
    """Random token numbers `[B, T]`."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(settings.vocabulary, (settings.batch, settings.model_tokens), generator=generator).to(
        settings.device
    )


def model_shapes(settings: Settings) -> dict[str, int]:
    """Sizes of the model, for the record."""
    return {name: getattr(settings, name) for name in ("batch", "heads", "head_size", "layers", "vocabulary")}


def _training_point(settings: Settings) -> Point:
    keep_freed_memory()  # as `python -m train` does, and `train.evaluate`
    analog, digital = (model.train() for model in make_models(settings))
    tokens = make_tokens(settings)
    # fused: the fastest that torch has, so that attention's share of a step is not made small by a slow optimiser
    optimizers = {
        model: torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True) for model in (analog, digital)
    }

    clean = settings.hardware(settings.window, backend=settings.backend)
    noisy = replace(clean, noise=presets.typical())

    def step(model: GPT2LMHeadModel, hardware: Hardware | None = None) -> None:
        if hardware is not None:  # milliseconds: cheaper than a third model with its optimiser's state
            aimc.set_hardware(model, hardware)
        model(tokens, labels=tokens).loss.backward()
        optimizers[model].step()
        optimizers[
            model
        ].zero_grad()  # behind, not ahead: freeing old gradients inside would make the next step look smaller

    def gradients(tokens: Tensor) -> Tensors:
        loss = analog(tokens, labels=tokens).loss
        loss.backward()
        found = {name: p.grad for name, p in analog.named_parameters() if p.grad is not None}
        analog.zero_grad()
        return {"loss": loss.detach(), **found}

    def check() -> str:
        part = partial(gradients, tokens[:, : settings.model_tokens // CHECKED_SHARE])
        found = (compare(analog, settings, part, noise=noise) for noise in (None, presets.typical()))
        return f"{settings.model_tokens // CHECKED_SHARE} tokens, {f'; {NOISY}, '.join(found)}"

    steps = {SUBJECT: partial(step, analog, clean), DIGITAL: partial(step, digital)}
    return _point(settings, check, {**steps, NOISY: partial(step, analog, noisy)}, steps)


def compare(
    analog: GPT2LMHeadModel, settings: Settings, compute: Callable[[], Tensors], *, noise: Noise | None = None
) -> str:
    """What the converted model computes with the subject's backend against what it computes with the eager operator.

    Without quantisers: over many layers one moved step moves others, until nothing can be told from an error. The
        operator's own
    cases look at the quantisers. Under noise, both are given the same.

    Raises:
        CheckError: something is further off than :data:`TOLERANCE` or :data:`GRADIENT_TOLERANCE`, or no number.
    """
    results = []
    for backend in (settings.backend, "eager"):
        aimc.set_hardware(analog, settings.hardware(settings.window, backend=backend, converters=False, noise=noise))
        with same_noise():
            results.append(compute())
    aimc.set_hardware(analog, settings.hardware(settings.window, backend=settings.backend))
    got, expected = results
    if got.keys() != expected.keys():
        raise CheckError(f"gradients of {sorted(got.keys() ^ expected.keys())} exist for one backend only")
    worst, excess, errors = "", 0.0, {}
    for name, x in expected.items():
        errors[name] = ((got[name] - x).float().norm() / x.float().norm().clamp_min(1e-30)).item()
        relative = errors[name] / (TOLERANCE if name in OUTPUTS else GRADIENT_TOLERANCE)[settings.dtype]
        if not relative <= excess:  # a NaN is worst of all
            worst, excess = name, relative
    outputs = [f"{name} within {errors[name]:.1e}" for name in OUTPUTS if name in errors]
    gradients = [error for name, error in errors.items() if name not in OUTPUTS]
    found = "quantisers off: " + ", ".join(
        outputs + ([f"{len(gradients)} gradients within {max(gradients):.1e}"] if gradients else [])
    )
    if not excess <= 1.0:
        raise CheckError(f"{found}; {worst} is {excess:.2g} times as far off as allowed")
    return found


def _point(settings: Settings, check: Callable[[], str], contenders: dict, memory: dict) -> Point:
    shapes = model_shapes(settings)
    return Point(
        tokens=settings.model_tokens,
        window=settings.window,
        shapes=shapes,
        check=check,
        contenders=contenders,
        memory=memory,
    )
