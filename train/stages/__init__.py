"""The stages from a digital model to one on nonlinear gain cells: one file a stage, the owner of all its facts.

Whoever needs a fact of a stage reads it here: the configs' choices and recipes, the pipeline, records, cards, reports.
Importing it imports neither torch nor transformers, only `aimc.hardware`; a stage's work imports what it needs.
"""

from __future__ import annotations

from dataclasses import replace

from . import adapt, control, digital, finetune, further, joint, linear, match, recalibrate, softmax
from .stage import DIRECT, PUBLISHED, Stage

STAGES: dict[str, Stage] = {
    module.STAGE.name: module.STAGE
    for module in (digital, control, softmax, linear, adapt, match, finetune, joint, further, recalibrate)
}
"""Every stage by name, in the order that a pipeline runs them: a new one is a file, and its name here."""
_ON_ROUTE = {
    (PUBLISHED, "control"): {"recipes": ("linear", "finetune")},
    (PUBLISHED, "finetune"): {"needs": "adapt"},
}
"""What is otherwise about a stage on a route than its file says."""
ROUTES: dict[str, dict[str, Stage]] = {
    route: {
        name: replace(stage, **_ON_ROUTE.get((route, name), {}))  # type: ignore[arg-type]
        for name, stage in STAGES.items()
        if stage.route in (None, route)
    }
    for route in (DIRECT, PUBLISHED)
}
"""The stages of each route from digital to nonlinear cells: `direct`, nonlinear cells from the start; `published`, by
way of the linear cell (N. Leroux et al., Nature Computational Science, 2025)."""
RECIPES: tuple[str, ...] = tuple(
    dict.fromkeys(recipe for route in ROUTES.values() for stage in route.values() for recipe in stage.recipes)
)
"""Names of the recipes that stages train by."""
SWITCHES = {stage.switch.name: stage.switch for stage in STAGES.values() if stage.switch is not None}
"""What adds stages to the pipeline, or leaves them out, by name."""
