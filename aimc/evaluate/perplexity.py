"""Perplexity of a model on a text, clean and under non-idealities, over chips."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from aimc.hardware import Hardware, Noise
from aimc.models.hook import (
    gain_cell_layers,
    hardware_of,
    is_digital,
    set_chip,
    set_generator,
    set_hardware,
    write_record,
)
from aimc.ops.effects.cell import leaking_cell
from aimc.static.tiles import has_static, seeded


@dataclass(slots=True, kw_only=True)
class Perplexity:
    """A perplexity and how it was measured."""

    mean: float
    """Mean over the chips."""
    std: float
    """Sample standard deviation over the chips; 0 for a single one."""
    per_chip: list[float] = field(default_factory=list)
    """One value a chip."""
    n_tokens: int = 0
    """Tokens that were scored."""
    context: int = 0
    """Tokens a window."""
    stride: int = 0
    """Tokens scored a window: each scored token sees more than `context − stride` tokens before it (fewer at the text's
    start)."""

    def __float__(self) -> float:
        return self.mean

    def __str__(self) -> str:
        spread = f" ± {self.std:.2f} over {len(self.per_chip)} chips" if len(self.per_chip) > 1 else ""
        return f"{self.mean:.2f}{spread}"


def perplexity(
    model: PreTrainedModel,
    tokens: Tensor,
    *,
    chips: int = 1,
    nonideality: Noise | None = None,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> Perplexity:
    """Strided perplexity on a text.

    The model reads windows of `context` tokens that advance by `stride`; of each window, the next tokens of its last
    `stride` positions are scored (of the first window, of all positions). So every token but the first is scored once.

    Args:
        model: digital or converted.
        tokens: int64 `[N]`, the text.
        chips: how many chips, numbered from `seed`; each is a fresh draw of mismatch, write and read noise.
        nonideality: noise of this measurement in place of the hardware's own; None: the hardware's own.
        context: None: as many tokens as the model has positions.
        stride: None: half the context.
        batch_size: windows computed together.
        seed: number of the first chip.

    Raises:
        ValueError: empty or too short text, ids outside the vocabulary, a context longer than the model's positions, or
            non-idealities asked of a digital model.
    """
    context, stride = _window(model, context, stride)
    tokens = _check_tokens(model, tokens)
    if chips < 1:
        raise ValueError(f"chips={chips}: at least one chip is needed; give chips=1 or more")
    analog = not is_digital(model)
    if not analog and nonideality is not None and nonideality.active():
        raise ValueError(
            "a digital model has no analog arrays to be non-ideal; call aimc.convert first, or leave nonideality out"
        )
    noise = nonideality if nonideality is not None else (hardware_of(model).noise if analog else Noise())
    values = []
    with other_noise(model, noise) if analog else _nothing():
        # Without noise every chip is the same chip, so one is enough; static tiles have noise of their own.
        for chip in range(seed, seed + (chips if noise.active() or has_static(model) else 1)):
            set_chip(model, chip)
            set_generator(model, torch.Generator().manual_seed(chip))
            with (
                seeded(chip, "reads") if has_static(model) else _nothing()
            ):  # static tiles draw the noise of a read from torch's own generator
                values.append(math.exp(_mean_nll(model, tokens, context, stride, batch_size)))
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return Perplexity(
        mean=statistics.fmean(values),
        std=std,
        per_chip=values,
        n_tokens=len(tokens) - 1,
        context=context,
        stride=stride,
    )


def nonideality_sweep(
    model: PreTrainedModel,
    tokens: Tensor,
    nonideality: Noise,
    *,
    chips: int = 4,
    on_result: Callable[[str, Perplexity], None] | None = None,
    **kwargs: int | None,
) -> dict[str, Perplexity]:
    """Perplexity clean, under each non-ideality alone, and under all together.

    Args:
        model: converted.
        tokens: int64 `[N]`.
        nonideality: the sizes of the non-idealities.
        chips: chips a row.
        on_result: called after each row.
        kwargs: `context`, `stride`, `batch_size`, `seed` of :func:`perplexity`.

    Returns:
        Rows by name: `clean`, the active fields of `nonideality`, and `all`.
    """
    cases = {"clean": Noise()} | {name: nonideality.only(name) for name in nonideality.active()} | {"all": nonideality}
    rows = {}
    for name, noise in cases.items():
        rows[name] = perplexity(model, tokens, chips=chips, nonideality=noise, **kwargs)  # type: ignore[arg-type]
        if on_result is not None:
            on_result(name, rows[name])
    return rows


def ablation(model: PreTrainedModel, tokens: Tensor, **kwargs: int | None) -> dict[str, Perplexity]:
    """Perplexity of a converted model with one deterministic effect switched off at a time, weights unchanged.

    It says what an effect costs a model that was trained with it, which is less than what it costs in training.

    Returns:
        Rows by name: `all effects`, then each effect that is off.
    """
    original = hardware_of(model)
    rows = {}
    try:
        for name, hardware in _without_each(original).items():
            set_hardware(model, hardware)
            rows[name] = perplexity(model, tokens, nonideality=Noise(), **kwargs)  # type: ignore[arg-type]
    finally:
        set_hardware(model, original)
    return rows


def _without_each(hardware: Hardware) -> dict[str, Hardware]:
    """The hardware, and copies in which one effect is off."""
    wide = max(hardware.array.n_tiles, 1) * hardware.array.rows * 1e3
    of_softmax = ("score_adc", "probability_dac") if hardware.activation == "softmax" else ()
    converters = {name: getattr(hardware, name) for name in ("input_dac", "storage_dac", "readout", *of_softmax)}
    straight = {name: replace(converter, inl=0.0) for name, converter in converters.items()}
    between = {  # the converters that only a digital softmax has
        "score levels": replace(hardware, score_adc=replace(hardware.score_adc, n_levels=None)),
        "probability levels": replace(hardware, probability_dac=replace(hardware.probability_dac, n_levels=None)),
    }
    sometimes = {  # effects that most hardware does not have
        "leak target": replace(hardware, leakage=replace(hardware.leakage, target_v=None)),
        "converter INL": replace(hardware, **straight),
    }
    if leaking_cell(hardware) == hardware.cell:
        del sometimes["leak target"]
    if straight == converters:
        del sometimes["converter INL"]
    return {
        "all effects": hardware,
        "input levels": replace(hardware, input_dac=replace(hardware.input_dac, n_levels=None)),
        "storage levels": replace(hardware, storage_dac=replace(hardware.storage_dac, n_levels=None)),
        "readout levels": replace(hardware, readout=replace(hardware.readout, n_levels=None)),
        # A bow spans the range, so without the range it goes too.
        "readout levels and clip": replace(
            hardware, readout=replace(straight["readout"], n_levels=None, v_min=-wide, v_max=wide)
        ),
        "per-tile readout": replace(hardware, array=replace(hardware.array, rows=hardware.array.window)),
        "leakage": replace(hardware, leakage=replace(hardware.leakage, tau_s=None)),
        **sometimes,
        **(between if hardware.activation == "softmax" else {}),
    }


def _window(model: PreTrainedModel, context: int | None, stride: int | None) -> tuple[int, int]:
    positions = int(getattr(model.config, "max_position_embeddings", None) or 1024)
    context = positions if context is None else context
    if not 2 <= context <= positions:
        raise ValueError(
            f"context={context}: the model has {positions} positions; use a context between 2 and {positions}"
        )
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise ValueError(f"stride={stride}: must be between 1 and context={context}; half the context is usual")
    return context, stride


def _check_tokens(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    tokens = torch.as_tensor(tokens).reshape(-1)
    if tokens.is_floating_point() or len(tokens) < 2:
        raise ValueError(
            f"tokens: {len(tokens)} values of {tokens.dtype}; a perplexity needs at least two integer token ids"
        )
    vocabulary = model.config.vocab_size
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"tokens: ids from {low} to {high}, outside the model's vocabulary of {vocabulary}; tokenise the text with"
            " the model's own tokenizer"
        )
    return tokens


@torch.no_grad()
def _mean_nll(model: PreTrainedModel, tokens: Tensor, context: int, stride: int, batch_size: int) -> float:
    """Mean negative log-likelihood in nat a token."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total, scored = 0.0, 0
    for inputs, targets in _batches(tokens, context, stride, batch_size):
        logits = model(inputs.to(device), use_cache=False).logits.float()
        losses = cross_entropy(logits.transpose(1, 2), targets.to(device), ignore_index=-100, reduction="sum")
        total += float(losses)
        scored += int((targets != -100).sum())
    model.train(was_training)
    return total / scored


