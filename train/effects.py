"""Settings of a command line that would change nothing are refused: whoever types one takes the result for its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from typing import Any

from .errors import RunError
from .schema import RunConfig
from .stages import RECIPES
from .study_schema import StudyConfig

SIZES = tuple(f"model.{name}" for name in ("n_layer", "n_head", "n_embd", "n_positions", "dropout"))
OF_WHOLE_MODELS = (
    *("noise.*", "distillation", "temperature", "reverse_share", "hidden_weight", "teacher", "lora_rank", "dropout"),
    *("learning_rates.rest", "min_lr_ratio", "warmup_steps", "weight_decay", "beta1", "beta2"),
)
"""Settings of a recipe that say how a whole model is trained."""
Rule = tuple[tuple[str, ...], Callable[[Any], bool], str]


def _pipeline(config: Any, stage: str) -> bool:
    """Whether a run has a stage; those of single stages may share one list of settings."""
    return not isinstance(config, RunConfig) or config.stage.name != "pipeline" or stage in config.stage.in_pipeline()


def _trains(config: Any, recipe: str) -> bool:
    if not isinstance(config, RunConfig) or config.stage.name != "pipeline":
        return True
    return any(recipe in config.stage.stage(name).recipes for name in config.stage.in_pipeline())


def _rules_of(recipe: str) -> list[Rule]:
    """Of the settings of one recipe."""
    at = f"trainer.{recipe}"

    def of(config: Any) -> Any:
        return config.trainer.recipe(recipe)

    return [
        (
            (f"{at}.*",),
            lambda c: _trains(c, recipe),
            f"no stage of this pipeline trains by {at}; see recipe= and stage=…",
        ),
        (
            (f"{at}.noise.every", f"{at}.noise.ramp", f"{at}.noise.chip", f"{at}.noise.evaluate"),
            lambda c: bool(of(c).noise.scale),
            f"there is no noise while training; set {at}.noise.scale",
        ),
        (
            (f"{at}.temperature", f"{at}.reverse_share"),
            lambda c: bool(of(c).distillation),
            f"there is no distillation; set {at}.distillation",
        ),
        (
            (f"{at}.teacher",),
            lambda c: of(c).has_teacher,
            f"nothing is learned from a teacher; set {at}.distillation or {at}.hidden_weight",
        ),
    ]


def _brings_hardware(config: Any) -> bool:
    """Whether a study's checkpoint is on arrays already."""
    if not isinstance(config, StudyConfig):
        return False
    from .models import is_analog  # seconds to import, and asked only of who sets hardware

    return is_analog(config.checkpoint)


def _only_measures(config: Any) -> bool:
    return isinstance(config, RunConfig) and config.stage.name == "evaluate"


def _recalibrates(config: Any) -> bool:
    return isinstance(config, RunConfig) and config.stage.name == "recalibrate"


RULES: list[Rule] = [
    (
        ("hardware", "hardware.[!b]*"),  # all but the backend, which changes no model
        lambda c: not _recalibrates(c),
        "the fine-tuned model is recalibrated on the hardware that it was trained on",
    ),
    (
        ("hardware", "hardware.*"),
        lambda c: not _only_measures(c),
        "the models are measured on the hardware that they stand on; train them on other (stage=match, finetune, …)",
    ),
    (
        tuple(f"trainer.match.{name}" for name in OF_WHOLE_MODELS),
        lambda c: False,
        "blocks are matched one by one, without it",
    ),
    (
        ("trainer.control_dropout", "trainer.distill_control"),
        lambda c: _pipeline(c, "control"),
        "this pipeline trains no control; set stage.with_control=true or stage=control",
    ),
    (
        ("hardware", "hardware.*"),
        lambda c: not _brings_hardware(c),
        "the checkpoint is on arrays and brings its own hardware; vary that with grid={hardware.array.rows:[32,64]}",
    ),
    (SIZES, lambda c: c.model.source is None, "model.source brings a model with its own sizes; set model.source=null"),
    (("data.path",), lambda c: c.data.text_kind == "text", "the text is another; set data=text"),
    (
        ("data.dataset", "data.dataset_config", "data.column"),
        lambda c: c.data.text_kind == "hub",
        "the text is no dataset of the hub; set data.kind=hub",
    ),
    (
        ("data.head_tokens", "data.shuffled_sequences"),
        lambda c: c.data.streaming,
        "the whole text is tokenised and shuffled; set data.streaming=true",
    ),
    (("data.real_kind", "data.generated.*"), lambda c: c.data.is_generated, "no text is generated; set data=generated"),
    (
        ("data.vocab_size",),
        lambda c: isinstance(c, RunConfig) and c.model.source is None,
        "a pretrained model brings its tokenizer",
    ),
    (
        ("static.*",),
        lambda c: _pipeline(c, "joint"),
        "nothing stands on static tiles; set stage.with_static=true or stage=joint",
    ),
    (("stage.adapt_*",), lambda c: _pipeline(c, "adapt"), "this route does not adapt; set recipe=published"),
    (
        ("stage.fit_sequences", "stage.match_*"),
        lambda c: _pipeline(c, "match"),
        "this route matches no outputs; set recipe=direct",
    ),
    (
        ("stage.match_*",),
        lambda c: c.trainer.recipe("match").steps > 0,
        "no steps are made layer by layer; set trainer.match.steps",
    ),
    (("stage.start",), lambda c: _pipeline(c, "linear"), "this route has no linear model; set recipe=published"),
    (("logger.project",), lambda c: c.logger.name != "none", "there is no logger; set logger=wandb"),
    (("task_limit", "num_fewshot"), lambda c: bool(c.tasks), "there are no tasks; set tasks=[…]"),
    *(rule for recipe in RECIPES for rule in _rules_of(recipe)),
]
"""Names of settings, when they have an effect, and what to say where they have none."""


def require_effect(config: Any, overrides: Iterable[str]) -> None:
    """Check that each setting that was typed has an effect.

    Args:
        config: checked.
        overrides: of the command line; groups and values in YAML files are looked at by nobody here, for a file may
            serve several purposes.

    Raises:
        RunError: one has none.
    """
    for item in overrides:
        name, _, value = item.lstrip("+~").partition("=")
        if value == "null":
            continue
        for patterns, has_effect, why in RULES:
            if any(fnmatch(name, pattern) for pattern in patterns) and not has_effect(config):
                raise RunError(f"{item}: this would have no effect: {why}, or leave it out")
