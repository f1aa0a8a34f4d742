"""The typed shape of the config group `trainer`."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import RunError
from .fields import check, choice, number, with_fields
from .recipe import Recipe
from .stages import RECIPES

PRECISIONS = ("fp32", "bf16", "fp16")
SHARDING = ("none", "fsdp")
ON_SPIKE = ("warn", "skip", "stop", "off")
BEST = ("kept", "loaded", "off")


@dataclass(slots=True, kw_only=True)
@with_fields({name: (Recipe, field(default_factory=Recipe)) for name in RECIPES})
class TrainerConfig:
    """A recipe by the name of each stage that has one of its own, and what they share. The control stage reads what
    the stages before and in fine-tuning read, digitally."""

    precision: str = choice("fp32", PRECISIONS)
    """`fp32`, `bf16` or `fp16` autocast; the emulated hardware computes in float32 all the same, but for the products
    of the Triton kernels, which sum in it."""
    eval_tokens: int = number(32768, least=1)
    """Validation tokens of the measurements while training."""
    device: str = choice("auto", ("auto", "cpu"))
    """`auto` (a GPU where there is one) or `cpu`."""
    keep_points: int = number(2, least=1)
    """Points to resume from that are kept, the newest ones; with two, one is left where the other is damaged."""
    best: str = choice("kept", BEST)
    """The point with the lowest validation loss: `kept` besides those, if it is one that was saved; `loaded`: every new
    lowest is saved, and a stage ends with its weights; `off`."""
    on_spike: str = choice("warn", ON_SPIKE)
    """What is done about a step whose loss or gradient norm is far above what was usual, or not finite: `warn`, and its
    batch is saved for `python -m train.replay`; `skip`, it is left out too; `stop`, the run ends; or `off`. A loss that
    is not finite ends the run in any case but `skip`."""
    spike_deviations: float = number(10.0, above=0)
    """Standard deviations of the last steps above which a step is far; estimated from the median, of logarithms."""
    spike_window: int = number(100, least=20, most=100_000)
    """Steps that say what is usual."""
    keep_spikes: int = number(3, least=0)
    """Steps that are kept saved, the newest ones, in `spikes/` of the output folder."""
    spike_weights: bool = False
    """True: with the weights from before the step, so that it can be done again to the digit."""
    alarm_clip: float = number(0.1, above=0, most=1)
    """Share of full reads above which a stage tells that counters (A, S, the normaliser's) are full; less was not seen
    to cost anything. Of A and the normaliser's only where their full scales were not fitted: those clip for a
    reason."""
    alarm_drift: float = number(4.0, above=1)
    """Factor by which the scaler of a head may change in a stage's training before that is told."""
    alarm_gradient: float = number(20.0, above=1)
    """Factor by which the usual norm of a gradient, the median of the last steps, may exceed `max_grad_norm` before
    that is told: of a model that learns it was seen at 3, of one that does not at 140."""
    sharding: str = choice("none", SHARDING)
    """Of several processes (`torchrun`): `none`, each holds the whole model and they average gradients; or `fsdp`, each
    holds a share of weights, gradients and optimiser state (PyTorch's FSDP2), for models too large for one device."""
    activation_checkpointing: bool = False
    """True: activations inside the layers are computed again in the backward pass, under the same noise, which takes
    less memory and a third more time."""
    workers: int = number(0, least=0, most=1024)
    """Processes a rank that read the training text; 0: none, the rank reads itself. The order is the same."""
    timeout_s: float = number(600.0, above=0)
    """Seconds that a process waits for the others before it gives them up as dead; one that ends is noticed at once."""
    distill_control: bool = False
    """True: the control learns from the digital model by the recipes' own `distillation` and `hidden_weight`, as the
    analog models do; False: from the text alone."""
    control_dropout: bool | None = None
    """Whether the control's dropout works while it trains; null: as the recipes' own `dropout` says. What learns from a
    teacher is often better without where a model on the text alone is better with it."""

    def __post_init__(self) -> None:
        check(self)
        if self.on_spike == "skip" and self.precision == "fp16":
            raise RunError(
                "on_spike=skip: precision=fp16 leaves out steps by itself and would count these as its own; set"
                " trainer.on_spike=warn or trainer.precision=bf16"
            )

    def recipe(self, name: str) -> Recipe:
        """The recipe of the stage of that name."""
        return getattr(self, name)
