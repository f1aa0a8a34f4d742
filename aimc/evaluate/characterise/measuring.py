"""Time, memory, energy, work and classes of operators of one model at one length.

Everything runs through transformers' `generate`, so that a family needs no code here: the first token closes the
prompt, the others follow one by one. The clock runs on calls that nothing watches; classes and work come from calls of
their own, which are slower. `generate` itself keeps no gradients.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from aimc.evaluate.characterise.budget import Budget, forecast
from aimc.evaluate.characterise.counting import cache_bytes, read_weights, weight_bytes, work_of
from aimc.evaluate.characterise.point import Point
from aimc.evaluate.characterise.profiling import CallProfile, profiled
from aimc.evaluate.characterise.roofline import finish
from aimc.evaluate.energy import Meter, energy_per_call
from aimc.evaluate.quiet import no_gc

WATCHED_TOKENS = 4
"""Tokens generated in calls that are profiled or counted: the prompt's, and three behind it."""
_GAP, _PROFILES, _SHORT_S = 0.02, 3, 2.0
"""Largest share by which classes may miss the clock before a call that is short is profiled again, and how often."""
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "defaultcpuallocator")


@dataclass(slots=True, kw_only=True)
class Known:
    """What shorter lengths of a model took, by length: what the forecasts are made from."""

    prompt_s: dict[int, float] = field(default_factory=dict)
    tokens_s: dict[int, float] = field(default_factory=dict)
    """Of the tokens behind the first, together: each reads the prompt once at most."""
    memory: dict[int, float] = field(default_factory=dict)
    events: dict[int, float] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Bench:
    """What is the same at every point."""

    device: str
    batch: int
    new_tokens: int
    """Tokens behind the first whose time is taken."""
    repetitions: int
    budget: Budget
    meter: Meter | None
    energy_source: str
    seed: int


class _Clock(BaseStreamer):
    """Moments at which tokens come out."""

    def __init__(self, device: str) -> None:
        self.device, self.moments = device, [0.0]

    def put(self, value: Tensor) -> None:
        finish(self.device)
        self.moments.append(time.perf_counter())

    def end(self) -> None:
        pass


def measure_point(model: PreTrainedModel, point: Point, bench: Bench, known: Known) -> None:
    """Fill a point, or say in it why not; what it took is added to `known`.

    Args:
        model: on the device.
        point: with its model and length.
        bench: settings.
        known: of shorter lengths of this model.
    """
    length = point.length
    point.weights_bytes, point.n_read_weights = weight_bytes(model), read_weights(model)
    point.batch, point.energy_source = bench.batch, bench.energy_source
    seconds = forecast(known.prompt_s, length) + forecast(known.tokens_s, length, power=1)
    if refusal := bench.budget.refusal(seconds, forecast(known.memory, length)):
        point.not_run = refusal
        return
    generator = torch.Generator().manual_seed(bench.seed)
    tokens = torch.randint(0, model.config.vocab_size, (bench.batch, length), generator=generator).to(bench.device)
    try:
        _time(model, tokens, point, bench, known)
        _watch(model, tokens, point, bench, known)
        _energy(model, tokens, point, bench)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            raise
        point.not_run = f"not run (ran out of memory: {str(error).splitlines()[0][:80]})"
        if bench.device == "cuda":
            torch.cuda.empty_cache()


def _generate(model: PreTrainedModel, tokens: Tensor, n: int, streamer: BaseStreamer | None = None) -> Any:
    config = GenerationConfig(
        max_new_tokens=n,
        min_new_tokens=n,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
        return_dict_in_generate=True,
    )
    generate: Any = model.generate
    return generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=config, streamer=streamer)


def _time(model: PreTrainedModel, tokens: Tensor, point: Point, bench: Bench, known: Known) -> None:
    """Times of a few runs, and the memory of a device; the first is a warm-up if it is short."""
    firsts, others, started = [], [], time.perf_counter()
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with no_gc():
        for run in range(bench.repetitions + 1):
            clock = _Clock(bench.device)
            finish(bench.device)
            start = time.perf_counter()
            out = _generate(model, tokens, 1 + bench.new_tokens, clock)
            moments = clock.moments[2:]  # a streamer is given the prompt first
            firsts.append(moments[0] - start)
            others.append([b - a for a, b in zip(moments, moments[1:], strict=False)])
            if run == 0:
                point.kv_bytes, point.state_bytes = cache_bytes(out.past_key_values)
            del out
            known.prompt_s[point.length], known.tokens_s[point.length] = moments[0] - start, moments[-1] - moments[0]
            if time.perf_counter() - started + moments[-1] - start > bench.budget.seconds:
                break
    if bench.device == "cuda":
        peak = torch.cuda.max_memory_allocated() - before
        _take_peak(point, peak, known)
    keep = 1 if len(firsts) > 1 else 0
    point.repetitions = len(firsts) - keep
    # Of repetitions the fastest: what else a machine does only adds. Of the tokens of a run the median.
    point.first_token_s = min(firsts[keep:])
    point.token_s = min(statistics.median(run) for run in others[keep:])


def _take_peak(point: Point, peak: int, known: Known) -> None:
    known.memory[point.length] = float(peak)
    point.activations_bytes = max(peak - (point.kv_bytes or 0) - (point.state_bytes or 0), 0)


def _watch(model: PreTrainedModel, tokens: Tensor, point: Point, bench: Bench, known: Known) -> None:
    """Classes of operators, memory of a host, and work."""
    events = forecast(known.events, point.length, power=1)
    if events > bench.budget.max_events:
        what = "classes and work" if bench.device == "cuda" else "classes, work and activations"
        point.left_out = f"{what}: {events:.2g} operators are more than a profile keeps"
        return

    def call() -> None:
        _generate(model, tokens, WATCHED_TOKENS)

    profiles: list[list[CallProfile]] = []
    while len(profiles) < _PROFILES:  # another process may come between the clock and the call
        profiles.append(profiled(model, call, device=bench.device))
        if profiles[-1][0].gap <= _GAP or profiles[-1][0].elapsed_s > _SHORT_S:
            break
    prompt = min((calls[0] for calls in profiles), key=lambda found: found.gap)
    others = [found for calls in profiles for found in calls[1:]]
    known.events[point.length] = prompt.n_events
    point.prompt.take(prompt)
    point.token.take(min(others, key=lambda found: found.gap))
    if bench.device == "cpu":
        _take_peak(point, max(x.peak_bytes for x in (prompt, *others)), known)
    prompt_work, *token_work = work_of(model, call)
    point.prompt.flops, point.prompt.bytes_moved = prompt_work.flops, prompt_work.bytes_moved
    point.token.flops, point.token.bytes_moved = token_work[-1].flops, token_work[-1].bytes_moved


def _energy(model: PreTrainedModel, tokens: Tensor, point: Point, bench: Bench) -> None:
    if bench.meter is None:
        return
    joules: list[float] = []
    for n in (1, 1 + bench.new_tokens):
        call = partial(_generate, model, tokens, n)
        joules.append(energy_per_call(call, bench.meter, seconds=0, device=bench.device))
    point.first_token_j = joules[0]
    point.token_j = max(joules[1] - joules[0], 0.0) / bench.new_tokens / bench.batch
