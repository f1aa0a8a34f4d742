"""The GPU's script without a GPU: it says so, and its rows are there."""

from __future__ import annotations

import pytest
import torch

from benchmarks.kernels import _rows, main


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_rows_have_names_of_their_own() -> None:
    names = [(row.section, row.name) for row in _rows()]
    assert len(set(names)) == len(names)
    assert {"kernels", "training step", "decoding", "T=1024", "T=32768"} <= {section for section, _ in names}
