"""What a run says about the aims."""

from __future__ import annotations

from benchmarks.aims import CPU_AIMS, Aim
from benchmarks.case import CLEAN, COPIED, DIGITAL, EAGER, EARLY, HARD_SIGMOID, MIDDLE, NOISY, SUBJECT
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
from tests.benchmarks.test_benchmarks import result


def test_aims_read_the_results() -> None:
    results = [
        result(FORWARD, time_ratio={DIGITAL: 4.0}),
        result(TRAINING, time_ratio={DIGITAL: 2.0, EAGER: 1 / 16}),
        result(TRAINING, tokens=4096, median_s={SUBJECT: 1.0}),
        result(TRAINING, tokens=8192, median_s={SUBJECT: 2.1}, memory_ratio={DIGITAL: 2.5}),
        result(FORWARD, window=256, time_ratio={DIGITAL: 99.0}),
        result(NO_LEAKAGE, time_ratio={DIGITAL: 1.0}, failed="wrong"),
        result(NOISE_FORWARD, time_ratio={CLEAN: 1.2}),
        result(NOISE_TRAINING, time_ratio={CLEAN: 1.5}),
        result(CHIP_FORWARD, time_ratio={CLEAN: 1.1}),
        result(CHIP_TRAINING, time_ratio={CLEAN: 1.04}),
        result(DEMO, tokens=256, window=256, time_ratio={EAGER: 0.5, DIGITAL: 3.0}),
        result(SOFTMAX_FORWARD, time_ratio={HARD_SIGMOID: 1.3}),
        result(STEP, time_ratio={DIGITAL: 1.2, NOISY: 0.9}, median_s={SUBJECT: 1.2, DIGITAL: 1.0, NOISY: 1.6}),
        result(DECODING, time_ratio={DIGITAL: 1.8, COPIED: 1.2}, held_ratio={DIGITAL: 4.0, COPIED: 4.0}),
        result(BATCH_DECODING, time_ratio={DIGITAL: 1.3}),
        result(
            LONG_TEXT,
            tokens=2560,
            window=128,
            time_ratio={EARLY: 1.2, MIDDLE: 1.0},
            held_ratio={EARLY: 1.0, MIDDLE: 1.0},
        ),
    ]
    expected = [
        *((4.0, "missed"), (2.0, "aim met"), (16.0, "aim met"), (2.1, "met"), (2.5, "missed")),
        *((1.2, "aim met"), (1.5, "missed"), (1.1, "met"), (1.04, "aim met"), (0.5, "met"), (1.3, "met")),
        *((1.2, "met"), (1.6, "missed"), (None, "not measured")),
        *((1.8, "met"), (1.3, "aim met"), (4.0, "missed"), (1.2, "missed"), (1.0, "aim met")),
    ]
    values = [aim.read(results) for aim in CPU_AIMS]
    assert [(value, aim.verdict(value)) for aim, value in zip(CPU_AIMS, values, strict=True)] == expected


def test_bounds_belong_to_the_better_side() -> None:
    faster = Aim(text="", read=lambda _: None, at_least=8.0, aim=15.0, higher_is_better=True)
    assert [faster.verdict(x) for x in (7.9, 8.0, 15.0)] == ["missed", "met", "aim met"]
