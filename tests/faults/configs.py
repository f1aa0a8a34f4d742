"""Command lines with a wrong value for any field of any schema, drawn by hypothesis."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from tests.faults.bench import Bench, Child, Outcome
from tests.train.malformed import Word, any_words, is_good, said_of, wrong_words

N_PARTS = 8


def malformed(bench: Bench) -> Outcome:
    """One line that names the field, for each of a thousand words; beside them words that may be right, and words that
    Hydra itself looks at, which take it a second each."""
    outcome = Outcome()
    amounts = [max(2, round(n * bench.scale / N_PARTS)) for n in (1000, 250, 50)]

    def trial() -> Iterator[Child]:
        start = bench.random.randrange(2**32)
        child = bench.fork(lambda: _judge(start, amounts, bench.deadline))
        yield child
        outcome.note(child.status == 0, child.said[-400:])
        for line in child.said.splitlines():
            verdict, _, what = line.partition(" ")
            if verdict in ("GOOD", "BAD"):
                outcome.note(verdict == "GOOD", what)

    bench.all([trial] * N_PARTS)
    return outcome


def _judge(start: int, amounts: list[int], deadline: float) -> None:
    """Say GOOD or BAD of each word."""
    kinds = [(wrong_words(), False), (any_words(), True), (wrong_words(through_hydra=True), False)]
    for (words, may_be_taken), n in zip(kinds, amounts, strict=True):
        _judge_some(words, may_be_taken, n, start, deadline)


def _judge_some(words: SearchStrategy[Word], may_be_taken: bool, n: int, start: int, deadline: float) -> None:
    @seed(start)
    @settings(
        max_examples=n,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(words)
    def judge(word: Word) -> None:
        if time.monotonic() > deadline:
            return
        said = said_of(word)
        verdict = "GOOD" if is_good(word, said, may_be_taken) else "BAD"
        sys.stdout.write(f"{verdict} {word!r}: {' '.join((said or 'taken').split())[:200]!r}\n")

    judge()
