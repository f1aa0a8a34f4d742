"""What a stage is: all facts about it in one object, light to import; its work imports what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..run import Run

CALIBRATION = ("stage.calibration_batches", "stage.calibration_batch_size")
"""Settings of the text over which statistics are measured."""
DIRECT, PUBLISHED = "direct", "published"
"""Routes from a digital model to nonlinear cells."""
LEVELS, NOISE = "levels", "noise"
"""What full scales of counters are chosen for."""


@dataclass(frozen=True, slots=True)
class Switch:
    """The field of the group `stage` that says whether the pipeline runs a stage."""

    name: str
    default: bool


@dataclass(slots=True)
class StageResult:
    """A stage's model and what was measured on the way."""

    model: PreTrainedModel
    perplexity: dict[str, float] = field(default_factory=dict)
    """Held-out perplexity by name of the moment, in order."""
    history: list[dict[str, float]] = field(default_factory=list)
    """The training log."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What else is worth keeping: reports, clip fractions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage: what it is called, what it needs, what shapes its model, and what it does."""

    name: str
    """On the command line, in messages and records."""
    folder: str
    """Where its model stands, inside a run's output folder."""
    describe: str
    """What its model is, for the model card."""
    run: Callable[[Run], StageResult]
    """Its work."""
    needs: str | None = None
    """The stage whose model it starts from; None: from none."""
    recipes: tuple[str, ...] = ()
    """By which recipes of the group `trainer` it trains, one after the other; its own has its name."""
    data_order: int = 0
    """Added to the seed of the data's order in its own recipe: what goes on from another training does so with other
    sequences first."""
    depends_on: tuple[str, ...] = ()
    """Settings that shape its model, by their place in the config, beside seed, text, input and recipes."""
    fits: str | None = None
    """What it chooses the full scales of the counters for, where the hardware has them for each head: their
    :data:`LEVELS`, or :data:`NOISE`, the run's; None: it leaves them as they are."""
    tells_bounds: bool = False
    """Whether it looks at the text of :data:`CALIBRATION` for how often a bound is met alone, so that its model does
    not depend on that."""
    analog: bool = True
    """Whether its model has attention on gain-cell arrays."""
    route: str | None = None
    """The route that it belongs to; None: to all."""
    switch: Switch | None = None
    """What makes the pipeline run it or leave it out; None: it always does, unless the stage is alone."""
    is_alone: bool = False
    """Whether it runs by its name alone, and no pipeline goes on with its model, nor reports it."""
    curve: str | None = None
    """Its training curve's name in the figure; None: none is drawn."""
