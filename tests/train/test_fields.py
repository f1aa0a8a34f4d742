"""Every number of every config refuses what is infinite, NaN or of another type; old spellings are rewritten."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from aimc.hardware import ConfigError, Hardware, Noise
from tests.train.conftest import command
from train.characterise_config import CharacteriseConfig
from train.errors import RunError
from train.recipe import Recipe
from train.schema import EvaluationConfig, RunConfig, StageConfig, StaticConfig, WholeChipConfig
from train.spellings import OLD, respelled


def configs(cls: type) -> Iterator[type]:
    """A config class and those inside it, less the hardware's, which has tests of its own."""
    if cls not in (Hardware, Noise):
        yield cls
        for hint in get_type_hints(cls).values():
            if dataclasses.is_dataclass(hint):
                yield from configs(hint)  # type: ignore[arg-type]


CLASSES = sorted(
    {c for top in (RunConfig, EvaluationConfig, WholeChipConfig, CharacteriseConfig) for c in configs(top)}, key=str
)
FIELDS = [(cls, name, hint) for cls in CLASSES for name, hint in get_type_hints(cls).items() if hint is not dict]
NUMBERS = [(cls, name, hint) for cls, name, hint in FIELDS if {int, float} & {hint, *get_args(hint)}]


@pytest.mark.parametrize(("cls", "name", "hint"), NUMBERS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_number_is_finite_and_of_its_type(cls: type, name: str, hint: Any) -> None:
    wrong: list[Any] = [math.inf, -math.inf, math.nan, "3", True, [1], {}]
    if float not in (hint, *get_args(hint)):
        wrong += [2.5, 64.0]
    if type(None) not in get_args(hint):
        wrong.append(None)
    for value in wrong:
        with pytest.raises((RunError, ConfigError), match=rf"^{name}="):
            cls(**{name: value})


def test_the_walk_sees_every_config() -> None:
    assert {cls.__name__ for cls in CLASSES} >= {"Recipe", "TrainerConfig", "StageConfig", "DataConfig", "Measurement"}
    assert len(NUMBERS) > 30


@pytest.mark.parametrize(("cls", "name", "hint"), FIELDS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_field_of_another_type_is_refused(cls: type, name: str, hint: Any) -> None:
    with pytest.raises((RunError, ConfigError), match=rf"^{name}="):
        cls(**{name: object()})


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_the_command_line_refuses_them_too(value: str) -> None:
    from tests.train.conftest import compose_config
    from train.configs import checked

    with pytest.raises(RunError, match=r"^trainer\.linear\.weight_decay=.*: must be at least 0 and finite"):
        checked(compose_config("run", f"trainer.linear.weight_decay={value}"), RunConfig)


def test_what_is_inside_its_range_is_taken() -> None:
    assert Recipe(steps=0, weight_decay=0, learning_rate=1).weight_decay == 0
    assert StageConfig(adapt_damping=1.0).adapt_damping == 1.0
    assert EvaluationConfig(checkpoint="x", task_limit=None).task_limit is None
    with pytest.raises(RunError, match="^preset=pcn: unknown; use one of pcm"):
        StaticConfig(preset="pcn")
    with pytest.raises(RunError, match="^tasks="):
        EvaluationConfig(checkpoint="x", tasks=[1])  # type: ignore[list-item]


def test_old_spellings_are_rewritten_each_with_a_line() -> None:
    told = ["experiment=smoke", "stage.chips=8", "++stage.test_tokens=null", "stage.stride=1,2", "chips=3"]
    now, warnings = respelled(told, "run")
    assert now == ["experiment=smoke", "measure.chips=8", "++measure.tokens=null", "measure.stride=1,2", "chips=3"]
    assert len(warnings) == 3 and warnings[0].startswith("stage.chips is now measure.chips;")
    assert respelled(["chips=3", "tokens=5"], "evaluation")[0] == ["measure.chips=3", "measure.tokens=5"]
    assert respelled(["static.programmings=2"], "whole_chip")[0] == ["measure.chips=2"]
    now, warnings = respelled([f"{new}=1" for table in OLD.values() for new in table.values()], "run")
    assert warnings == []


def test_the_command_takes_an_old_spelling() -> None:
    done = command("train.evaluate", "checkpoint=x", "chips=7", "--cfg", "job")
    assert done.returncode == 0 and "chips: 7" in done.stdout
    assert done.stderr.strip() == "warning: chips is now measure.chips; the old spelling goes with the next version"


@pytest.mark.parametrize("text", ["/a/o[/]ü", "it's", "x\\'", "x\\", "größe", "[1,2", "a=b", "{", "a,ü", "'", "💥\\\\"])
def test_a_text_that_hydra_cannot_read_is_taken_as_it_is(text: str) -> None:
    (word,), _ = respelled([f"output_dir={text}"], "run")
    (override,) = OverridesParser.create().parse_overrides([word])
    assert override.value() == text


@pytest.mark.parametrize(
    "word", ["seed=1,2", "output_dir='a b'", "~seed", "--help", "lengths=[1,2]", "a=${b}", "+a.b={c:d}"]
)
def test_what_hydra_can_read_stays(word: str) -> None:
    assert respelled([word], "run")[0] == [word]
