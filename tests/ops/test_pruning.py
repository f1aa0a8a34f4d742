"""Pruned softmax: what the arrays select, and exact attention of that. The oracle's comparison is in
test_physics_page.py."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from aimc import presets
from aimc.hardware import Array, ConfigError, Converter, Hardware, Protection, Pruning
from aimc.ops.attention import gain_cell_attention
from aimc.ops.decode.arrays import KVArrays
from aimc.ops.decode.attention import decode
from aimc.ops.effects.noise import Chip
from aimc.ops.effects.pruning import selected
from aimc.ops.scaling import Scaling

SIGNED = Converter(v_min=-1.0, coding="sign_magnitude")


def machine(pruning: Pruning, window: int = 64, **changes: object) -> Hardware:
    """Linear cells without levels, so that the arrays' scores are the exact ones."""
    converters = {"input_dac": Converter(v_min=-1.0), "score_adc": SIGNED}
    array = Array(window=window, rows=8)
    return replace(
        presets.ideal(), **converters, **{"array": array, "activation": "pruned_softmax", "pruning": pruning, **changes}
    )


def inputs(T: int = 40, D: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, T, D, generator=g, dtype=torch.float64) * 0.1 for _ in range(3))
    return q, k + 0.45, v + 0.45


def exact_scores(q: Tensor, k: Tensor, hardware: Hardware) -> Tensor:
    line = hardware.cell.coefficients
    scores = q @ (line[0] + line[1] * (k - hardware.cell.offset_v)).mT
    causal = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    return scores.masked_fill(~causal, -math.inf)


def test_it_is_softmax_attention_of_the_best_share() -> None:
    hardware, (q, k, v) = machine(Pruning(kept_share=0.25)), inputs()
    scores = exact_scores(q, k, hardware)
    for t in range(q.shape[2]):
        row = scores[:, :, t]
        n = math.ceil(0.25 * (t + 1))
        row.masked_fill_(row < row.topk(n, dim=-1).values[..., -1:], -math.inf)
    charges = hardware.cell.coefficients[0] + hardware.cell.coefficients[1] * (v - 0.45)
    expected = torch.softmax(scores, dim=-1) @ charges / hardware.array.saturation_av
    out = gain_cell_attention(q, k, v, hardware)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("share", "n_seen", "n_kept"), [(0.3, 210, 63), (0.6, 105, 63), (0.15, 420, 63), (0.3, 211, 64)]
)
def test_a_share_that_is_a_whole_number_of_tokens_stays_that(share: float, n_seen: int, n_kept: int) -> None:
    charge, seen = torch.rand(1, 1, 1, 500), torch.arange(500) < n_seen
    taken = selected(charge, seen.view(1, 1, 1, -1), machine(Pruning(kept_share=share)), None)
    assert int(taken.sum()) == n_kept


def test_more_newest_tokens_than_the_arrays_hold_are_kept_while_decoding() -> None:
    hardware = machine(Pruning(kept_share=0.25), window=16, protection=Protection(n_recent=30))
    q, k, v = inputs(60)
    arrays = KVArrays(k, hardware, Chip(seed=0))
    with torch.no_grad():
        parts = [decode(*(x[:, :, t : t + 1] for x in (q, k, v)), arrays) for t in range(60)]
    torch.testing.assert_close(torch.cat(parts, dim=2), gain_cell_attention(q, k, v, hardware))


def test_keeping_everything_is_exact_attention_whatever_the_cells_are() -> None:
    q, k, v = inputs()
    coarse = {"storage_dac": Converter(n_levels=4, v_max=0.9), "noise": presets.typical()}
    hardware = machine(Pruning(kept_share=1.0), **coarse)
    scores = exact_scores(q, k, hardware)
    charges = hardware.cell.coefficients[1] * (v - 0.45)
    expected = torch.softmax(scores, dim=-1) @ charges / hardware.array.saturation_av
    torch.testing.assert_close(gain_cell_attention(q, k, v, hardware, chip=Chip(seed=1)), expected)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 1.0])
def test_the_share_is_kept_and_ties_with_it(share: float) -> None:
    charge = torch.linspace(-1, 1, 40, dtype=torch.float64).expand(1, 1, 3, 40)
    visible = torch.ones(3, 40, dtype=torch.bool)
    fine = machine(Pruning(kept_share=share))
    assert (selected(charge, visible, fine, None).sum(dim=-1) == math.ceil(40 * share)).all()
    steps = replace(fine, score_adc=Converter(n_levels=4, v_min=-1.0, coding="sign_magnitude"))  # three codes
    kept = selected(charge, visible, steps, None).sum(dim=-1)
    assert (kept >= math.ceil(40 * share)).all() and set(kept.flatten().tolist()) <= {10, 30, 40}


