"""Decoding token by token: what a token costs on arrays and on a digital cache of the same window, and whether it costs
more later on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GPT2LMHeadModel
from transformers.cache_utils import DynamicSlidingWindowLayer

import aimc
from aimc.evaluate.memory import held_bytes
from aimc.models.arrays import gain_cell_layers, hardware_of
from benchmarks.case import COPIED, DIGITAL, EARLY, MIDDLE, SUBJECT, CheckError, Point
from benchmarks.models import TOLERANCE, make_models, make_tokens, model_shapes
from benchmarks.settings import Settings
from benchmarks.timing import MAX_REPETITIONS

TEXTS = {EARLY: 2, MIDDLE: 8, SUBJECT: 20}
"""Tokens of text, in W, at which the same decoder is looked at."""
N_CHECKED = 8
"""Tokens that are decoded and compared, beside the prompt's last."""
SHORT_SHARE = 8
"""Of several sequences, an eighth of W tokens of each is the prompt that decoding continues and a parallel pass is
compared with; on full arrays, one of them is compared with itself alone."""
QUANTISED_TOLERANCE = 0.1
"""Error of the logits relative to their norm, quantisers on. Rounding moves a step now and then, and that step others
in the layers behind it: 0.02 to 0.03 in GPT-2 small of random weights. Without its input converter, storage converter
or readout that model is off by 0.13 or more."""
_ROOM = MAX_REPETITIONS + 16
"""Tokens that timing and memory may add to a text."""


