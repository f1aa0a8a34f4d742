"""The typed shape of every Hydra config: unknown keys, wrong types and values outside their range are refused before
anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from aimc.evaluate.measurement import Measurement
from aimc.hardware import Hardware, Noise
from aimc.static.presets import PRESETS

from .errors import RunError
from .fields import check, choice, number, with_fields
from .plausible import require_plausible
from .scratch import FAMILIES, OPTIONAL
from .source import DataConfig
from .stages import RECIPES, ROUTES, STAGES, SWITCHES
from .stages.stage import Stage
from .trainer_schema import TrainerConfig

STAGE_NAMES = (*STAGES, "evaluate", "tokenise", "pipeline")
STARTS = ("statistics", "published")
LOGGERS = ("none", "wandb")


def _run_measurement() -> Measurement:
    return Measurement(chips=4, tokens=65536)


def _real_measurement() -> Measurement:
    return Measurement(context=1024, stride=512, batch_size=2, chips=8, tokens=16384)


def _chip_measurement() -> Measurement:
    return Measurement(chips=3, tokens=16384)


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """The digital model: a pretrained one by name, or an architecture to train from scratch."""

    source: str | None = None
    """Folder, GGUF file or hub name of a pretrained causal language model, or a folder that holds one GGUF file or
    llama2.c checkpoint; null: from scratch, with the sizes below."""
    n_layer: int = number(4, least=1, most=1000)
    """Layers."""
    n_head: int = number(4, least=1, most=10_000)
    """Attention heads a layer."""
    n_embd: int = number(128, least=1, most=2**20)
    """Width; a multiple of n_head."""
    n_positions: int = number(256, least=1, most=2**24)
    """Longest sequence in tokens."""
    dropout: float = number(0.0, least=0, below=1)
    """Dropout of embeddings and residual branches while training from scratch; attention has none (the hardware has
    none)."""
    family: str = choice("gpt2", tuple(FAMILIES))
    """Architecture from scratch: `gpt2`, `h3`, `s4d` (H3 without gates and attention), `stripedhyena`, `mamba` (which
    has no heads, feed-forward network or dropout) or `gsa`, gated slots (no dropout)."""
    n_inner: int | None = number(None, least=1)
    """Width of the feed-forward networks; null: the family's usual multiple of n_embd."""
    n_kv_head: int | None = number(None, least=1)
    """Key and value heads a layer, a divisor of n_head; null: n_head."""
    n_state: int | None = number(None, least=1)
    """States a channel: of `h3` taps of the shift and twice the complex modes, of `s4d` the latter, of `stripedhyena`
    complex modes, of `mamba` real ones; null: as published, 64, 64, 2 and 16."""
    n_slots: int | None = number(None, least=1)
    """Slots of each head of `gsa`; null: 32."""
    attention_layers: list[int] | None = None
    """Of a hybrid: numbers of the layers with attention, from 0, [] for none; null: as published, of `h3` the middle
    one, of `stripedhyena` every second."""

    def __post_init__(self) -> None:
        check(self)
        for name in sorted(set(OPTIONAL) - set(FAMILIES[self.family].uses)):
            if (value := getattr(self, name)) is not None:
                raise RunError(f"{name}={value}: a {self.family} model has no such size; leave model.{name} out")
        if self.n_kv_head is not None and self.n_head % self.n_kv_head:
            raise RunError(f"n_kv_head={self.n_kv_head}: must divide model.n_head={self.n_head}")
        if self.n_embd % self.n_head:
            raise RunError(f"n_embd={self.n_embd}: must be a multiple of model.n_head={self.n_head}")


