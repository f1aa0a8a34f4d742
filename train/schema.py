"""The typed shape of every Hydra config: unknown keys and wrong types are refused before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from aimc.hardware import Hardware, Noise
from aimc.static.presets import PRESETS

from .errors import RunError

STAGES = ("digital", "control", "softmax", "linear", "adapt", "finetune", "joint", "evaluate", "pipeline")
DATA_KINDS = ("embedded", "text", "hub")
STARTS = ("statistics", "published")
PRECISIONS = ("fp32", "bf16", "fp16")
LOGGERS = ("none", "wandb")


def _choice(name: str, got: str, choices: tuple[str, ...]) -> None:
    if got not in choices:
        raise RunError(f"{name}={got}: unknown; use one of {', '.join(choices)}")


def _positive(name: str, got: float) -> None:
    if not (math.isfinite(got) and got > 0):
        raise RunError(f"{name}={got}: must be above zero and finite")


def _at_least(name: str, got: float | None, least: int) -> None:
    if got is not None and got < least:
        raise RunError(f"{name}={got}: must be at least {least}")


def _share(name: str, got: float) -> None:
    if not 0 <= got < 1:
        raise RunError(f"{name}={got}: must be at least 0 and below 1")


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """The digital model: a pretrained one by name, or a GPT-2 architecture to train from scratch."""

    source: str | None = None
    """Folder or hub name of a pretrained causal language model; null: from scratch, with the sizes below."""
    n_layer: int = 4
    """Layers."""
    n_head: int = 4
    """Attention heads a layer."""
    n_embd: int = 128
    """Width; a multiple of n_head."""
    n_positions: int = 256
    """Longest sequence in tokens."""
    dropout: float = 0.0
    """Dropout of embeddings and residual branches while training from scratch; attention has none (the hardware has
    none)."""

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "n_positions"):
            _positive(f"model.{name}", getattr(self, name))
        _share("model.dropout", self.dropout)
        if self.n_embd % self.n_head:
            raise RunError(f"model.n_embd={self.n_embd}: must be a multiple of model.n_head={self.n_head}")


@dataclass(slots=True, kw_only=True)
class DataConfig:
    """Where the text comes from."""

    kind: str = "embedded"
    """`embedded` (CPython's own documentation), `text` (a file or folder) or `hub` (a Hugging Face dataset)."""
    path: str | None = None
    """For `text`: a file, or a folder with train.txt, valid.txt and test.txt."""
    dataset: str | None = None
    """For `hub`: name or local folder."""
    dataset_config: str | None = None
    """For `hub`: the dataset's configuration, where it has several."""
    column: str = "text"
    """For `hub`: the column with the text."""
    vocab_size: int = 2048
    """Entries of the tokenizer that is trained where the model is trained from scratch."""
    context: int | None = None
    """Tokens a training sequence; null: as many as the model has positions."""
    cache_dir: str = "data"
    """Folder of the tokenised text."""

    def __post_init__(self) -> None:
        _choice("data.kind", self.kind, DATA_KINDS)
        _at_least("data.context", self.context, 2)
        if self.vocab_size < 257:
            raise RunError(
                f"data.vocab_size={self.vocab_size}: a byte-level tokenizer needs at least 257 entries (256 bytes and"
                " an end mark)"
            )


@dataclass(slots=True, kw_only=True)
class Budget:
    """How long and how one stage trains; defaults from the published recipe (AdamW 0.9/0.95, decay on matrices,
    cosine)."""

    steps: int = 100
    """Optimiser steps."""
    batch_size: int = 16
    """Sequences a device and micro-step."""
    accumulate: int = 1
    """Micro-steps an optimiser step."""
    learning_rate: float = 6e-4
    """Peak learning rate."""
    min_lr_ratio: float = 0.1
    """Final learning rate as a fraction of the peak."""
    warmup_steps: int = 20
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    """Weight decay, on matrices only."""
    beta1: float = 0.9
    """AdamW's first moment."""
    beta2: float = 0.95
    """AdamW's second moment."""
    max_grad_norm: float = 1.0
    """Gradient clip."""
    distillation: float = 0.0
    """Weight, from 0 to 1, of the divergence from the digital model's predictions in the loss of the analog stages; 0:
    the text alone."""
    log_every: int = 10
    """Steps between log lines."""
    eval_every: int = 50
    """Steps between measurements on the validation text."""
    save_every: int = 200
    """Steps between checkpoints to resume from."""

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "accumulate",
            "learning_rate",
            "max_grad_norm",
            "log_every",
            "eval_every",
            "save_every",
        ):
            _positive(name, getattr(self, name))
        for name in ("steps", "warmup_steps", "weight_decay"):
            _at_least(name, getattr(self, name), 0)
        for name in ("beta1", "beta2"):
            _share(name, getattr(self, name))
        if not 0 <= self.distillation <= 1:
            raise RunError(
                f"distillation={self.distillation}: a weight is from 0 to 1; 0 trains on the text alone, 0.9 mostly on"
                " the digital model's predictions"
            )
        if not 0 <= self.min_lr_ratio <= 1:
            raise RunError(f"min_lr_ratio={self.min_lr_ratio}: must be from 0 to 1; 0.1 is usual")


