"""The rows of `python -m benchmarks.recipes`, the models that they are run on, and each row's command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aimc.hardware.presets import LINEAR_SLOPE
from benchmarks.places import device_of_pipeline

MATCHED = 40
"""Steps of the layer-wise start; the rest is fine-tuning."""
LINEAR_SHARE = 6
"""The published route's linear stage takes one step in so many."""
PUBLISHED_HARDWARE = "hardware=cmos"
SIGNED = ("hardware.input_dac.n_levels=32", "hardware.input_dac.v_min=-1", "hardware.input_dac.coding=sign_magnitude")
NORMALISER = tuple(f"hardware.normaliser.{x}" for x in ("is_on=true", "full_scale=16", "counter.n_levels=256"))
THRESHOLD = ("hardware.threshold=true",)
POSITION_GAIN = ("hardware.position_gain=true",)
FREEDOMS = (
    *(f"hardware.features.{name}=true" for name in ("centre_keys", "centre_values", "balance")),
    *(f"hardware.features.rotation_{name}=hadamard" for name in ("qk", "av")),
)
COARSE_NORMALISER = ("hardware.normaliser.counter.n_levels=32",)
BY_CONTROL = ("trainer.finetune.teacher=control",)
WITHOUT_INPUT_LEVELS = ("hardware.input_dac.n_levels=null",)
WITHOUT_STORAGE_LEVELS = ("hardware.storage_dac.n_levels=null",)
WITHOUT_READOUT_LEVELS = ("hardware.readout.n_levels=null", "hardware.normaliser.counter.n_levels=null")
WITHOUT_LEVELS = (*WITHOUT_INPUT_LEVELS, *WITHOUT_STORAGE_LEVELS, *WITHOUT_READOUT_LEVELS)
WIDE_NORMALISER = ("hardware.normaliser.full_scale=32",)
WIDER_NORMALISER = ("hardware.normaliser.full_scale=64",)
SMALL_COUNTERS = ("hardware.array.saturation_av=10",)
OWN_FULL_SCALES = ("hardware.array.full_scales=head",)
LEAST_DIVISOR = ("hardware.normaliser.least=0.25",)
WITHOUT_LEAKAGE = ("hardware.leakage.tau_s=null",)
LINEAR_CELLS = (f"hardware.cell.coefficients=[0.0,{LINEAR_SLOPE}]",)
ALONE = ("trainer.finetune.distillation=0",)
ATTENTION_ONLY = ("trainer.finetune.learning_rates.rest=0",)
DROPOUT = ("trainer.finetune.dropout=true",)
WRITTEN = ("data=generated", "data.real_kind=text", "data.generated.batch_size=2048")
ADAPTERS = ("trainer.finetune.lora_rank=16",)
OWN_STREAM = ("stage.match_own_stream=0.33",)
HALF_WRITTEN = ("data=generated", *(f"data.generated.{x}" for x in ("share=0.5", "tokens=250000", "batch_size=2048")))
UNDER_NOISE = ("trainer.finetune.noise.scale=1", "trainer.finetune.noise.ramp=0.2")

DIGITAL, CONTROL = "digital", "control"
"""The model that all start from; and the one that others are divided by."""
PUBLISHED_ROUTE = "published route"
"""The row whose tokens others are compared with."""
FULL = "… and a layer-wise start"
"""The row that leave-one-out rows leave something out of."""
NOISY = "… trained under typical noise"
FITTED, FITTED_NOISY = "… with full scales of each head", "… with full scales of each head, under typical noise"
DIVIDED = "… with full scales of each head and a least divisor"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    stages: tuple[str, ...]
    """Of the pipeline, in order."""
    overrides: tuple[str, ...] = ()
    """What is otherwise than in the model's experiment."""
    has_start: bool = True
    """False: all steps are fine-tuning."""
    recipe: str = "direct"
    """The route."""


