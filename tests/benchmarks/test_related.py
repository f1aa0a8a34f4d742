"""`python -m benchmarks.related` prints every published row and every state."""

from __future__ import annotations

import pytest

from aimc.circuit.cost.related import CLAIMS, STATES
from benchmarks import related


def test_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert related.main(["--width", "400"]) == 0
    said = capsys.readouterr().out
    assert all(claim.name in said and claim.source in said for claim in CLAIMS)
    assert all(name in said for name in STATES) and "3,205 tokens" in said and "÷ cells" in said
