"""Command lines with a wrong value for every field of every schema."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from hydra import compose, initialize_config_dir

from tests.faults.bench import Bench, Child, Outcome
from train.command import CONF, launch, run_command
from train.configs import checked
from train.schema import EvaluationConfig, RealConfig, RunConfig, WholeChipConfig

SCHEMAS = {"run": RunConfig, "evaluation": EvaluationConfig, "real": RealConfig, "whole_chip": WholeChipConfig}
NOT_NUMBERS = ["abc", "'1'x", "[1]", "{a: 1}", "nan", "inf", "-inf", "1e400", "${nope}", "'💥'", "true"]
WRONG: dict[Any, list[str]] = {
    int: [*NOT_NUMBERS, "1.5", "-1000000", str(10**30), "1e3"],
    float: [*NOT_NUMBERS, "-1e300", "1e300"],
    bool: ["abc", "[1]", "{a: 1}", "2.5", "${nope}"],  # a whole number is a truth value to OmegaConf
    str: ["[1]", "{a: 1}", "''", "${nope}", "'\x01'", "'a\tb'"],
}
"""Values that no field of the type takes; negative numbers where a field has none below zero."""
SIGNED = ("v_min", "v_max", "inl", "coefficients", "positions")


def wrong_words() -> list[tuple[str, str]]:
    """Config and command-line word, for every field and each of its wrong values."""
    return [
        (config, f"{place}={value}")
        for config, schema in SCHEMAS.items()
        for place, kind in _fields(schema)
        for value in WRONG[kind]
        if not (kind is float and value.startswith("-") and place.rpartition(".")[2] in SIGNED and "e300" in value)
    ]


def _fields(schema: type, place: str = "") -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(schema)
    for item in dataclasses.fields(schema):
        kinds = [kind for kind in (get_args(hints[item.name]) or (hints[item.name],)) if kind is not type(None)]
        name = f"{place}.{item.name}".lstrip(".")
        if dataclasses.is_dataclass(kinds[0]):
            yield from _fields(kinds[0], name)
        elif kinds[0] in WRONG and not str(hints[item.name]).startswith("list"):
            yield name, kinds[0]


def malformed(bench: Bench) -> Outcome:
    """One line that names the field, for each of a thousand drawn words (by hypothesis where it is installed)."""
    outcome, words = Outcome(), wrong_words()
    drawn = _drawn(words, max(40, round(1000 * bench.scale)), bench.random)
    parts = [drawn[i::8] for i in range(8)]

    def trial(part: list[tuple[str, str]]) -> Iterator[Child]:
        child = bench.fork(lambda: _judge(part, bench.deadline))
        yield child
        for line in child.said.splitlines():
            verdict, _, what = line.partition(" ")
            if verdict in ("GOOD", "BAD"):
                outcome.note(verdict == "GOOD", what)

    bench.all([lambda part=part: trial(part) for part in parts])
    return outcome


def _drawn(words: list[tuple[str, str]], n: int, draw: random.Random) -> list[tuple[str, str]]:
    try:
        from hypothesis import HealthCheck, Phase, given, seed, settings, strategies
    except ImportError:
        return draw.sample(words, min(n, len(words)))
    found: list[tuple[str, str]] = []

    @seed(draw.randrange(2**32))
    @settings(max_examples=n, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategies.sampled_from(words))
    def collect(word: tuple[str, str]) -> None:
        found.append(word)

    collect()
    return found


def _judge(words: list[tuple[str, str]], deadline: float) -> None:
    """Say GOOD or BAD of each."""
    import contextlib
    import io
    import sys
    import time

    for config, word in words:
        if time.monotonic() > deadline:
            return
        said, verdict = io.StringIO(), "accepted"
        with contextlib.redirect_stderr(said):
            try:
                launch(lambda config=config, word=word: run_command(lambda: _composed(config, word)))
            except SystemExit as stop:
                verdict = f"{said.getvalue()}{stop.code if isinstance(stop.code, str) else ''}"
            except BaseException as error:
                verdict = f"traceback {type(error).__name__}: {error}"
        name = word.partition("=")[0].rpartition(".")[2]
        good = verdict.startswith("error: ") and "\n" not in verdict.strip() and name in verdict
        sys.stdout.write(f"{'GOOD' if good else 'BAD'} {config} {word}: {' '.join(verdict.split())[:200]}\n")


def _composed(config: str, word: str) -> None:
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    needed = ["checkpoint=x"] if config in ("evaluation", "whole_chip") else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        checked(compose(config, overrides=[*needed, word]), SCHEMAS[config])