@dataclass(slots=True, kw_only=True)
class TrainerConfig:
    """Budgets of the stages that train, and what they share. The control stage repeats linear and finetune,
    digitally."""

    digital: Budget = field(default_factory=Budget)
    """Pretraining of the baseline (0 steps: it is only loaded)."""
    linear: Budget = field(default_factory=Budget)
    """Hardware-aware training with the linear cell."""
    finetune: Budget = field(default_factory=Budget)
    """Hardware-aware training with the nonlinear cell."""
    joint: Budget = field(default_factory=Budget)
    """Hardware-aware training with the nonlinear cell and static tiles together."""
    precision: str = "fp32"
    """`fp32`, `bf16` or `fp16` autocast; the emulated hardware computes in float32 in all of them."""
    eval_tokens: int = 32768
    """Validation tokens of the measurements while training."""
    device: str = "auto"
    """`auto` (a GPU where there is one) or `cpu`."""

    def __post_init__(self) -> None:
        _choice("trainer.precision", self.precision, PRECISIONS)
        _positive("trainer.eval_tokens", self.eval_tokens)
        _choice("trainer.device", self.device, ("auto", "cpu"))


@dataclass(slots=True, kw_only=True)
class StageConfig:
    """Which stage, and the settings of those that do not train."""

    name: str = "pipeline"
    """A stage by name, or `pipeline` for all of them."""
    with_control: bool = True
    """False: the pipeline leaves the control out, and its table compares with the digital model as it was (a short
    demonstration)."""
    with_softmax: bool = False
    """True: the pipeline also puts the digital model on arrays with a digital softmax between them, by range
    calibration, untrained."""
    with_static: bool = False
    """True: the pipeline also puts projections and MLPs on static tiles and trains both together (`pip install` line in
    the README)."""
    start: str = "statistics"
    """How the linear model's scalers begin: `statistics` of the digital model, or the `published` a = 1."""
    calibration_batches: int = 8
    """Batches over which statistics are measured."""
    calibration_batch_size: int = 16
    """Sequences a calibration batch."""
    adapt_iterations: int = 10
    """Most iterations of statistics matching."""
    adapt_damping: float = 0.7
    """Step of one iteration towards the target statistics, above 0 and at most 1."""
    adapt_tolerance: float = 0.02
    """A head has converged when its deviation in mean and spread, in standard deviations, is below this."""
    chips: int = 4
    """Chips over which non-idealities are averaged."""
    test_tokens: int | None = 65536
    """Tokens of the held-out measurements; null: all."""
    stride: int | None = None
    """Tokens scored a window; null: half the context."""

    def __post_init__(self) -> None:
        _choice("stage.name", self.name, STAGES)
        _choice("stage.start", self.start, STARTS)
        for name in ("calibration_batches", "calibration_batch_size", "chips", "adapt_tolerance"):
            _positive(f"stage.{name}", getattr(self, name))
        _at_least("stage.adapt_iterations", self.adapt_iterations, 0)
        _at_least("stage.test_tokens", self.test_tokens, 2)
        _at_least("stage.stride", self.stride, 1)
        if not 0 < self.adapt_damping <= 1:
            raise RunError(f"stage.adapt_damping={self.adapt_damping}: must be above 0 and at most 1; 0.7 is usual")


