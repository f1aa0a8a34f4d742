"""Old spellings of fields on the command line: rewritten, each with a line that names the new one, for one version."""

from __future__ import annotations

import re
from collections.abc import Iterable

OLD: dict[str, dict[str, str]] = {
    "run": {
        "stage.chips": "measure.chips",
        "stage.test_tokens": "measure.tokens",
        "stage.stride": "measure.stride",
        "static.programmings": "measure.chips",
    },
    "evaluation": {name: f"measure.{name}" for name in ("chips", "tokens", "stride", "batch_size")},
    "whole_chip": {name: f"measure.{name}" for name in ("tokens", "stride", "batch_size")}
    | {"static.programmings": "measure.chips"},
}
"""Old to new, by the config of the entry point."""


def respelled(arguments: Iterable[str], config_name: str) -> tuple[list[str], list[str]]:
    """The arguments as they are spelled now, and a warning for each that was spelled otherwise."""
    now, warnings = [], []
    for argument in arguments:
        found = re.fullmatch(r"(\+{0,2})([\w.]+)=(.*)", argument, re.DOTALL)
        new = OLD.get(config_name, {}).get(found[2]) if found else None
        if found and new:
            warnings.append(f"{found[2]} is now {new}; the old spelling goes with the next version")
            argument = f"{found[1]}{new}={found[3]}"
        now.append(argument)
    return now, warnings
