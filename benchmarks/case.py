"""What a benchmark case is, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.settings import Settings

SUBJECT = "gain_cell"
"""Name of the contender under test; every other one is a comparison."""
EAGER = "eager"
"""The eager operator: the truth, and what the fast one replaces."""
DIGITAL = "digital"
"""The same without arrays: `scaled_dot_product_attention(is_causal=True)`, or the model that uses it."""
COPIED = "digital, copying"
"""Decoding with transformers' own sliding-window cache, which copies all keys and values at every token."""
EARLY, MIDDLE = "at 2W", "at 8W"
"""The subject itself, earlier in the text."""
CLEAN = "clean"
"""The subject without noise."""
NOISY = "typical noise"
"""The subject under :func:`aimc.presets.typical`, where the subject itself is clean."""
HARD_SIGMOID = "hard sigmoid"
"""The subject with the published activation."""
PRODUCTS = "products alone"
"""The matrix products of the subject and nothing else: the floor of its time."""


class CheckError(Exception):
    """The subject computed something else than the reference; says what and by how much."""


class Skipped(Exception):
    """A point that cannot be measured here, because of what is not installed or not there; says what."""


@dataclass(slots=True, kw_only=True)
class Point:
    """One case at one T and W, ready to run."""

    tokens: int
    """T."""
    window: int
    """W."""
    shapes: dict[str, Any]
    """Further sizes, for the record."""
    check: Callable[[], str]
    """Compares the subject with the reference at these shapes; returns what was found, or raises
    :class:`CheckError`."""
    contenders: Mapping[str, Callable[[], Any]]
    """Name to what is timed; the subject first."""
    steps: Mapping[str, int] = field(default_factory=dict)
    """Name to how many steps one call is, by which its time and energy are divided; 1 where there is none."""
    metered: bool = False
    """Whether energy is measured too, where the machine has a counter."""
    memory: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    """Name to what is measured for its peak memory."""
    held: Mapping[str, Callable[[], int]] = field(default_factory=dict)
    """Name to what tells how many bytes stay in memory between two calls, beside the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the registry."""

    name: str
    measures: str
    """In words, for the one who reads the results."""
    comparisons: tuple[str, ...]
    """What the subject is compared with, by name."""
    points: Callable[[Settings], Iterator[Callable[[], Point]]]
    """The points of a run, each made only when its turn comes: inputs and models are large."""
    leakage: bool = True
    """Whether the cells leak."""
    subject: str = SUBJECT
    """Name of the contender that the others are compared with."""


@dataclass(slots=True, kw_only=True)
class Result:
    """One line of the results file, or, if `failed`, the reason why there is none."""

    case: str
    measures: str
    tokens: int
    window: int
    shapes: dict[str, Any]
    dtype: str
    hardware: str
    leakage: bool
    backend: str
    check: str
    """What the correctness check of this run found."""
    subject: str = SUBJECT
    """The contender that the ratios belong to."""
    repetitions: int | None = None
    median_s: dict[str, float] = field(default_factory=dict)
    """Contender to median time, second."""
    iqr_s: dict[str, float] = field(default_factory=dict)
    """Contender to interquartile range, second."""
    time_ratio: dict[str, float] = field(default_factory=dict)
    """Comparison to median time of the subject ÷ its median time."""
    peak_bytes: dict[str, int] = field(default_factory=dict)
    """Contender to peak memory beyond the inputs, byte."""
    memory_ratio: dict[str, float] = field(default_factory=dict)
    """Comparison to peak memory of the subject ÷ its peak memory."""
    held_bytes: dict[str, int] = field(default_factory=dict)
    """Contender to memory held from one call to the next, byte."""
    held_ratio: dict[str, float] = field(default_factory=dict)
    """Comparison to memory held by the subject ÷ memory it holds."""
    energy_j: dict[str, float] = field(default_factory=dict)
    """Contender to energy, joule, idle power included; none where it was not measured."""
    idle_w: float | None = None
    """Power of the machine while nothing was run, watt; None: not measured."""
    energy_source: str | None = None
    """Which counter gave the energy, or why none did; None: energy does not belong to this case."""
    failed: str | None = None
    """Why nothing was measured; None: it was."""
    skipped: str | None = None
    """What is missing here for this case; None: nothing. Such a result is said and then left out."""