@dataclass(slots=True, kw_only=True)
class StaticConfig:
    """Static tiles of the joint stage: projections and MLPs on aihwkit's tiles."""

    preset: str = "pcm"
    """aihwkit configuration by name: `pcm`, `reram` or `noiseless`."""
    head: bool = False
    """True: the language-model head too, parted from the embedding."""
    embeddings: bool = False
    """True: the token embedding too, parted from the head."""
    programmings: int = 3
    """Programmings, each a chip of its own, over which drifted perplexities are averaged."""

    def __post_init__(self) -> None:
        _choice("static.preset", self.preset, tuple(PRESETS))
        _positive("static.programmings", self.programmings)


@dataclass(slots=True, kw_only=True)
class LoggerConfig:
    """Where curves go besides the run's own files."""

    name: str = "none"
    """`none`, or `wandb` (offline unless logged in)."""
    project: str = "aimc"
    """Project name there."""

    def __post_init__(self) -> None:
        _choice("logger.name", self.name, LOGGERS)


@dataclass(slots=True, kw_only=True)
class RunConfig:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    hardware: Hardware = field(default_factory=Hardware)
    nonideality: Noise = field(default_factory=Noise)
    data: DataConfig = field(default_factory=DataConfig)
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
    seed: int = 0
    """Seed of initial weights, data order and noise."""


@dataclass(slots=True, kw_only=True)
class EvaluationConfig:
    """`python -m train.evaluate`: one checkpoint on one text or on tasks, under non-idealities."""

    checkpoint: str = "???"
    """Folder of a model, digital or converted."""
    data: DataConfig = field(default_factory=DataConfig)
    nonideality: Noise = field(default_factory=Noise)
    chips: int = 4
    """Chips over which non-idealities are averaged."""
    split: str = "test"
    """Part of the text: `train`, `valid` or `test`."""
    tokens: int | None = 65536
    """Tokens of the text, from its start; null: all."""
    stride: int | None = None
    """Tokens scored a window; null: half the context."""
    batch_size: int = 16
    """Windows computed together."""
    ablate: bool = False
    """True: also switch each deterministic effect off in turn."""
    tasks: list[str] = field(default_factory=list)
    """Tasks to score with EleutherAI's lm-evaluation-harness (`pip install 'aimc[eval]'`), under `nonideality` over
    `chips`; empty: none. With `eval_data`, `lambada` means the one on a local file; with null, the
    harness's own task of that name."""
    eval_data: str | None = None
    """Folder of the JSONL files that the tasks on local files read, without a network; null: `tasks` are the
    harness's own, which download theirs."""
    task_limit: int | None = None
    """Items a task, from its file's start; null: all."""
    num_fewshot: int | None = None
    """Solved items before each item, drawn from the same file, never the item itself; null: as the task says (those on
    local files: none)."""
    with_perplexity: bool = False
    """True: measure the perplexity on the text (and `ablate`) also when `tasks` are given; without tasks that is what
    is measured."""
    output_dir: str | None = None
    """Folder of results and figure; null: `evaluation/` beside the checkpoint's files."""

    def __post_init__(self) -> None:
        _choice("split", self.split, ("train", "valid", "test"))
        for name in ("chips", "batch_size"):
            _positive(name, getattr(self, name))
        _at_least("tokens", self.tokens, 2)
        _at_least("stride", self.stride, 1)
        _at_least("task_limit", self.task_limit, 1)
        _at_least("num_fewshot", self.num_fewshot, 0)
        if self.eval_data is not None and not self.tasks:
            raise RunError(
                f"eval_data={self.eval_data}: no tasks to run on it; set tasks=[lambada] or others, or leave"
                " eval_data out"
            )


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
    static: StaticConfig = field(default_factory=StaticConfig)
    since_programming_s: float = 86400.0
    """Static clock of the budget, in second; a day unless set. The curve goes from a second to a year."""
    with_curve: bool = True
    """False: only the budget."""
    tokens: int | None = 16384
    """Tokens of the held-out text, from its start; null: all."""
    stride: int | None = None
    """Tokens scored a window; null: half the context."""
    batch_size: int = 16
    """Windows computed together."""
    calibration_batches: int = 4
    """Batches of training text over which input ranges are measured."""
    output_dir: str | None = None
    """Folder of results and figures; null: `whole_chip/` beside the checkpoint's files."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "calibration_batches"):
            _positive(name, getattr(self, name))
        if not (math.isfinite(self.since_programming_s) and self.since_programming_s >= 0):
            raise RunError(
                f"since_programming_s={self.since_programming_s}: seconds since programming, 0 or more; a day is 86400"
            )
        _at_least("tokens", self.tokens, 2)
        _at_least("stride", self.stride, 1)