class Decoder:
    """Greedy decoding: a prompt, then one token at every :meth:`step`; as little as possible besides the model.

    Args:
        model: digital or on arrays.
        cache: empty.
        prompt: token numbers `[B, T]`.
    """

    def __init__(self, model: GPT2LMHeadModel, cache: Cache, prompt: Tensor) -> None:
        self.model, self.cache = model, cache
        self.logits = self._pass(prompt)

    @property
    def token(self) -> Tensor:
        """The likeliest next token, not yet read, `[B, 1]`."""
        return self.logits.argmax(dim=-1)

    def step(self) -> None:
        """Read the token, and find the next one."""
        self.logits = self._pass(self.token)

    @torch.no_grad()
    def _pass(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits  # [B, 1, V]

    def fork(self) -> Decoder:
        """The same model with a copy of the cache, from here on by itself."""
        other = Decoder.__new__(Decoder)
        # not a copy of the hardware: an equal one would be compared field by field at every token
        shared = {id(layer.machine): layer.machine for _, layer in gain_cell_layers(self.model)}
        other.model, other.cache, other.logits = self.model, deepcopy(self.cache, shared), self.logits
        return other

    def times(self, n_sequences: int) -> Decoder:
        """The same text in so many sequences: their prompts would take as many times as long."""
        other = self.fork()
        other.cache.batch_repeat_interleave(n_sequences)
        other.logits = self.logits.expand(n_sequences, -1, -1)
        return other


class Ring(DynamicSlidingWindowLayer):
    """A digital cache of W slots, the newest token written over the oldest, as in the arrays: nothing is copied but
    that token.

    Softmax attention does not ask for the order of its keys. transformers' own layer copies all of them at every token.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """A prompt of W tokens, then single tokens, `[B, H, T, D]`; returns the W newest."""
        n_new, slot = key_states.shape[-2], self.cumulative_length % self.sliding_window
        assert n_new == (self.sliding_window if self.cumulative_length == 0 else 1), "made for this benchmark"
        self.cumulative_length += n_new
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states.contiguous(), value_states.contiguous()
        assert self.keys is not None and self.values is not None
        if n_new == 1:
            self.keys[:, :, slot : slot + 1] = key_states
            self.values[:, :, slot : slot + 1] = value_states
        return self.keys, self.values


def decoding_points(settings: Settings) -> Iterator[partial[Point]]:
    """One token on full arrays, and on those of a model of the shape of the one that ships."""
    yield partial(_decoding_point, settings)
    yield partial(_decoding_point, _shipped(settings))


def batch_points(settings: Settings) -> Iterator[partial[Point]]:
    """One token of each of several sequences, on full arrays of the same models."""
    for shape in (settings, _shipped(settings)):
        yield partial(_batch_point, replace(shape, batch=settings.large_batch))


def long_text_points(settings: Settings) -> Iterator[partial[Point]]:
    """One token of a small model, early and late in a text."""
    small = replace(settings, window=settings.text_window, layers=settings.text_layers, vocabulary=256)
    yield partial(_long_text_point, small)


def _shipped(settings: Settings) -> Settings:
    """The shape of the model that ships."""
    _, heads, window, head_size = settings.demo
    return replace(
        settings,
        heads=heads,
        head_size=head_size,
        window=window,
        layers=settings.demo_layers,
        vocabulary=settings.demo_vocabulary,
    )


def _decoding_point(settings: Settings) -> Point:
    settings = replace(settings, model_tokens=settings.window + _ROOM)
    analog, digital = (model.eval() for model in make_models(settings))
    prompt = make_tokens(settings)[:, : settings.window]
    decoders = {
        SUBJECT: Decoder(analog, aimc.GainCellCache(analog), prompt),
        DIGITAL: Decoder(digital, digital_cache(settings, Ring), prompt),
        COPIED: Decoder(digital, digital_cache(settings, DynamicSlidingWindowLayer), prompt),
    }

    def check() -> str:
        return (
            f"{check_decoding(analog, prompt, N_CHECKED, settings)};"
            f" {check_digital(decoders[DIGITAL], decoders[COPIED], settings)}"
        )

    return _point(settings, settings.window, check, decoders)


def _batch_point(settings: Settings) -> Point:
    settings = replace(settings, model_tokens=settings.window + _ROOM)
    analog, digital = (model.eval() for model in make_models(settings))
    prompt = make_tokens(settings)[:, : settings.window]
    alone = {
        SUBJECT: Decoder(analog, aimc.GainCellCache(analog), prompt[:1]),
        DIGITAL: Decoder(digital, digital_cache(settings, Ring), prompt[:1]),
    }
    decoders = {name: decoder.times(settings.batch) for name, decoder in alone.items()}

    def check() -> str:
        short = prompt[:, : settings.window // SHORT_SHARE]
        found = [check_decoding(analog, short, N_CHECKED, settings)]
        found += [check_together(name, decoders[name], alone[name]) for name in alone]
        return "; ".join(found)

    return _point(settings, settings.window, check, decoders)


def _long_text_point(settings: Settings) -> Point:
    window = settings.window
    settings = replace(settings, model_tokens=max(TEXTS.values()) * window + _ROOM)
    analog, _ = (model.eval() for model in make_models(settings))
    prompt = make_tokens(settings)[:, :window]
    decoder, n_read = Decoder(analog, aimc.GainCellCache(analog), prompt), window
    decoders = {}
    for name, n_windows in TEXTS.items():
        for _ in range(n_read, n_windows * window):  # each decoded by itself: what piles up with every token is there
            decoder.step()
        decoders[name], n_read = decoder.fork(), n_windows * window

    def check() -> str:
        found = check_decoding(analog, prompt, n_read - window, settings, n_quantised=window)
        return f"{found}; {check_held(decoders)}"

    return _point(settings, n_read, check, {SUBJECT: decoders[SUBJECT], **decoders})


def digital_cache(settings: Settings, layer: type[DynamicSlidingWindowLayer]) -> Cache:
    """A cache that holds the last W tokens of every layer."""
    return Cache(layers=[layer(settings.window) for _ in range(settings.layers)])


def check_decoding(
    analog: GPT2LMHeadModel, prompt: Tensor, n_tokens: int, settings: Settings, *, n_quantised: int | None = None
) -> str:
    """Logits of a decoded text against those of one parallel pass over that text; the model keeps its hardware.

    Quantisers off, to rounding; and on, where rounding may move a step, roughly.

    Args:
        analog: the converted model.
        prompt: `[B, T]`.
        n_tokens: how many are decoded.
        n_quantised: how many with quantisers on, where all would take long; None: as many.
        settings: of the case.

    Raises:
        CheckError: they are further apart than :data:`benchmarks.models.TOLERANCE` or :data:`QUANTISED_TOLERANCE`, or
            no numbers.
    """
    found, wrong = [], False
    smooth = settings.hardware(settings.window, backend=settings.backend, converters=False)
    quantised = hardware_of(analog)
    for name, hardware, tolerance, n_decoded in (
        ("off", smooth, TOLERANCE[settings.dtype], n_tokens),
        ("on", quantised, QUANTISED_TOLERANCE, n_quantised or n_tokens),
    ):
        aimc.set_hardware(analog, hardware)
        decoder = Decoder(analog, aimc.GainCellCache(analog), prompt)
        tokens, logits = [prompt], [decoder.logits]
        for _ in range(n_decoded):
            tokens.append(decoder.token)
            decoder.step()
            logits.append(decoder.logits)
        with torch.no_grad():
            expected = analog(torch.cat(tokens, dim=1), use_cache=False, logits_to_keep=n_decoded + 1).logits
        error = _error(torch.cat(logits, dim=1), expected)
        wrong |= not error <= tolerance  # a NaN is not within anything
        found.append(f"{n_decoded}, quantisers {name}: logits within {error:.1e} (allowed {tolerance:g})")
    text = "decoded tokens against one parallel pass: " + ", ".join(found)
    if wrong:
        raise CheckError(text)
    return text


def check_digital(ring: Decoder, copied: Decoder, settings: Settings) -> str:
    """The ring's logits against those with transformers' own cache: the comparison, too, has to compute the right
    thing.

    Raises:
        CheckError: they differ.
    """
    one, other = ring.fork(), copied.fork()
    for _ in range(3):
        one.step()
        other.step()
    error = _error(one.logits, other.logits)
    text = f"digital ring against transformers' cache: logits within {error:.1e}"
    if not error <= TOLERANCE[settings.dtype]:
        raise CheckError(text)
    return text


def check_together(name: str, together: Decoder, alone: Decoder) -> str:
    """Equal sequences decoded together against one of them alone, on a full window; both go on by one token.

    Raises:
        CheckError: they differ by more than rounding that moves a step.
    """
    together.step()
    alone.step()
    error = _error(together.logits, alone.logits.expand_as(together.logits))
    text = f"{name}: {len(together.logits)} sequences against one alone: logits within {error:.1e}"
    if not error <= QUANTISED_TOLERANCE:
        raise CheckError(f"{text} (allowed {QUANTISED_TOLERANCE:g})")
    return text


def check_held(decoders: dict[str, Decoder]) -> str:
    """Whether the cache holds the same number of bytes at every length.

    Raises:
        CheckError: it does not.
    """
    held = {TEXTS[name]: held_bytes(decoder.cache) for name, decoder in decoders.items()}
    text = ", ".join(f"{size} byte at {n}W" for n, size in held.items())
    if len(set(held.values())) > 1:
        raise CheckError(f"the cache grows with the text: {text}")
    return f"the cache holds {text}"


def _error(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).float().norm() / expected.float().norm().clamp_min(1e-30)).item()


def _point(settings: Settings, tokens: int, check: Callable[[], str], decoders: dict[str, Decoder]) -> Point:
    steps = {name: decoder.step for name, decoder in decoders.items()}
    held = {name: partial(held_bytes, decoder.cache) for name, decoder in decoders.items()}
    shapes = model_shapes(settings)
    return Point(
        tokens=tokens, window=settings.window, shapes=shapes, check=check, contenders=steps, memory=steps, held=held
    )