DIRECT = ("match", "finetune")
BOTH = (*NORMALISER, *SIGNED)
ROWS = {
    DIGITAL: Row((DIGITAL,)),
    CONTROL: Row((CONTROL,)),
    PUBLISHED_ROUTE: Row(("linear", "adapt", "finetune"), recipe="published"),
    "nonlinear from the start": Row(DIRECT, has_start=False),
    "… on the text alone": Row(DIRECT, ALONE, has_start=False),
    "… with a layer-wise start": Row(DIRECT),
    "… with a normaliser": Row(DIRECT, NORMALISER, has_start=False),
    "… with signed queries": Row(DIRECT, SIGNED, has_start=False),
    "… with a threshold": Row(DIRECT, THRESHOLD, has_start=False),
    "… with a gain by position": Row(DIRECT, POSITION_GAIN, has_start=False),
    "normaliser and signed queries": Row(DIRECT, BOTH, has_start=False),
    "… and a threshold": Row(DIRECT, (*BOTH, *THRESHOLD), has_start=False),
    "… and a gain by position": Row(DIRECT, (*BOTH, *POSITION_GAIN), has_start=False),
    "… and freedoms of the features": Row(DIRECT, (*BOTH, *FREEDOMS), has_start=False),
    "… and 32 levels in the normaliser": Row(DIRECT, (*BOTH, *COARSE_NORMALISER), has_start=False),
    "… and the control as teacher": Row(DIRECT, (*BOTH, *BY_CONTROL), has_start=False),
    FULL: Row(DIRECT, BOTH),
    "… all but the normaliser": Row(DIRECT, SIGNED),
    "… all but signed queries": Row(DIRECT, NORMALISER),
    "… all but distillation": Row(DIRECT, (*BOTH, *ALONE)),
    "… all but training beyond attention": Row(DIRECT, (*BOTH, *ATTENTION_ONLY)),
    "… with the model's dropout": Row(DIRECT, (*BOTH, *DROPOUT)),
    "… on ideal arrays": Row(DIRECT, (*BOTH, *WITHOUT_LEVELS, *WITHOUT_LEAKAGE, *LINEAR_CELLS)),
    "… without levels": Row(DIRECT, (*BOTH, *WITHOUT_LEVELS)),
    "… without input levels": Row(DIRECT, (*BOTH, *WITHOUT_INPUT_LEVELS)),
    "… without storage levels": Row(DIRECT, (*BOTH, *WITHOUT_STORAGE_LEVELS)),
    "… without readout levels": Row(DIRECT, (*BOTH, *WITHOUT_READOUT_LEVELS)),
    "… with a quarter of the counters' full scale": Row(DIRECT, (*BOTH, *SMALL_COUNTERS)),
    "… with a normaliser of 32 pulses": Row(DIRECT, (*BOTH, *WIDE_NORMALISER)),
    "… with a normaliser of 64 pulses": Row(DIRECT, (*BOTH, *WIDER_NORMALISER)),
    "… without leakage": Row(DIRECT, (*BOTH, *WITHOUT_LEAKAGE)),
    "… on linear cells": Row(DIRECT, (*BOTH, *LINEAR_CELLS)),
    "… by low-rank adapters": Row(DIRECT, (*BOTH, *ADAPTERS)),
    "… matched on its own stream for a third": Row(DIRECT, (*BOTH, *OWN_STREAM)),
    "… on text of which it wrote half": Row(DIRECT, (*BOTH, *HALF_WRITTEN)),
    NOISY: Row(DIRECT, (*BOTH, *UNDER_NOISE)),
    FITTED: Row(DIRECT, (*BOTH, *OWN_FULL_SCALES)),
    FITTED_NOISY: Row(DIRECT, (*BOTH, *OWN_FULL_SCALES, *UNDER_NOISE)),
    DIVIDED: Row(DIRECT, (*BOTH, *OWN_FULL_SCALES, *LEAST_DIVISOR)),
}
"""Ingredients added one at a time, then left out one at a time of the row :data:`FULL` (all but the layer-wise start is
the row with normaliser and signed queries), then the hardware's effects switched off in it, together and one at a time,
from the start on; other ways to train it; and it under noise, and with full scales of each head."""
MEASURED_UNDER_NOISE = (FULL, NOISY, FITTED, FITTED_NOISY, DIVIDED)
_ASKED_FOR = (
    *(f"… without {kind} levels" for kind in ("input", "storage", "readout")),
    "… with a quarter of the counters' full scale",
    "… with a normaliser of 32 pulses",
    "… with a normaliser of 64 pulses",
    "… by low-rank adapters",
    "… matched on its own stream for a third",
    "… on text of which it wrote half",
    FITTED,
    FITTED_NOISY,
    DIVIDED,
)
"""Which levels stand in the way, where they do, other full scales, for models that the usual ones do not fit, and other
ways to train."""
_SHORT = (DIGITAL, CONTROL, PUBLISHED_ROUTE, "nonlinear from the start", "normaliser and signed queries", FULL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model of the table, and how it is trained."""

    experiment: tuple[str, ...]
    """Words that choose it and its text."""
    digital_steps: int
    """Of 16 × 256 tokens, of its digital model; 0: there is one."""
    steps: int
    """Of each row."""
    batch_size: int
    """Sequences a step."""
    learning_rate: float
    """Of all stages but the layer-wise start."""
    teacher: str
    """Who analog models learn from."""
    tokens: int | None
    """Held-out tokens of the measurements; None: all."""
    writes: bool = False
    """Whether it writes the text that all rows train on, each token once."""
    needs: tuple[str, ...] = ()
    """Options that it cannot do without."""
    rows: tuple[str, ...] = _SHORT
    """What is run where nothing else is asked for."""


MODELS = {
    # 1.1 M parameters, the model in the repository.
    "shipped": Subject(
        experiment=("experiment=shipped",),
        digital_steps=0,
        steps=240,
        batch_size=8,
        learning_rate=2e-3,
        teacher="digital",
        tokens=None,
        rows=tuple(name for name in ROWS if name not in (NOISY, *_ASKED_FOR)),
    ),
    # 5.3 M parameters on a folder of text, from scratch: each seed has its own digital model, so that intervals hold
    # what its training leaves to chance. That is far from trained out, and further training is worth more to it than to
    # the others: analog models learn from the control, which has had that.
    "peps": Subject(
        experiment=("experiment=text",),
        digital_steps=1300,
        steps=600,
        batch_size=16,
        learning_rate=1.5e-3,
        teacher="control",
        tokens=32768,
        needs=("text",),
    ),
    # Pretrained, 656 K parameters, of whose text there is a megabyte: it writes the text that all rows train on.
    "tinystories": Subject(
        experiment=("experiment=tinystories", *WRITTEN),
        digital_steps=0,
        steps=1200,
        batch_size=16,
        learning_rate=4e-3,
        teacher="digital",
        tokens=None,
        writes=True,
        needs=("text", "source"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What all rows of a table share."""

    model: str
    folder: Path
    steps: int
    """Optimiser steps of each row, in all."""
    digital_steps: int = 0
    tokens: int | None = None
    """Held-out tokens of the measurements; None: all."""
    teacher: str = "digital"
    curve_every: int | None = None
    """Steps between two points of the validation curves; None: no curves."""
    device: str = "cpu"
    backend: str = "auto"
    text: Path | None = None
    source: Path | None = None
    noise_chips: int = 0
    """Chips, never trained on, over which the rows :data:`MEASURED_UNDER_NOISE` are measured; 0: they are not."""
    noise_tokens: int | None = None
    """Held-out tokens of that; None: as many as of the rest."""
    words: tuple[str, ...] = ()
    """More of the command line, for all rows."""
    control_words: tuple[str, ...] = ()
    """And for the control alone."""

    def facts(self) -> dict[str, object]:
        """What shapes the numbers, as JSON has it: tables of other facts are not continued."""
        return {
            "model": self.model,
            "steps": self.steps,
            "digital_steps": self.digital_steps,
            "tokens": self.tokens,
            "teacher": self.teacher,
            "curve_every": self.curve_every,
            "noise_tokens": self.noise_tokens,
            "text": None if self.text is None else str(self.text.resolve()),
            "source": None if self.source is None else str(self.source.resolve()),
            "words": list(self.words),
            "control_words": list(self.control_words),
        }

    def own(self, seed: int) -> Path:
        """Folder of the digital model and the control of a seed."""
        return self.folder / f"seed_{seed}"

    def place(self, name: str, seed: int) -> Path:
        """Folder of a row."""
        slug = "".join(c if c.isalnum() else "_" for c in name).strip("_")
        return self.own(seed) if name in (DIGITAL, CONTROL) else self.own(seed) / slug

    def waits_for(self, name: str) -> tuple[str, ...]:
        """The rows that must be finished before this one can begin."""
        if name == DIGITAL:
            return ()
        learns = self.teacher == CONTROL or set(BY_CONTROL) <= set(ROWS[name].overrides)
        is_compared = self.noise_chips > 0 and name in MEASURED_UNDER_NOISE
        return (DIGITAL, CONTROL) if name != CONTROL and (learns or is_compared) else (DIGITAL,)


def overrides_of(name: str, seed: int, plan: Plan) -> list[str]:
    """The command line of a row, without its stage."""
    row, subject = ROWS[name], MODELS[plan.model]
    started = min(MATCHED, plan.steps // 2) if row.has_start else 0
    if row.recipe == "published":
        started = plan.steps // LINEAR_SHARE
    stages = ("match", "linear", "finetune")
    return [
        *subject.experiment,
        PUBLISHED_HARDWARE,
        f"recipe={row.recipe}",
        f"seed={seed}",
        f"hardware.backend={plan.backend}",
        *([] if plan.text is None else [f"data.path={plan.text}"]),
        *([] if plan.source is None else [f"model.source={plan.source}"]),
        *([f"data.generated.tokens={plan.steps * subject.batch_size * 256}"] if subject.writes else []),
        f"trainer.digital.steps={plan.digital_steps}",
        f"trainer.match.steps={started}",
        f"trainer.linear.steps={started}",
        f"trainer.finetune.steps={plan.steps - started}",
        *(f"trainer.{stage}.batch_size={subject.batch_size}" for stage in stages),
        *(f"trainer.{stage}.eval_every={plan.curve_every or 1000}" for stage in stages),
        *(f"trainer.{stage}.log_every=50" for stage in (DIGITAL, *stages)),
        *(f"trainer.{stage}.save_every=500" for stage in (DIGITAL, *stages)),
        *(f"trainer.{stage}.learning_rate={subject.learning_rate}" for stage in stages[1:]),
        *(f"trainer.{stage}.distillation=0.9" for stage in stages[1:]),
        *(f"trainer.{stage}.dropout=false" for stage in stages[1:]),
        *(f"trainer.{stage}.teacher={plan.teacher}" for stage in stages[1:]),
        device_of_pipeline(plan.device),
        f"measure.tokens={'null' if plan.tokens is None else plan.tokens}",
        "measure.chips=1",
        *row.overrides,
        *plan.words,
        *(plan.control_words if name == CONTROL else ()),
        f"output_dir={plan.place(name, seed)}",
        f"previous={plan.own(seed)}",
    ]
