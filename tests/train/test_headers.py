"""Every recipe says by which command it runs, what that costs, and what came of it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.train.conftest import compose_config
from train.configs import checked
from train.schema import RunConfig

CONF = REPOSITORY / "conf"
ASKED_FOR_BY = {"trainer/openwebtext": "data=openwebtext", "trainer/wikitext": "data=wikitext"}
"""Recipes that come with something else on the command line."""
FILES = sorted(
    [*CONF.glob("experiment/*.yaml"), *CONF.glob("recipe/*.yaml")]
    + [CONF / f"{name}.yaml" for name in ("stage/further", "stage/recalibrate", *ASKED_FOR_BY)]
)


def header_of(file: Path) -> dict[str, str]:
    """What stands behind `Command:`, `Cost:` and `Result:` above a file's first setting."""
    above = re.match(r"(?:#.*\n)+", file.read_text(encoding="utf-8"))
    assert above is not None
    return dict(re.findall(r"^# (Command|Cost|Result): (\S.*)$", above[0], flags=re.MULTILINE))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(CONF).as_posix())
def test_a_recipe_has_command_cost_and_result(file: Path) -> None:
    header = header_of(file)
    assert list(header) == ["Command", "Cost", "Result"] and "TODO" not in "".join(header.values())
    python, m, train, *words = shlex.split(header["Command"])
    assert (python, m, train) == ("python", "-m", "train")
    name = file.relative_to(CONF).with_suffix("").as_posix()
    assert ASKED_FOR_BY.get(name, name.replace("/", "=")) in words
    checked(compose_config("run", *words), RunConfig)
