"""The project's speed and memory aims, and what a run says about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.case import CLEAN, DIGITAL, EAGER, EARLY, HARD_SIGMOID, NOISY, SUBJECT, Result
from benchmarks.cases import (
    BATCH_DECODING,
    CHIP_FORWARD,
    CHIP_TRAINING,
    DECODING,
    DEMO,
    FORWARD,
    LONG_TEXT,
    NO_LEAKAGE,
    NOISE_FORWARD,
    NOISE_TRAINING,
    SOFTMAX_FORWARD,
    STEP,
    TRAINING,
)

Read = Callable[[Sequence[Result]], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """One line of the table."""

    text: str
    read: Read
    """The measured number; None: this run has not measured it."""
    at_least: float
    aim: float
    higher_is_better: bool = False

    def verdict(self, value: float | None) -> str:
        """`aim met`, `met`, `missed` or `not measured`."""
        if value is None:
            return "not measured"

        def reaches(bound: float) -> bool:
            return value >= bound if self.higher_is_better else value <= bound

        return "aim met" if reaches(self.aim) else "met" if reaches(self.at_least) else "missed"


def _find(results: Sequence[Result], case: str, tokens: int, window: int = 1024) -> Result | None:
    for result in results:
        if (result.case, result.tokens, result.window) == (case, tokens, window) and not result.failed:
            return result
    return None


def _time(case: str, tokens: int, against: str = DIGITAL, *, window: int = 1024) -> Read:
    def read(results: Sequence[Result]) -> float | None:
        found = _find(results, case, tokens, window)
        return found.time_ratio.get(against) if found else None

    return read


def _speed_up(results: Sequence[Result]) -> float | None:
    ratio = _time(TRAINING, 1024, EAGER)(results)
    return 1.0 / ratio if ratio else None


def _noisy_step(results: Sequence[Result]) -> float | None:
    found = _find(results, STEP, 1024)
    return found.median_s[NOISY] / found.median_s[DIGITAL] if found and NOISY in found.median_s else None


def _cache(results: Sequence[Result]) -> float | None:
    """Of the arrays against float32 keys and values, whatever the digital model's dtype."""
    found = _find(results, DECODING, 1024)
    if found is None or DIGITAL not in found.held_ratio:
        return None
    return found.held_ratio[DIGITAL] * (1.0 if found.dtype == "float32" else 0.5)


def _growth(results: Sequence[Result]) -> float | None:
    short, long = (_find(results, TRAINING, tokens) for tokens in (4096, 8192))
    return long.median_s[SUBJECT] / short.median_s[SUBJECT] if short and long else None


def _memory(tokens: int) -> Read:
    def read(results: Sequence[Result]) -> float | None:
        found = _find(results, TRAINING, tokens)
        return found.memory_ratio.get(DIGITAL) if found else None

    return read


def _late(ratio: Callable[[Result], dict[str, float]]) -> Read:
    """Of a text of 20W against the same text at 2W."""

    def read(results: Sequence[Result]) -> float | None:
        found = [
            result
            for result in results
            if (result.case, result.tokens) == (LONG_TEXT, 20 * result.window) and not result.failed
        ]
        return ratio(found[0]).get(EARLY) if found else None

    return read


DECODING_AIMS = (
    Aim(
        text="decoding with GPT-2 small, W=1024: time of a token ÷ digital model",
        read=_time(DECODING, 1024),
        at_least=2.0,
        aim=1.5,
    ),
    Aim(
        text="the same for 16 sequences at once",
        read=_time(BATCH_DECODING, 1024),
        at_least=2.0,
        aim=1.3,
    ),
    Aim(text="decoding: bytes of the cache ÷ digital float32 cache", read=_cache, at_least=1.0, aim=0.25),
    Aim(
        text="decoding: time of a token at 20W ÷ at 2W",
        read=_late(lambda result: result.time_ratio),
        at_least=1.1,
        aim=1.05,
    ),
    Aim(
        text="decoding: memory held at 20W ÷ at 2W", read=_late(lambda result: result.held_ratio), at_least=1.0, aim=1.0
    ),
)
"""Whatever the device."""
CPU_AIMS = (
    Aim(text="forward, T=1024: time ÷ digital attention", read=_time(FORWARD, 1024), at_least=3.5, aim=2.5),
    Aim(text="forward+backward, T=1024: time ÷ digital attention", read=_time(TRAINING, 1024), at_least=3.0, aim=2.2),
    Aim(
        text="forward+backward, T=1024: eager time ÷ time",
        read=_speed_up,
        at_least=8.0,
        aim=15.0,
        higher_is_better=True,
    ),
    Aim(text="forward+backward: time at T=8192 ÷ at T=4096, W=1024", read=_growth, at_least=2.2, aim=2.0),
    Aim(text="forward+backward, T=8192: peak memory ÷ digital attention", read=_memory(8192), at_least=2.0, aim=1.3),
    Aim(
        text="typical noise, forward, T=1024: time ÷ clean",
        read=_time(NOISE_FORWARD, 1024, CLEAN),
        at_least=1.6,
        aim=1.25,
    ),
    Aim(
        text="typical noise, forward+backward, T=1024: time ÷ clean",
        read=_time(NOISE_TRAINING, 1024, CLEAN),
        at_least=1.4,
        aim=1.15,
    ),
    Aim(
        text="one frozen chip, second call, forward, T=1024: time ÷ clean",
        read=_time(CHIP_FORWARD, 1024, CLEAN),
        at_least=1.15,
        aim=1.05,
    ),
    Aim(
        text="the same, forward+backward",
        read=_time(CHIP_TRAINING, 1024, CLEAN),
        at_least=1.15,
        aim=1.05,
    ),
    Aim(
        text="demo (T=256, H=4, D=32, B=16), forward+backward: time ÷ eager",
        read=_time(DEMO, 256, EAGER, window=256),
        at_least=0.6,
        aim=0.4,
    ),
    Aim(
        text="softmax, forward, T=1024: time ÷ hard sigmoid",
        read=_time(SOFTMAX_FORWARD, 1024, HARD_SIGMOID),
        at_least=1.5,
        aim=1.2,
    ),
    Aim(
        text="training step of GPT-2 small, T=1024: time ÷ digital model",
        read=_time(STEP, 1024),
        at_least=1.25,
        aim=1.15,
    ),
    Aim(text="the same under typical noise", read=_noisy_step, at_least=1.5, aim=1.25),
    Aim(
        text="forward without leakage, T=1024: time ÷ digital attention",
        read=_time(NO_LEAKAGE, 1024),
        at_least=2.5,
        aim=1.5,
    ),
    *DECODING_AIMS,
)
"""float32, B=1, H=12, D=64, W=1024."""
GPU_AIMS = (
    Aim(text="forward+backward, T=1024: time ÷ digital attention", read=_time(TRAINING, 1024), at_least=4.0, aim=2.5),
    Aim(
        text="training step of GPT-2 small, T=1024: time ÷ digital model",
        read=_time(STEP, 1024),
        at_least=1.4,
        aim=1.15,
    ),
    Aim(
        text="typical noise, forward+backward, T=1024: time ÷ clean",
        read=_time(NOISE_TRAINING, 1024, CLEAN),
        at_least=1.3,
        aim=1.1,
    ),
    Aim(text="forward+backward, T=32768: peak memory ÷ digital attention", read=_memory(32768), at_least=2.0, aim=1.3),
    *DECODING_AIMS,
)
"""bfloat16 on an H200; peak memory has no number of its own in the aims, and takes that of the CPU."""
