"""The stages from a digital model to one on nonlinear gain cells: one file a stage, the owner of all its facts.

Whoever needs a fact of a stage reads it here: the configs' choices and recipes, the pipeline, records, cards, reports.
Importing it imports neither torch nor transformers, only `aimc.hardware`; a stage's work imports what it needs.
"""

from __future__ import annotations

from . import adapt, control, digital, finetune, joint, linear, softmax
from .stage import Stage

STAGES: dict[str, Stage] = {
    module.STAGE.name: module.STAGE for module in (digital, control, softmax, linear, adapt, finetune, joint)
}
"""Every stage by name, in the order that the pipeline runs them: a new one is a file, and its name here."""
RECIPES: tuple[str, ...] = tuple(dict.fromkeys(recipe for stage in STAGES.values() for recipe in stage.recipes))
"""Names of the recipes that stages train by."""
SWITCHES = {stage.switch.name: stage.switch for stage in STAGES.values() if stage.switch is not None}
"""What adds stages to the pipeline, or leaves them out, by name."""
