"""The project's speed and memory aims, and what a run says about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.case import DIGITAL, EAGER, EARLY, SUBJECT, Result
from benchmarks.cases import DECODING, FORWARD, LONG_TEXT, MEMORY, NO_LEAKAGE, STEP, TRAINING

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


def _time(case: str, tokens: int, against: str = DIGITAL) -> Read:
    def read(results: Sequence[Result]) -> float | None:
        found = _find(results, case, tokens)
        return found.time_ratio.get(against) if found else None

    return read


def _speed_up(results: Sequence[Result]) -> float | None:
    ratio = _time(TRAINING, 1024, EAGER)(results)
    return 1.0 / ratio if ratio else None


def _growth(results: Sequence[Result]) -> float | None:
    short, long = (_find(results, TRAINING, tokens) for tokens in (4096, 8192))
    return long.median_s[SUBJECT] / short.median_s[SUBJECT] if short and long else None


def _memory(tokens: int) -> Read:
    def read(results: Sequence[Result]) -> float | None:
        found = _find(results, MEMORY, tokens)
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
    Aim(text="forward, T=1024: time ÷ digital attention", read=_time(FORWARD, 1024), at_least=5.0, aim=3.0),
    Aim(text="forward+backward, T=1024: time ÷ digital attention", read=_time(TRAINING, 1024), at_least=5.0, aim=3.0),
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
        text="training step of GPT-2 small, T=1024: time ÷ digital model",
        read=_time(STEP, 1024),
        at_least=1.6,
        aim=1.25,
    ),
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
    Aim(text="forward+backward, T=32768: peak memory ÷ digital attention", read=_memory(32768), at_least=2.0, aim=1.3),
    *DECODING_AIMS,
)
"""bfloat16 on an H200; peak memory has no number of its own in the aims, and takes that of the CPU."""
