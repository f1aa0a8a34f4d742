"""The operator's cases under noise and with a softmax, the recorded products, and the pretrained model: each number is
behind a check, and what is not there is said."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import benchmarks.__main__ as program
from benchmarks import evaluation, operators
from benchmarks.cases import (
    CASES,
    CHIP_FORWARD,
    CHIP_TRAINING,
    DEMO,
    EVALUATION,
    NOISE_FORWARD,
    PRUNED_FORWARD,
    SOFTMAX_TRAINING,
)
from benchmarks.products import products_of
from benchmarks.settings import quick_settings
from tests.benchmarks.test_benchmarks import run


def test_every_variant_of_the_operator_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = operators.gain_cell
    monkeypatch.setattr(operators, "gain_cell", lambda inputs, hardware: right(inputs, hardware) + 1 / 15)
    names = (NOISE_FORWARD, CHIP_TRAINING, SOFTMAX_TRAINING, PRUNED_FORWARD, DEMO)
    assert run(tmp_path, "--cases", *names) == 1
    assert "5 of 5 failed" in capsys.readouterr().out


def test_noise_is_really_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two calls differ unless they are given the same noise; what is frozen is the same by itself."""
    monkeypatch.setattr(operators, "same_noise", nullcontext)
    assert run(tmp_path, "--cases", NOISE_FORWARD, CHIP_FORWARD) == 1
    printed = capsys.readouterr().out
    assert f"✓ {CHIP_FORWARD}" in printed and "1 of 2 failed" in printed


def test_products_are_those_of_the_operator() -> None:
    settings = quick_settings()
    tokens, hardware = 64, settings.hardware(64, backend="blocked", leakage=False)
    recorded = products_of(operators.make_inputs(settings, tokens, gradient=False), hardware)
    # one sub-tile, one term a cell: queries by keys, pulses by values, and at most a column for the cells' constant
    least = 2 * settings.heads * tokens**2 * settings.head_size
    assert least <= recorded.multiply_adds <= least * (1 + 1 / settings.head_size)
    recorded.run()
    leaking = settings.hardware(64, backend="blocked")
    assert products_of(operators.make_inputs(settings, tokens, gradient=False), leaking).multiply_adds > 1.9 * least


def test_a_pretrained_model_that_is_not_there_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "FOLDERS", (tmp_path,))
    case = next(case for case in CASES if case.name == EVALUATION)
    console = Console(width=200, record=True, quiet=False)
    assert program.run([case], replace(quick_settings(), pretrained="nowhere"), console) == []
    printed = console.export_text()
    assert "skipped evaluation: no nowhere in" in printed and "train.fetch" in printed


def test_an_evaluation_that_is_far_from_digital_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "LOSS_TOLERANCE", 1e-9)
    assert run(tmp_path, "--cases", EVALUATION) == 1
    assert "digital; allowed are 0.0001 and 1e-09 nat" in capsys.readouterr().out
