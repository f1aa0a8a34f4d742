"""The GPU's scripts without a GPU: they say so, and the rows are there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import kernels, launches
from benchmarks.kernels import _rows


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure")
@pytest.mark.parametrize("main", [kernels.main, launches.main], ids=["kernels", "launches"])
def test_without_a_gpu_it_says_so(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_rows_have_names_of_their_own() -> None:
    names = [(row.section, row.name) for row in _rows()]
    assert len(set(names)) == len(names)
    assert {"kernels", "training step", "decoding", "T=1024", "T=32768"} <= {section for section, _ in names}
