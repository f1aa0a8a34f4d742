"""What pruned softmax selects, of what a query sees."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

import aimc
from aimc import presets
from aimc.evaluate.selection import selection
from aimc.hardware import Array, Pruning
from tests.tiny_models import ids, tiny_model


@pytest.mark.parametrize("sliding_window", [None, 8])
def test_shares_are_of_what_a_layer_sees(sliding_window: int | None) -> None:
    """A comparator picks whole tokens, so of few it takes more."""
    reference = tiny_model("mistral", sliding_window=sliding_window)
    model = copy.deepcopy(reference)
    arrays = replace(presets.gain_cell_cmos(2), array=Array(window=32, rows=8))
    aimc.convert(model, presets.for_pretrained(arrays, pruned=Pruning(kept_share=0.5)))
    aimc.calibrate_ranges(model, reference, [ids(batch=4)])
    for of_layer in selection(model, reference, ids(seed=5, batch=2)):
        assert of_layer.kept_share == pytest.approx(0.55, abs=0.06)
        assert of_layer.kept_share < of_layer.recalled_mass < 1.0