@dataclass(slots=True, kw_only=True)
@with_fields({switch.name: (bool, switch.default) for switch in SWITCHES.values()})
class StageConfig:
    """Which stage, which of them the pipeline runs (a switch each: `with_control`, …), and settings that shape no
    training."""

    name: str = choice("pipeline", STAGE_NAMES)
    """A stage by name, `pipeline` for all of them, `evaluate` for the report alone, `tokenise` for the text alone."""
    recipe: str = choice("direct", tuple(ROUTES))
    """Route from digital to nonlinear cells: `direct`, nonlinear cells from the start, matched layer by layer; or
    `published`, trained on linear cells first and adapted."""
    start: str = choice("statistics", STARTS)
    """How the linear model's scalers begin: `statistics` of the digital model, or the `published` a = 1."""
    calibration_batches: int = number(8, least=1)
    """Batches over which statistics are measured."""
    calibration_batch_size: int = number(16, least=1)
    """Sequences a calibration batch."""
    fit_sequences: int = number(0, least=0)
    """Training sequences that the stage `match` fits the output projections to at its end, by least squares; two at
    least, of which one is held out; 0: none are fitted."""
    match_own_stream: float = number(0.0, least=0, most=1, hint="a third is usual")
    """Share of the steps of `match`, the last ones, in which the blocks read the model's own hidden states; such a step
    takes twice as long."""
    match_patience: int | None = number(None, least=1)
    """Steps of `match` over which its error has to fall for it to go on; null: all steps are made."""
    adapt_iterations: int = number(10, least=0)
    """Most iterations of statistics matching."""
    adapt_damping: float = number(0.7, above=0, most=1, hint="0.7 is usual")
    """Step of one iteration towards the target statistics, above 0 and at most 1."""
    adapt_tolerance: float = number(0.02, above=0)
    """A head has converged when its deviation in mean and spread, in standard deviations, is below this."""

    def __post_init__(self) -> None:
        check(self)
        if self.fit_sequences == 1:
            raise RunError(
                "stage.fit_sequences=1: one sequence alone leaves none to hold out; give at least two, 16 are usual, or"
                " 0 to fit nothing"
            )

    def wanted(self) -> list[str]:
        """The stages to run, in order: the named one, or those of the pipeline; none of `evaluate`."""
        if self.name != "pipeline":
            return [self.name] if self.name in STAGES else []
        return self.in_pipeline()

    def in_pipeline(self) -> list[str]:
        """The stages that the pipeline runs, in order."""
        route = ROUTES[self.recipe]
        return [
            name
            for name, stage in route.items()
            if not stage.is_alone and (stage.switch is None or getattr(self, stage.switch.name))
        ]

    def stage(self, name: str) -> Stage:
        """A stage as it is on this route; one of the other route as it is there."""
        return ROUTES[self.recipe].get(name) or STAGES[name]


