"""A tiny model on a bench, and one that answers by formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

import aimc
from aimc.evaluate.measurement import Measurement
from aimc.evaluate.study.bench import Bench
from aimc.evaluate.study.draws import Measured
from aimc.evaluate.study.points import Point
from aimc.evaluate.study.runner import Failure
from aimc.hardware import Hardware, Noise
from tests.conftest import small_arrays, tiny_gpt2


def tiny_bench(seed: int = 0, chips: int = 2, n_tokens: int = 203) -> Bench:
    """Two layers of two heads, a random text."""
    model = tiny_gpt2()
    aimc.convert(model, small_arrays())
    tokens = torch.randint(64, (n_tokens,), generator=torch.Generator().manual_seed(2))
    measurement = Measurement(context=16, stride=16, chips=chips, seed=seed)
    return Bench(model, tokens, measurement, name="tiny", batches=[tokens[:32].view(1, 32)])


@pytest.fixture
def bench() -> Bench:
    return tiny_bench()


@dataclass
class Formula:
    """Stands in for a runner: the loss of a machine by a formula, with a little spread over chips and text."""

    loss: Callable[[Hardware], float]
    own: Hardware
    n_chips: int = 8
    seed: int = 0
    failures: list[Failure] = field(default_factory=list)
    asked: list[Point] = field(default_factory=list)

    @property
    def bench(self) -> Formula:
        return self

    @property
    def chips(self) -> list[int]:
        return list(range(self.n_chips))

    def is_random(self, machine: Hardware) -> bool:
        return bool(machine.noise.active())

    def run(self, points: Sequence[Point], chips: int | None = None) -> list[Measured | None]:
        self.asked += points
        return [self._measured(point) for point in points]

    def _measured(self, point: Point) -> Measured:
        numbers = self.chips if self.is_random(point.hardware) else self.chips[:1]
        text = 0.3 * np.random.default_rng(7).standard_normal(32)
        chip = np.random.default_rng(self.seed).standard_normal(len(numbers))
        excess = self.loss(point.hardware)
        mean = 3.0 + text[None] + excess * (1 + 0.05 * chip[:, None])
        return Measured(chips=numbers, loss=256 * mean, count=np.full(32, 256.0))


@pytest.fixture
def silent() -> Hardware:
    hardware = aimc.presets.gain_cell_cmos()
    hardware.noise = Noise()
    return hardware