def _batches(tokens: Tensor, context: int, stride: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs `[B, C]` and their next tokens `[B, C]`, −100 where a token is not scored here."""
    windows = []
    scored_to, last = 0, len(tokens) - 1  # token 0 has nothing before it
    while scored_to < last:
        end = min(last, context if scored_to == 0 else scored_to + stride)
        start = max(0, end - context)
        targets = tokens[start + 1 : end + 1].clone()
        targets[: max(0, scored_to - start)] = -100
        windows.append((tokens[start:end], targets))
        scored_to = end
    for first in range(0, len(windows), batch_size):
        group = windows[first : first + batch_size]
        for length in sorted({len(inputs) for inputs, _ in group}):  # only a short text has windows of two lengths
            same = [window for window in group if len(window[0]) == length]
            yield torch.stack([inputs for inputs, _ in same]), torch.stack([targets for _, targets in same])


@contextmanager
def other_noise(model: PreTrainedModel, noise: Noise) -> Iterator[None]:
    """Other noise on the same hardware; chip and generator are put back too."""
    layers = [layer for _, layer in gain_cell_layers(model)]
    before = [(layer.hardware, layer.chip_seed, layer.generator) for layer in layers]
    for layer in layers:
        layer.hardware = replace(layer.hardware, noise=noise)
    try:
        yield
    finally:
        for layer, (hardware, chip_seed, generator) in zip(layers, before, strict=True):
            layer.hardware, layer.chip_seed, layer.generator = hardware, chip_seed, generator
        write_record(model)  # choosing chips noted the last one, with this noise


@contextmanager
def _nothing() -> Iterator[None]:
    yield
