"""How a command line is spelled: old names of fields, and values, such as paths, that Hydra's grammar cannot read."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

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
    """The arguments as they are spelled now, and a warning for each whose name was another. A value that Hydra cannot
    read is taken for a text, without a word: `output_dir=/data/[1]/größe`."""
    parser = OverridesParser.create()
    now, warnings = [], []
    for argument in arguments:
        found = re.fullmatch(r"(\+{0,2})([\w.]+)=(.*)", argument, re.DOTALL)
        new = OLD.get(config_name, {}).get(found[2]) if found else None
        if found and new:
            warnings.append(f"{found[2]} is now {new}; the old spelling goes with the next version")
            argument = f"{found[1]}{new}={found[3]}"
        now.append(_readable(argument, parser))
    return now, warnings


def _readable(argument: str, parser: OverridesParser) -> str:
    """An argument whose value Hydra can read, quoted where it could not, if that helps."""
    name, equals, value = argument.partition("=")
    if not equals or argument.startswith("-") or _is_read(argument, parser):
        return argument
    quoted = f"{name}={in_quotes(value)}"
    return quoted if _is_read(quoted, parser) else argument


def _is_read(argument: str, parser: OverridesParser) -> bool:
    try:
        parser.parse_overrides([argument])
    except HydraException:
        return False
    return True


def in_quotes(text: str) -> str:
    """A text as Hydra reads it back, whatever is in it."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"
