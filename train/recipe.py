"""How one stage trains: the recipe, as a config."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from aimc.evaluate.measurement import MOST_SEED

from .errors import RunError
from .fields import check, choice, number

TEACHERS = ("digital", "control")
FRESH = "fresh"
"""A chip that is drawn anew, in place of the number of one."""


@dataclass(slots=True, kw_only=True)
class LearningRates:
    """Factors on a recipe's learning rate, by group of parameters; 0 freezes a group."""

    scalers: float = number(1.0, least=0)
    """Everything inside the emulated arrays' modules: gains and offsets of query, key, value and output; a digital
    model has none."""
    attention: float = number(1.0, least=0)
    """What else is in the attention blocks: projections."""
    rest: float = number(1.0, least=0)
    """Everything else: embeddings, norms, MLPs, head."""

    def __post_init__(self) -> None:
        check(self)
        if not any(self.factors().values()):
            raise RunError("scalers=0: every group is frozen, so nothing would be trained; give one a factor above 0")

    def factors(self) -> dict[str, float]:
        """Factor by group."""
        return asdict(self)


@dataclass(slots=True, kw_only=True)
class NoiseTraining:
    """Training under the run's `nonideality`, in place of the hardware's own noise; validation and checkpoints are on
    the hardware as it is. Models without arrays, such as the control, train without."""

    scale: float = number(0.0, least=0, hint="1 trains under `nonideality` as it stands")
    """Factor on every field of `nonideality`; 0: off."""
    every: int = number(1, least=1)
    """Optimiser steps between one chip and the next; write and read noise are drawn at every pass."""
    ramp: float = number(0.0, least=0, most=1)
    """Share of the steps over which the scale rises from 0 to its full value; 0: full from the first step."""
    chip: str = FRESH
    """`fresh`: chip after chip, none of which has a number below 2^32, so that measured chips were not trained on; or
    the number of one chip, such as a measured one, for all steps (`measure.seed` with the same number measures it)."""
    evaluate: str = choice("clean", ("clean", "noisy"))
    """Whether validation while training is on the hardware as it is (`clean`), or under the step's noise."""

    def __post_init__(self) -> None:
        check(self)
        if self.chip != FRESH and not (self.chip.isascii() and self.chip.isdigit() and int(self.chip) <= MOST_SEED):
            raise RunError(
                f"chip={self.chip}: no number of a chip, and a frozen chip is known by its number; give one, such as 7,"
                f" or {FRESH}"
            )


@dataclass(slots=True, kw_only=True)
class Recipe:
    """How long and how one stage trains; defaults from the published recipe (AdamW 0.9/0.95, decay on matrices,
    cosine)."""

    steps: int = number(100, least=0, most=10**9)
    """Optimiser steps."""
    minutes: float | None = number(None, above=0)
    """Wall-clock minutes of the training, with validation and checkpoints in between: the learning rate falls by the
    clock then, and training ends with it, or after `steps` where that is sooner. A control that trains by the same
    recipe gets as long, not as many tokens. null: steps alone."""
    batch_size: int = number(16, least=1, most=2**24)
    """Sequences a device and micro-step."""
    accumulate: int = number(1, least=1)
    """Micro-steps an optimiser step."""
    learning_rate: float = number(6e-4, above=0)
    """Peak learning rate."""
    learning_rates: LearningRates = field(default_factory=LearningRates)
    """Factors on it by group of parameters: `scalers`, `attention`, `rest`; 0 freezes a group."""
    lora_rank: int = number(0, least=0)
    """Rank of low-rank adapters on the projections of attention and MLPs, which train in place of the weights and are
    merged into them at the end; the arrays' scalers train as always, everything else stays. 0: none, all weights
    train."""
    min_lr_ratio: float = number(0.1, least=0, most=1, hint="0.1 is usual")
    """Final learning rate as a fraction of the peak."""
    warmup_steps: int = number(20, least=0)
    """Steps of linear warm-up."""
    weight_decay: float = number(0.1, least=0)
    """Weight decay, on matrices only."""
    beta1: float = number(0.9, least=0, below=1)
    """AdamW's first moment."""
    beta2: float = number(0.95, least=0, below=1)
    """AdamW's second moment."""
    dropout: bool = True
    """Whether the model's dropout works while it trains. Off is better where a stage reads each text a few times only;
    on, where it reads the same text for long."""
    max_grad_norm: float = number(1.0, above=0)
    """Gradient clip."""
    distillation: float = number(
        0.0, least=0, most=1, hint="0 trains on the text alone, 0.9 mostly on the digital model's predictions"
    )
    """Weight, from 0 to 1, of the divergence from the digital model's predictions in the loss of the analog stages; 0:
    the text alone."""
    temperature: float = number(1.0, above=0)
    """Both models' logits are divided by it before they are compared, and the divergence is multiplied by its square,
    so that gradients keep their size."""
    reverse_share: float = number(0.0, least=0, most=1)
    """Share of the divergence that is KL(student‖teacher), which keeps to the teacher's likely tokens; the rest is
    KL(teacher‖student), which covers them all."""
    hidden_weight: float = number(0.0, least=0)
    """Weight of 1 − cos between the two models' hidden states, mean over layers and tokens, added to the loss; it falls
    linearly to zero over the run. 0: off."""
    teacher: str = choice("digital", TEACHERS)
    """Who analog stages learn from: the `digital` model, or the `control`, which is that after the same extra
    tokens."""
    noise: NoiseTraining = field(default_factory=NoiseTraining)
    """Training under non-idealities."""
    log_every: int = number(10, least=1)
    """Steps between log lines."""
    eval_every: int = number(50, least=1)
    """Steps between measurements on the validation text."""
    save_every: int = number(200, least=1)
    """Steps between checkpoints to resume from."""

    def __post_init__(self) -> None:
        check(self)
        if self.minutes is not None and self.noise.ramp:
            raise RunError(
                f"minutes={self.minutes}: noise.ramp={self.noise.ramp} is a share of the steps, and how many there will"
                " be nobody knows; set one of the two to its default (null, 0)"
            )

    @property
    def has_teacher(self) -> bool:
        """Whether the loss compares with another model."""
        return bool(self.distillation or self.hidden_weight)
