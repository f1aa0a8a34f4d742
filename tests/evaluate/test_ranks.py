"""Two processes calibrate, match and measure as one: each does a part."""

from __future__ import annotations

import copy
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from transformers import GPT2LMHeadModel

import aimc
from aimc.hardware import Hardware
from aimc.models.arrays import gain_cell_layers
from aimc.models.ranks import ALONE, Ranks, all_ranks, exact_sum
from tests.conftest import tiny_gpt2
from tests.train.processes import free_port


def hardware() -> Hardware:
    return aimc.presets.gain_cell_cmos()


def work(ranks: Ranks) -> dict[str, Any]:
    """Statistics start, matching of statistics, ranges, layer-wise start, and perplexities clean and over chips."""
    torch.set_num_threads(1)
    reference = tiny_gpt2()
    rows = torch.randint(0, reference.config.vocab_size, (12, 16), generator=torch.Generator().manual_seed(1))
    batches = list(rows.split(4))  # three, which two cannot share evenly
    own = batches[ranks.number :: ranks.n]
    model, other = (copy.deepcopy(reference) for _ in range(2))
    aimc.convert(model, hardware())
    aimc.convert(other, aimc.presets.linearised(hardware()))
    aimc.initialise_scalers(other, reference, own)
    report = aimc.match_statistics(model, other, own, iterations=3)
    scalers = scalers_of(model)
    softmax = copy.deepcopy(reference)
    aimc.convert(softmax, aimc.presets.with_softmax(hardware()))
    aimc.calibrate_ranges(softmax, reference, batches)
    text = torch.randint(0, reference.config.vocab_size, (150,), generator=torch.Generator().manual_seed(2))
    noise = aimc.presets.typical()
    found = aimc.perplexity(model, text, context=16, stride=8, batch_size=4, chips=3, nonideality=noise, ranks=ranks)
    clean = aimc.perplexity(model, text, context=16, stride=8, batch_size=4, nonideality=aimc.Noise(), ranks=ranks)
    aimc.match_outputs(model, reference, batches, steps=4, ranks=ranks)
    fit = aimc.fit_projections(model, reference, batches, ranks=ranks)
    return {
        "scalers": scalers,
        "report": str(report),
        "ranges": scalers_of(softmax),
        "chips": found.per_chip,
        "fit": str(fit).partition(" s:")[2],
        "clean": (float(clean), clean.stderr),
        "matched": {name: x.detach().clone() for name, x in model.named_parameters()},
    }


def scalers_of(model: GPT2LMHeadModel) -> dict[str, Tensor]:
    return {
        f"{name}.{part}": x.detach().clone()
        for name, layer in gain_cell_layers(model)
        for part, x in layer.named_parameters()
    }


def process(number: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=number, world_size=2)
    torch.save(work(all_ranks()), folder / f"{number}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_calibrate_match_and_measure_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(process, (free_port(), tmp_path), nprocs=2)
    alone = work(ALONE)
    for number in range(2):
        shared = torch.load(tmp_path / f"{number}.pt")
        for same in ("scalers", "ranges"):  # to the bit
            assert all(torch.equal(x, shared[same][name]) for name, x in alone[same].items()), same
        assert shared["report"] == alone["report"]
        assert shared["chips"] == alone["chips"] and len(alone["chips"]) == 3
        assert shared["clean"] == alone["clean"] and shared["fit"] == alone["fit"]
        moved = max(float((alone["matched"][f"{n}"] - x).abs().max()) for n, x in shared["matched"].items())
        assert moved < 1e-4, moved


def test_a_sum_is_the_same_in_any_order() -> None:
    parts = [torch.randn(3, dtype=torch.float64) * 10.0 ** random.Random(i).randint(-9, 9) for i in range(200)]
    shuffled = random.Random(0).sample(parts, len(parts))
    assert exact_sum(parts).equal(exact_sum(shuffled))
    assert not torch.stack(parts).sum(0).equal(torch.stack(shuffled).sum(0))  # which is what it is for


def test_one_process_has_all() -> None:
    assert list(ALONE.mine(range(3))) == [0, 1, 2] and list(Ranks(1, 2).mine(range(5))) == [1, 3]
    assert ALONE.united({1: "b", 0: "a"}) == ["a", "b"] and all_ranks() is ALONE
