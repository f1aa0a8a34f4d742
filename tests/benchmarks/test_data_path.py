"""`python -m benchmarks.data_path` starts on a large text without reading it, and prints what it measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import data_path


def test_a_large_text_is_opened_without_being_read(tmp_path: Path) -> None:
    start = data_path.starting(tmp_path, 2.0)
    assert start.read_mb < 20 and start.mapped_mb < 300
    assert start.seconds < 10  # two on a quiet machine, with five times as much


def test_what_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(data_path, "TAKEN", 1.0)
    monkeypatch.setattr(data_path, "START_S", 60.0)
    monkeypatch.setattr(data_path.loading, "__defaults__", (2**18,))
    assert data_path.main(["--workers", "1", "--megabytes", "2", "--batches", "3", "--gigabytes", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "data.workers" in said and "first batch of a text of 0.5 GB" in said and "reached" in said
