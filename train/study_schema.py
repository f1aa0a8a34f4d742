"""The typed shape of the configs of studies and of their page."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aimc.evaluate.measurement import Measurement
from aimc.evaluate.study.parts import PARTS
from aimc.hardware import Hardware, Noise

from .errors import RunError
from .fields import check, choice, number
from .plausible import require_plausible
from .recipe import Recipe
from .schema import LoggerConfig, at_checkpoint
from .source import DataConfig


def _study_measurement() -> Measurement:
    return Measurement(chips=8, tokens=8192)


def _no_training() -> Recipe:
    return Recipe(steps=0, log_every=1000, eval_every=100000, save_every=100000)


@dataclass(slots=True, kw_only=True)
class StudyConfig:
    """`python -m train.study`: which non-ideality costs how much, how large each may be, which circuit is the cheapest,
    which layers and heads mind; and any grid."""

    checkpoint: str = "???"
    """Folder of a model: on arrays, or digital; that goes onto arrays first, as row `6_bit` of `train.real`."""
    hardware: Hardware = field(default_factory=Hardware)
    """Cell, leakage, window and sub-tiles of a digital checkpoint's arrays; one on arrays brings its own."""
    data: DataConfig = field(default_factory=DataConfig)
    nonideality: Noise = field(default_factory=Noise)
    """The stated sizes; deterministic effects have those of the checkpoint's hardware."""
    measure: Measurement = field(default_factory=_study_measurement)
    """Every machine is measured on the same chips and the same text."""
    split: str = choice("test", ("train", "valid", "test"))
    """Part of the text: `train`, `valid` or `test`."""
    parts: list[str] = field(default_factory=lambda: list(PARTS[:4]))
    """`sensitivity`, `tolerance`, `specification`, `layers`, `grid`; a `grid` that is given is always measured."""
    effects: list[str] = field(default_factory=list)
    """Non-idealities by name, such as `write_v`, `retention`, `storage_levels`; empty: those that the machine has."""
    rises: list[float] = field(default_factory=lambda: [0.01, 0.05, 0.2])
    """Rises of perplexity that tolerances are for."""
    worst: int | None = number(None, least=1)
    """How many non-idealities have their tolerance searched, those that cost most alone; null: all."""
    budget: float = number(0.02, above=0)
    """Rise of perplexity that a circuit, or layers on arrays, may bring."""
    specification: Any = None  # no dict: Hydra would merge what is given into it, or refuse its keys
    """Circuits: values by path into a design, such as `{cell.read_v:[0.6,0.9],hardware.input_dac.n_levels:[8,16]}`;
    null: levels of inputs, storage and readout, capacitance (noise and retention) and read voltage."""
    search: str = choice("grid", ("grid", "optuna"))
    """`grid`: all circuits; `optuna`: `trials` of them, searched by Optuna (pip install optuna)."""
    trials: int = number(40, least=1)
    """Circuits that a search measures."""
    few_chips: int = number(2, least=1)
    """Chips of each circuit, layer and head, and those on which a tolerance is looked for before it is measured."""
    grid: Any = None
    """Values by path into `hardware`, `nonideality` or `digital_layers`, such as
    `{hardware.array.rows:[32,64],nonideality.write_v:[0,0.01]}`; null: none."""
    training: Recipe = field(default_factory=_no_training)
    """Short training of each point of the grid on its machine; `training.steps` 0: none."""
    resamples: int = number(1000, least=10)
    """Of the bootstrap over chips and text."""
    confidence: float = number(0.95, above=0, below=1)
    """Of the intervals."""
    calibration_batches: int = number(1, least=0)
    """Batches of 8 training sequences on which scalers are matched to each circuit; 0: they are not."""
    sample_tokens: int = number(48, least=0)
    """Tokens that the model writes on ideal arrays, on its own and with all effects, side by side; 0: none."""
    workers: int | None = number(None, least=1)
    """Processes that measure; null: one a core."""
    time_limit_s: float = number(43200.0, above=0)
    """A study that would take longer is refused before it starts."""
    cache_dir: str | None = None
    """Folder of measured points, which several studies may share; null: `points/` in the output folder."""
    restart: bool = False
    """True: measure again what is cached."""
    seed: int = number(0, least=0)
    """Of the bootstrap, of training and of a search."""
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    """`wandb`: tables, plots and files as a run of job type `study`, too."""
    output_dir: str | None = None
    """Folder of results; null: `study/` beside the checkpoint's files."""
    implausible: bool = False
    """True: physical quantities outside the ranges of `train/plausible.py` are meant."""

    def __post_init__(self) -> None:
        check(self)
        require_plausible(self)
        for name in ("specification", "grid"):
            axes = getattr(self, name)
            if axes is not None and not (isinstance(axes, dict) and axes):
                raise RunError(f"{name}={axes!r}: values by path are needed, such as {{hardware.array.rows:[32,64]}}")
        for part in self.parts:
            if part not in PARTS:
                raise RunError(f"parts={part}: there is no such part of a study; use {', '.join(PARTS)}")
        if not self.rises or min(self.rises) <= 0:
            raise RunError(f"rises={self.rises}: rises of perplexity above 0 are needed, such as [0.01,0.05,0.2]")
        if self.training.has_teacher:
            raise RunError(
                "training.distillation: a study has no teacher, so nothing could be learnt from it; set it, and"
                " training.hidden_weight, to 0"
            )
        if self.training.steps and not self.grid:
            raise RunError(f"training.steps={self.training.steps}: only points of a grid are trained; set grid={{…}}")

    @property
    def asked(self) -> list[str]:
        """Parts, the grid among them where one is given, in their order."""
        if "grid" in self.parts and not self.grid:
            raise RunError("parts=grid: no grid is given; set grid={hardware.array.rows:[32,64]} or another")
        wanted = [part for part in PARTS if part in self.parts or (part == "grid" and self.grid)]
        if not wanted:
            raise RunError(f"parts=[]: nothing would be measured; give some of {', '.join(PARTS)}, or grid={{…}}")
        return wanted

    @property
    def facts(self) -> dict[str, Any]:
        """Values by name for files and loggers; without the hardware, which is the checkpoint's in most studies."""
        return {name: value for name, value in asdict(self).items() if name != "hardware"}

    @property
    def folder(self) -> Path:
        """What one job writes into."""
        return Path(self.output_dir or at_checkpoint(self.checkpoint) / "study")

    @property
    def points(self) -> Path:
        """Where measured points are kept."""
        return Path(self.cache_dir) if self.cache_dir else self.folder / "points"

    @property
    def processes(self) -> int:
        """How many measure."""
        try:
            cores = len(os.sched_getaffinity(0))
        except AttributeError:  # not on this system
            cores = os.cpu_count() or 1
        return self.workers or cores


@dataclass(slots=True, kw_only=True)
class PageConfig:
    """`python -m train.report_page`: one HTML page of a study, with PNG and CSV beside it."""

    study: str = "???"
    """Folder of a study, or a folder of such folders: a sweep's."""
    run: str | None = None
    """Folder of the run whose stages are shown; null: where the checkpoint of the study lies, if it has results."""
    title: str | None = None
    """Of the page; null: the checkpoint's name."""
    output_dir: str | None = None
    """Folder of the page; null: that of the study."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def folder(self) -> Path:
        """What one job writes into."""
        return Path(self.output_dir or self.study)
