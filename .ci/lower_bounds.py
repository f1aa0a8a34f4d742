"""Pip constraints at the lower bounds that pyproject.toml states, for `make oldest`.

`python .ci/lower_bounds.py EXTRA …` writes `name==bound` for the core dependencies and those of the extras. torch comes
from constraints.txt instead: its older builds for CPUs are not where pip looks, and those for GPUs are gigabytes.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def lower_bounds(extras: list[str]) -> list[str]:
    """One constraint a dependency.

    Raises:
        ValueError: a dependency without a lower bound.
    """
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    constraints = []
    for requirement in wanted:
        found = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)
        if found is None:
            raise ValueError(f"pyproject.toml: {requirement!r} has no lower bound to try; write name>=1.2")
        constraints.append("==".join(found.groups()))
    torch = re.search(r"^torch==.*$", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert torch is not None
    return [torch[0], *(line for line in constraints if not line.startswith("torch=="))]


if __name__ == "__main__":
    sys.stdout.write("\n".join(lower_bounds(sys.argv[1:])) + "\n")
