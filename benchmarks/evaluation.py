"""What evaluating a pretrained model of 135 M parameters costs on arrays: one window of text, clean and under noise,
against the same model digital."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import aimc
from aimc import presets
from aimc.models.arrays import hardware_of
from aimc.models.gguf import MissingGguf
from aimc.models.pretrained import load_pretrained, load_tokenizer
from benchmarks.case import DIGITAL, NOISY, SUBJECT, CheckError, Point, Skipped
from benchmarks.machine import REPOSITORY
from benchmarks.models import TOLERANCE
from benchmarks.operators import same_noise
from benchmarks.settings import Settings, smooth

FOLDERS = (REPOSITORY / "data" / "models", REPOSITORY.parent / "shared" / "data" / "models")
"""Where the pretrained model is looked for; `python -m train.fetch smollm2` puts it into the first."""
LOSS_TOLERANCE = 0.1
"""Nat per token that the clean 6-bit arrays may lose against the digital model: 0.012 was found. Without calibrated
ranges it is several."""
CALIBRATION_SHARE, CHECKED_SHARE = 4, 8
"""The ranges are calibrated on a quarter of a window, and the eager operator is compared on an eighth."""


def evaluation_points(settings: Settings) -> Iterator[partial[Point]]:
    """One window of text."""
    yield partial(_point, settings)


def find_pretrained(name: str) -> Path:
    """The folder of the pretrained model.

    Raises:
        Skipped: it is in none of :data:`FOLDERS`.
    """
    for folder in FOLDERS:
        if (folder / name).is_dir():
            return folder / name
    raise Skipped(f"no {name} in {FOLDERS[0]}; `python -m train.fetch smollm2` puts it there")


def _model(settings: Settings, n_tokens: int) -> tuple[PreTrainedModel, Tensor]:
    """The digital model, and token numbers `[1, T]`: Python's own documentation, which is on every machine."""
    if settings.pretrained is None:
        torch.manual_seed(0)
        size, heads = settings.head_size, settings.heads
        config = LlamaConfig(
            vocab_size=settings.vocabulary,
            hidden_size=heads * size,
            intermediate_size=2 * heads * size,
            num_hidden_layers=settings.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
            max_position_embeddings=n_tokens,
        )
        return LlamaForCausalLM(config), torch.randint(settings.vocabulary, (1, n_tokens))
    source = find_pretrained(settings.pretrained)
    try:
        model, tokenizer = load_pretrained(source), load_tokenizer(source)
    except MissingGguf as error:
        raise Skipped(str(error)) from error
    topics = importlib.import_module("pydoc_data.topics").topics  # no type stubs: the module is generated text
    text = "\n\n".join(topic.strip() for topic in topics.values())[: 16 * n_tokens]
    return model, tokenizer(text, return_tensors="pt").input_ids[:, :n_tokens]


def _point(settings: Settings) -> Point:
    n_tokens = settings.evaluated_tokens
    n_calibration = n_tokens // CALIBRATION_SHARE
    digital, tokens = _model(settings, n_calibration + n_tokens)
    digital.to(device=settings.device, dtype=settings.torch_dtype).eval()  # type: ignore[call-arg, arg-type]  # transformers hides torch's signature
    tokens = tokens.to(settings.device)
    analog = copy.deepcopy(digital)
    aimc.convert(analog, presets.for_pretrained(settings.hardware(n_tokens, backend=settings.backend)))
    analog.eval()
    aimc.calibrate_ranges(analog, digital, [tokens[:, :n_calibration]])
    noisy = copy.deepcopy(analog)
    aimc.set_hardware(noisy, replace(hardware_of(analog), noise=presets.typical()))
    window = tokens[:, n_calibration:]

    def evaluate(model: PreTrainedModel) -> None:
        _loss(model, window)

    models = {SUBJECT: analog, DIGITAL: digital, NOISY: noisy}
    return Point(
        tokens=n_tokens,
        window=n_tokens,
        shapes={
            "batch": 1,
            "model": settings.pretrained or "random weights",
            "parameters": sum(p.numel() for p in digital.parameters()),
        },
        check=lambda: _check(models, window, settings),
        contenders={name: partial(evaluate, model) for name, model in models.items()},
    )


@torch.no_grad()
def _loss(model: PreTrainedModel, window: Tensor) -> float:
    return model(window, labels=window, use_cache=False).loss.item()


@torch.no_grad()
def _check(models: dict[str, PreTrainedModel], window: Tensor, settings: Settings) -> str:
    """Logits against those of the eager operator, quantisers off, clean and under the same noise; and the clean
    model's loss against the digital one's.

    Raises:
        CheckError: something is further off than :data:`benchmarks.models.TOLERANCE` or :data:`LOSS_TOLERANCE`, or no
            number.
    """
    found, wrong = [], False
    part = window[:, : window.shape[1] // CHECKED_SHARE]
    for name in (SUBJECT, NOISY):
        model, logits = models[name], []
        hardware = hardware_of(model)
        for backend in (settings.backend, "eager"):
            aimc.set_hardware(model, replace(smooth(hardware), backend=backend))
            with same_noise():
                logits.append(model(part, use_cache=False).logits.float())
        aimc.set_hardware(model, hardware)
        error = ((logits[0] - logits[1]).norm() / logits[1].norm()).item()
        wrong |= not error <= TOLERANCE[settings.dtype]  # a NaN is not within anything
        found.append(f"{'clean' if name == SUBJECT else name} within {error:.1e}")
    analog, digital = (_loss(models[name], window) for name in (SUBJECT, DIGITAL))
    wrong |= not abs(analog - digital) <= LOSS_TOLERANCE
    text = (
        f"logits of {part.shape[1]} tokens against eager, quantisers off: {', '.join(found)};"
        f" loss {analog:.3f} against {digital:.3f} digital"
    )
    if wrong:
        raise CheckError(f"{text}; allowed are {TOLERANCE[settings.dtype]:g} and {LOSS_TOLERANCE:g} nat")
    return text