@dataclass(slots=True, kw_only=True)
class StaticConfig:
    """Projections and MLPs on aihwkit's static tiles."""

    preset: str = choice("pcm", tuple(PRESETS))
    """aihwkit configuration by name: `pcm`, `reram` or `noiseless`."""
    head: bool = False
    """True: the language-model head too, parted from the embedding."""
    embeddings: bool = False
    """True: the token embedding too, parted from the head."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(slots=True, kw_only=True)
class LoggerConfig:
    """Where curves go besides the run's own files."""

    name: str = choice("none", LOGGERS)
    """`none`, or `wandb` (offline unless logged in)."""
    project: str = "aimc"
    """Project name there."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(slots=True, kw_only=True)
class RunConfig:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    hardware: Hardware = field(default_factory=Hardware)
    nonideality: Noise = field(default_factory=Noise)
    data: DataConfig = field(default_factory=DataConfig)
    measure: Measurement = field(default_factory=_run_measurement)
    stage: StageConfig = field(default_factory=StageConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    static: StaticConfig = field(default_factory=StaticConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    output_dir: str = "checkpoints/run"
    """Folder that gets one sub-folder a stage."""
    previous: str | None = None
    """Folder of an earlier run whose stages this one may start from, where `output_dir` has none."""
    restart: bool = False
    """True: run every asked stage again, even where a previous run finished it."""
    seed: int = number(0, least=0, most=2**32 - 1)
    """Seed of initial weights, data order and noise."""
    implausible: bool = False
    """True: physical quantities outside the ranges of `train/plausible.py` are meant."""

    def __post_init__(self) -> None:
        check(self)
        require_plausible(self)
        if self.data.streaming and self.trainer.workers:
            raise RunError(
                f"trainer.workers={self.trainer.workers}: streamed text is read by the first process, which"
                " tokenises it ahead with data.workers others; set trainer.workers=0, or data.streaming=false"
            )
        if self.data.streaming and self.model.source is None:
            raise RunError(
                "data.streaming=true: a model from scratch brings no tokenizer, and to train one takes the whole text;"
                " set model.source, or data.streaming=false"
            )
        own_stream, match = self.stage.match_own_stream, self.trainer.recipe("match")
        if own_stream and match.minutes is not None:
            raise RunError(
                f"stage.match_own_stream={own_stream}: it is a share of the steps, and how many there will be in"
                f" trainer.match.minutes={match.minutes} nobody knows; set one of the two to its default (0, null)"
            )
        if own_stream and match.steps and not round(own_stream * match.steps):
            raise RunError(
                f"stage.match_own_stream={own_stream}: of trainer.match.steps={match.steps} that is not one step; set"
                " it to at least one step's share, or to 0"
            )
        if self.stage.start == "published" and self.hardware.features.is_on:
            raise RunError(
                "stage.start=published: it measures nothing, so `hardware.features` would have no centres or scales"
                " to go by; set stage.start=statistics, or leave the features out"
            )
        for name in RECIPES:
            if self.trainer.recipe(name).noise.scale and not self.nonideality.active():
                raise RunError(
                    f"trainer.{name}.noise.scale={self.trainer.recipe(name).noise.scale}: it scales `nonideality`, and"
                    " that is all off, so nothing would be trained against; set nonideality=typical or single fields"
                )

    @property
    def folder(self) -> Path:
        """What one job writes into."""
        return Path(self.output_dir)


def at_checkpoint(checkpoint: str) -> Path:
    """Where results of a checkpoint stand unless told otherwise: in its folder, or beside its file."""
    place = Path(checkpoint)
    return place.parent if place.is_file() else place


@dataclass(slots=True, kw_only=True)
class EvaluationConfig:
    """`python -m train.evaluate`: one checkpoint on one text or on tasks, under non-idealities."""

    checkpoint: str = "???"
    """Folder of a model, digital or converted, or the GGUF file of a digital one."""
    data: DataConfig = field(default_factory=DataConfig)
    nonideality: Noise = field(default_factory=Noise)
    measure: Measurement = field(default_factory=_run_measurement)
    split: str = choice("test", ("train", "valid", "test"))
    """Part of the text: `train`, `valid` or `test`."""
    ablate: bool = False
    """True: also switch each deterministic effect off in turn."""
    with_digital: bool = False
    """True: compare with the digital model: on the text by KL divergence, top-1 agreement and ratio of perplexities, on
    tasks item by item."""
    digital: str | None = None
    """Folder or hub name of that model; null: `digital/` beside the checkpoint, or else the checkpoint's own weights
    off the arrays, where it keeps the softmax."""
    tasks: list[str] = field(default_factory=list)
    """Tasks to score with EleutherAI's lm-evaluation-harness (`pip install 'aimc[eval]'`), under `nonideality` over
    `measure.chips`; empty: none. With `eval_data`, `lambada` means the task of that name on a local file; with null,
    the harness's own task of that name."""
    eval_data: str | None = None
    """Folder of the JSONL files that the tasks on local files read, without a network; null: `tasks` are the harness's
    own, which download theirs."""
    task_limit: int | None = number(None, least=1)
    """Items a task, from its file's start; null: all."""
    num_fewshot: int | None = number(None, least=0)
    """Solved items before each item, drawn from the same file, never the item itself; null: as the task says (those on
    local files: none)."""
    with_perplexity: bool = False
    """True: measure the perplexity on the text (and `ablate`) also when `tasks` are given; without tasks that is what
    is measured."""
    output_dir: str | None = None
    """Folder of results and figure; null: `evaluation/` beside the checkpoint's files."""
    implausible: bool = False
    """True: physical quantities outside the ranges of `train/plausible.py` are meant."""

    def __post_init__(self) -> None:
        check(self)
        require_plausible(self)
        if self.eval_data is not None and not self.tasks:
            raise RunError(
                f"eval_data={self.eval_data}: no tasks to run on it; set tasks=[lambada] or others, or leave"
                " eval_data out"
            )
        if self.digital is not None and not self.with_digital:
            raise RunError(
                f"digital={self.digital}: nothing is compared with it; set with_digital=true, or leave digital out"
            )

    @property
    def folder(self) -> Path:
        """What one job writes into."""
        return Path(self.output_dir or at_checkpoint(self.checkpoint) / "evaluation")