def test_a_comparator_holds_what_it_has_taken() -> None:
    charge = torch.tensor([0.0, 0.6, 0.4, 0.35, 0.2, 0.4, 0.6])[None, None, :, None]
    visible = torch.ones(7, 1, dtype=torch.bool)
    pruning = Pruning(select="threshold", threshold=0.5)
    taken = selected(charge, visible, machine(pruning), None).flatten().tolist()
    assert taken == [False, True, False, False, False, False, True]
    held = selected(charge, visible, machine(replace(pruning, hysteresis=0.2)), None).flatten().tolist()
    assert held == [False, True, True, True, False, False, True]
    # A query that is padding neither takes a token nor lets one go: those behind it find what was held.
    padding, hysteresis = (
        torch.tensor([[False, False, False, False, True, False, True]]),
        replace(pruning, hysteresis=0.2),
    )
    behind = selected(charge, visible, machine(hysteresis), None, padding).flatten()
    assert behind[~padding[0]].tolist() == [False, True, True, True, True]


def test_a_level_of_each_head() -> None:
    hardware, (q, k, v) = machine(Pruning(select="threshold")), inputs()
    none_and_all = Scaling(None, None, None, threshold=torch.tensor([math.inf, -math.inf]))
    out = gain_cell_attention(q, k, v, hardware, scaling=none_and_all)
    everything = gain_cell_attention(q, k, v, machine(Pruning(kept_share=1.0)))
    assert not out[:, 0].any()
    torch.testing.assert_close(out[:, 1], everything[:, 1])


def test_gradients_are_those_of_attention_of_what_is_kept() -> None:
    hardware = machine(Pruning(kept_share=0.3), storage_dac=Converter(n_levels=8, v_max=0.9))
    q, k, v = (x.requires_grad_() for x in inputs(T=12))
    _, inside = gain_cell_attention(q, k, v, hardware, details=True)
    kept = inside.phi > 0
    scores = (q @ (hardware.cell.coefficients[1] * (k - 0.45)).mT).masked_fill(~kept, -math.inf)
    expected = torch.softmax(scores, dim=-1) @ (hardware.cell.coefficients[1] * (v - 0.45)) / 40.0
    out = gain_cell_attention(q, k, v, hardware)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    for ours, theirs in zip(
        torch.autograd.grad(out, (q, k, v), upstream), torch.autograd.grad(expected, (q, k, v), upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("pruning", [Pruning(kept_share=0.3), Pruning(select="threshold", recompute="values")])
@pytest.mark.parametrize("protection", [Protection(), Protection(n_sink=2, n_recent=3)])
def test_token_by_token_is_the_whole_text(pruning: Pruning, protection: Protection) -> None:
    q, k, v = inputs(T=37)
    coarse = {"storage_dac": Converter(n_levels=8, v_max=0.9), "noise": presets.typical()}
    hardware = machine(pruning, window=16, protection=protection, **coarse)
    chip = Chip(seed=2)
    whole = gain_cell_attention(q, k, v, hardware, chip=chip, generator=torch.Generator().manual_seed(3))
    arrays = KVArrays(k, hardware, chip, torch.Generator().manual_seed(3))
    cuts = [0, 5, 6, 7, 8, 20, 21, 22, 37]
    pieces = [decode(*(x[:, :, a:b] for x in (q, k, v)), arrays) for a, b in zip(cuts, cuts[1:], strict=False)]
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, rtol=1e-5, atol=1e-8)
    assert len(arrays.memory.tokens) <= 16 + protection.n_sink  # the window, and what is kept for ever


def test_what_cannot_be() -> None:
    for wrong, names in (
        ({"kept_share": 0.0}, "kept_share"),
        ({"kept_share": 1.5}, "kept_share"),
        ({"hysteresis": -0.1}, "hysteresis"),
        ({"select": "best"}, "select"),
        ({"recompute": "nothing"}, "recompute"),
    ):
        with pytest.raises(ConfigError, match=f"pruning.{names}"):
            Pruning(**wrong)
    hardware = machine(Pruning(select="threshold", hysteresis=0.1))
    q, k, v = inputs(T=4)
    with pytest.raises(NotImplementedError, match="pruning.hysteresis"):
        decode(q, k, v, KVArrays(k, hardware, Chip(seed=0)))