@dataclass(slots=True, kw_only=True)
class RealConfig:
    """`python -m train.real`: a pretrained model on arrays without training, in a table that says what each effect and
    each remedy costs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    hardware: Hardware = field(default_factory=Hardware)
    """Cell, leakage, window and sub-tiles; levels and remedies are the rows' own."""
    text: str | None = None
    """Text file that is measured; null: the documentation inside CPython."""
    calibration_text: str | None = None
    """Text file that ranges are calibrated on, another than `text`; null: another part of that documentation."""
    calibration_tokens: int = number(1024, least=2)
    """Tokens of it."""
    calibration_context: int = number(512, least=2)
    """Tokens a row of them; longer rows cost time by their square."""
    measure: Measurement = field(default_factory=_real_measurement)
    """`chips` and `noise_tokens` are for rows with noise."""
    noise_tokens: int | None = number(None, least=2)
    """Tokens of the text that rows with noise are measured on; null: as many as the others."""
    rows: list[str] = field(default_factory=list)
    """Rows by name, in order; empty: all."""
    restart: bool = False
    """True: measure again what an earlier run with the same settings has measured."""
    save: bool = False
    """True: keep each row's calibrated model, in a folder of its name beside the table, for `train.evaluate`."""
    output_dir: str = "checkpoints/real"
    """Folder of the table."""
    implausible: bool = False
    """True: physical quantities outside the ranges of `train/plausible.py` are meant."""

    def __post_init__(self) -> None:
        check(self)
        require_plausible(self)
        if self.model.source is None:
            raise RunError("model.source is not set: a pretrained model is meant; set model=smollm2 or model.source=…")
        if (self.text is None) != (self.calibration_text is None):
            raise RunError(
                "text and calibration_text go together: settings are chosen on other text than is reported; give both"
            )

    @property
    def folder(self) -> Path:
        """What one job writes into."""
        return Path(self.output_dir)


@dataclass(slots=True, kw_only=True)
class WholeChipConfig:
    """`python -m train.whole_chip`: the budget of error of a chip of gain cells and static tiles, and what time does to
    it."""

    checkpoint: str = "???"
    """Folder of a model with attention on gain cells; with static tiles (the joint stage's) or without, then it is put
    on `static` as it is."""
    digital: str | None = None
    """Folder of the digital model; null: `digital/` beside the checkpoint."""
    untrained: str | None = None
    """Folder of the model before the joint stage, put on the same tiles to show what training buys; null: `finetuned/`
    beside a checkpoint that has static tiles, if there is one."""
    data: DataConfig = field(default_factory=DataConfig)
    nonideality: Noise = field(default_factory=Noise)
    measure: Measurement = field(default_factory=_chip_measurement)
    """A chip is one draw of the gain cells and one programming of the tiles."""
    static: StaticConfig = field(default_factory=StaticConfig)
    since_programming_s: float = number(86400.0, least=0, hint="seconds since programming; a day is 86400")
    """Static clock of the budget, in second; a day unless set. The curve goes from a second to a year."""
    with_curve: bool = True
    """False: only the budget."""
    calibration_batches: int = number(4, least=1)
    """Batches of training text over which input ranges are measured."""
    output_dir: str | None = None
    """Folder of results and figures; null: `whole_chip/` beside the checkpoint's files."""
    implausible: bool = False
    """True: physical quantities outside the ranges of `train/plausible.py` are meant."""

    def __post_init__(self) -> None:
        check(self)
        require_plausible(self)

    @property
    def folder(self) -> Path:
        """What one job writes into."""
        return Path(self.output_dir or Path(self.checkpoint) / "whole_chip")
