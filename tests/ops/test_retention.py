"""Where stored voltages leak to, and how fast each cell does: the leak target and the spread of retention times."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from aimc import presets
from aimc.hardware import Array, Cell, Converter, Hardware, Leakage, Noise, Protection
from aimc.ops.attention import gain_cell_attention
from aimc.ops.blocked import engine as blocked_engine
from aimc.ops.blocked import interpolation
from aimc.ops.blocked.interpolation import interpolation_error, nodes, nodes_needed
from aimc.ops.decode.arrays import KVArrays
from aimc.ops.effects import array as array_module
from aimc.ops.effects.cell import leaking_cell, transfer
from aimc.ops.effects.noise import ArrayId, Chip
from tests.ops.draws import draws_of
from tests.ops.reference import ring_buffer
from tests.ops.test_decode import step_by_step
from tests.ops.test_softmax import left_padding
from tests.ops.test_softmax import machine as softmax_machine

W, R, D = 16, 4, 3
SPREAD = Noise(tau_spread=0.5)
EVERYTHING = Noise(
    write_v=0.02,
    read_qk=0.03,
    read_av=0.04,
    mismatch_gain=0.1,
    mismatch_offset_v=0.02,
    column_gain=0.1,
    column_offset=0.05,
    tau_spread=0.5,
)
CHIP = Chip(seed=3, layer=2)


def machine(**changes) -> Hardware:
    """Twice the leakage of the other tests, to ground, and every converter bent."""
    hardware = Hardware(
        cell=Cell(coefficients=list(presets.CMOS_COEFFICIENTS), surrogate_slope=presets.LINEAR_SLOPE),
        leakage=Leakage(tau_s=1.0, token_time_s=0.4 / W, target_v=0.0),
        array=Array(window=W, rows=R, saturation_qk=12.0, saturation_av=8.0),
        input_dac=Converter(n_levels=16, inl=0.05),
        storage_dac=Converter(n_levels=8, v_max=0.9, inl=-0.06),
        readout=Converter(n_levels=32, v_min=-1.0, coding="sign_magnitude", inl=0.02),
        noise=EVERYTHING,
        backend="eager",
    )
    return replace(hardware, **changes)


def inputs(T, *, B=1, H=2, H_kv=1, D=D, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    q = torch.rand(B, H, T, D, generator=g, dtype=dtype) * 1.4 - 0.2
    k, v = (torch.rand(B, H_kv, T, D, generator=g, dtype=dtype) * 1.1 - 0.1 for _ in range(2))
    return q, k, v


def smooth(hardware: Hardware) -> Hardware:
    """Converters that only clip, far out behind the arrays."""
    wide = Converter(v_min=-9.0, v_max=9.0)
    array = replace(hardware.array, saturation_qk=40.0, saturation_av=30.0)
    return replace(hardware, array=array, input_dac=Converter(), storage_dac=Converter(v_max=0.9), readout=wide)


def inner_inputs(T, **sizes):
    q, k, v = inputs(T, **sizes)
    return [x.requires_grad_() for x in (q * 0.5 + 0.25, k * 0.3 + 0.52, v * 0.6 + 0.1)]


# --- The single-cell loop
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [SPREAD, EVERYTHING], ids=["spread alone", "everything"])
@pytest.mark.parametrize(("T", "B", "H", "H_kv"), [(10, 2, 2, 1), (W, 1, 2, 2), (40, 2, 4, 2)])
def test_every_effect_together_equals_the_ring_buffer(T, B, H, H_kv, noise):
    qkv, hardware = inputs(T, B=B, H=H, H_kv=H_kv), machine(noise=noise)
    out = gain_cell_attention(*qkv, hardware, chip=CHIP, generator=torch.Generator().manual_seed(5))
    expected = ring_buffer(*qkv, hardware, draws_of(hardware, CHIP, 5, B=B, H=H, H_kv=H_kv, T=T, D=D))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-9, rtol=1e-5)


@pytest.mark.parametrize("activation", ["hard_sigmoid", "softmax"])
def test_padding_and_protected_tokens_that_do_not_leak(activation):
    B, H, H_kv, T = 2, 4, 2, 40
    qkv, padding, protection = (
        inputs(T, B=B, H=H, H_kv=H_kv),
        left_padding(B, T, 5, 19),
        Protection(n_sink=2, n_recent=3),
    )
    hardware = machine(protection=protection)
    if activation == "softmax":
        bent = {
            name: replace(getattr(softmax_machine(), name), inl=0.02)
            for name in ("input_dac", "score_adc", "probability_dac")
        }
        hardware = replace(hardware, activation="softmax", **bent)
    out = gain_cell_attention(
        *qkv, hardware, key_padding=padding, chip=CHIP, generator=torch.Generator().manual_seed(5)
    )
    draws = draws_of(hardware, CHIP, 5, B=B, H=H, H_kv=H_kv, T=T, D=D)
    expected = ring_buffer(*qkv, hardware, draws, padding)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-9, rtol=1e-5)


def test_each_effect_changes_something_and_off_is_off_to_the_bit():
    qkv, off = inputs(40), machine(noise=Noise(), leakage=Leakage(tau_s=1.0, token_time_s=0.4 / W))
    off = replace(
        off, **{name: replace(getattr(off, name), inl=0.0) for name in ("input_dac", "storage_dac", "readout")}
    )
    for backend in ("eager", "blocked"):
        off = replace(off, backend=backend)
        plain = gain_cell_attention(*qkv, off)
        to_rest = replace(off, leakage=replace(off.leakage, target_v=off.cell.offset_v))
        still = replace(off, leakage=Leakage())
        still_to_ground, still_spread = replace(still, leakage=Leakage(target_v=0.0)), replace(still, noise=SPREAD)
        assert torch.equal(gain_cell_attention(*qkv, to_rest), plain)
        assert torch.equal(gain_cell_attention(*qkv, still_to_ground), gain_cell_attention(*qkv, still))
        assert torch.equal(gain_cell_attention(*qkv, still_spread, chip=CHIP), gain_cell_attention(*qkv, still))
        changes = [{"leakage": replace(off.leakage, target_v=0.0)}, {"noise": SPREAD}]
        changes += [{name: replace(getattr(off, name), inl=0.05)} for name in ("input_dac", "storage_dac", "readout")]
        for change in changes:
            assert not torch.allclose(gain_cell_attention(*qkv, replace(off, **change), chip=CHIP), plain, atol=1e-3), (
                change
            )


# --- The leak target
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target_v", [0.0, 0.2, 0.9])
def test_leaking_cell_is_the_same_cell_about_another_voltage(target_v):
    hardware = machine(
        leakage=Leakage(tau_s=1.0, target_v=target_v), cell=Cell(coefficients=[0.4, 9.0, -2.0, 30.0, 3.0, -20.0])
    )
    voltages = torch.linspace(0.0, 0.9, 19, dtype=torch.float64)
    moved = leaking_cell(hardware)
    assert moved.offset_v == target_v and moved.surrogate_slope == hardware.cell.surrogate_slope
    torch.testing.assert_close(transfer(voltages - target_v, moved), transfer(voltages - 0.45, hardware.cell))


@pytest.mark.parametrize("noise", [Noise(), SPREAD], ids=["alike", "spread"])
def test_voltages_end_at_the_target(noise):
    q, k, v = inputs(W)
    hardware = machine(noise=noise, leakage=Leakage(tau_s=1e-3, token_time_s=1e-9, target_v=0.9))
    _, arrays = step_by_step(q, k, v, hardware, None, [W], chip=CHIP)
    fresh = arrays.voltages(ArrayId.AV)
    arrays.wait(1e-3)
    log_tau = noise.tau_spread * CHIP.cell_retention(ArrayId.AV, 1, torch.arange(W), D, torch.float64)
    expected = 0.9 + (fresh - 0.9) * torch.exp(-torch.exp(-log_tau))
    torch.testing.assert_close(arrays.voltages(ArrayId.AV), expected, atol=1e-4, rtol=0)
    arrays.wait(1.0)
    torch.testing.assert_close(arrays.voltages(ArrayId.AV), torch.full_like(fresh, 0.9))


def test_refresh_restores_levels_of_a_bent_converter_in_cells_that_leak_apart():
    q, k, v = inputs(W)
    hardware = machine(noise=Noise(tau_spread=0.3), leakage=Leakage(tau_s=1.0, token_time_s=0.005 / W, target_v=0.0))
    hardware.storage_dac.inl = 0.15  # a level
    _, arrays = step_by_step(q, k, v, hardware, None, [1], chip=CHIP)
    _, fresh = step_by_step(q, k, v, replace(hardware, leakage=Leakage()), None, [1], chip=CHIP)
    assert (arrays.voltages(ArrayId.QK) - fresh.voltages(ArrayId.QK)).abs().max() > 2e-3
    for _ in range(2):
        arrays.refresh()
        torch.testing.assert_close(arrays.voltages(ArrayId.QK), fresh.voltages(ArrayId.QK))


# --- The spread
# ------------------------------------------------------------------------------------------------------------


def measured_log_tau(T, *, heads=64, spread=0.5, chip=CHIP, window=64, batch=1):
    """Logarithm of τ over the nominal one of one cell a slot, from the charge of a linear cell at its first read and 20
    tokens later."""
    hardware = replace(presets.ideal(), backend="eager", noise=Noise(tau_spread=spread))
    hardware = replace(hardware, leakage=Leakage(tau_s=1.0, token_time_s=1e-3), array=Array(window=window, rows=window))
    x = torch.full((batch, heads, T, 1), 0.9, dtype=torch.float64)
    S = gain_cell_attention(x, x, x, hardware, chip=chip, details=True)[1].S
    late = S.diagonal(offset=-20, dim1=-2, dim2=-1)
    rate = -torch.log(late / S.diagonal(dim1=-2, dim2=-1)[..., : T - 20]) / 20e-3
    return -torch.log(rate)  # [B, H, T - 20]


def test_retention_is_log_normal_with_the_spread_it_is_given():
    x = measured_log_tau(84)[0] / 0.5
    n = x.numel()
    assert x.mean().abs() < 4 / n**0.5
    assert (x.std() - 1).abs() < 4 / (2 * n) ** 0.5
    assert (x**3).mean().abs() < 4 * (15 / n) ** 0.5 and ((x**4).mean() - 3).abs() < 4 * (96 / n) ** 0.5


def test_retention_belongs_to_the_cell():
    x = measured_log_tau(3 * 64, heads=2, batch=2)
    torch.testing.assert_close(x[:, :, :64], x[:, :, 64:128])  # token s and s+W: the same cell
    assert torch.equal(x[0], x[1])  # one chip serves every sequence
    assert not torch.allclose(x[:, 0], x[:, 1], atol=0.1)
    for chip in (Chip(seed=4, layer=2), Chip(seed=3, layer=1)):
        assert not torch.allclose(measured_log_tau(84, heads=2, chip=chip)[0], x[0, :, :64], atol=0.1)


def test_a_cell_that_keeps_its_charge_longer_is_no_worse_at_anything_else():
    """Retention is drawn apart from gain and offset, and apart for the two arrays."""
    slots = torch.arange(500)
    draws = [
        draw(array, 2, slots, 8)
        for draw in (CHIP.cell_retention, CHIP.cell_gain, CHIP.cell_offset)
        for array in ArrayId
    ]
    correlations = torch.corrcoef(torch.stack([x.flatten().double() for x in draws])) - torch.eye(6)
    assert correlations.abs().max() < 4.5 / draws[0].numel() ** 0.5


def test_retention_spread_needs_a_chip():
    with pytest.raises(ValueError, match=r"noise\.tau_spread.*chip=Chip"):
        gain_cell_attention(*inputs(9), machine(noise=SPREAD))


# --- Gradients
# -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [6, 18])
def test_exact_gradients(T, monkeypatch):
    monkeypatch.setattr(array_module, "MOST_CELL_READS", 40)  # several runs, computed again in the backward pass
    hardware = smooth(machine())

    def operator(q, k, v):
        return gain_cell_attention(q, k, v, hardware, chip=CHIP, generator=torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(operator, inner_inputs(T, D=2), fast_mode=True)


def test_runs_of_queries_change_nothing(monkeypatch):
    results = []
    for most in (2**22, 40, 1):
        monkeypatch.setattr(array_module, "MOST_CELL_READS", most)
        qkv = inner_inputs(21, H=4, H_kv=2)
        out = gain_cell_attention(*qkv, machine(noise=SPREAD), chip=CHIP)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), qkv)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b)


def test_linear_surrogate_gradients_written_out():
    """The stored voltages receive the gradient of slope·r·u, each with the decay r of its own cell."""
    T, slope = 8, presets.LINEAR_SLOPE
    hardware = smooth(machine(noise=SPREAD))
    hardware.cell.gradient = "linear"
    q, k, v = inner_inputs(T, H=1)
    out, details = gain_cell_attention(q, k, v, hardware, chip=CHIP, details=True)
    upstream = torch.rand(1, 1, T, D, dtype=torch.float64)
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), upstream)

    t = torch.arange(T)
    ages = (t[:, None] - t).clamp(min=0)[..., None] * hardware.leakage.decay_per_token
    decays = [
        torch.exp(-ages * torch.exp(-0.5 * CHIP.cell_retention(array, 1, t, D, torch.float64)[0])) for array in ArrayId
    ]  # [T, S, D]
    seen = (t[:, None] >= t)[..., None]
    key_charge, value_charge = (
        seen * transfer(x[0, 0].detach() * r - 0.45, hardware.cell).detach()
        for x, r in zip((k, v), decays, strict=True)
    )
    dphi = torch.einsum("td,tsd->ts", upstream[0, 0], value_charge) / hardware.array.saturation_av
    phi = details.phi[0, 0].detach()
    dS = dphi * ((phi > 0) & (phi < 1)) / hardware.array.saturation_qk
    torch.testing.assert_close(dq[0, 0], torch.einsum("ts,tsd->td", dS, key_charge))
    torch.testing.assert_close(dk[0, 0], slope * torch.einsum("ts,tsd,td->sd", dS, seen * decays[0], q[0, 0].detach()))
    torch.testing.assert_close(
        dv[0, 0], slope * torch.einsum("ts,tsd,td->sd", phi, seen * decays[1], upstream[0, 0]) / 30.0
    )


# --- The blocked operator
# --------------------------------------------------------------------------------------------------


def eager_and_blocked(hardware, T, *, H=2, H_kv=1, D=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    q = torch.rand(1, H, T, D, generator=g, dtype=torch.float64) * 1.4 - 0.2
    k, v = (torch.rand(1, H_kv, T, D, generator=g, dtype=torch.float64) * 1.1 - 0.1 for _ in range(2))
    upstream = torch.randn(1, H, T, D, generator=g, dtype=torch.float64)
    results = []
    for backend in ("eager", "blocked"):
        x = [t.clone().requires_grad_() for t in (q, k, v)]
        generator = torch.Generator().manual_seed(1)
        out = gain_cell_attention(*x, replace(hardware, backend=backend), chip=CHIP, generator=generator)
        results.append([out.detach(), *torch.autograd.grad(out, x, upstream)])
    return results


def blocked_machine(spread, window=256, rows=64, *, per_token=1.56e-4, **changes):
    """Silicon CMOS, 12 layers, converters that only clip, far out behind the arrays: no clip's edge decides a
    gradient."""
    noise = Noise(
        write_v=0.01,
        mismatch_gain=0.05,
        mismatch_offset_v=0.02,
        column_gain=0.02,
        column_offset=0.01,
        tau_spread=spread,
    )
    array, wide = (
        Array(window=window, rows=rows, saturation_qk=160.0, saturation_av=40.0),
        Converter(v_min=-9.0, v_max=9.0),
    )
    hardware = replace(presets.gain_cell_cmos(), array=array, noise=noise, readout=wide)
    leakage = Leakage(tau_s=1.0, token_time_s=per_token, target_v=0.0)
    return replace(hardware, input_dac=Converter(), storage_dac=Converter(v_max=0.9), leakage=leakage, **changes)


@pytest.mark.parametrize("number", [2, 3, 4, 6])
@pytest.mark.parametrize("b", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_interpolation_between_nodes_is_inside_its_bound_and_the_bound_is_tight(n, b, number):
    at = nodes(100, 100 + n, number, torch.device("cpu"), torch.float64)
    middle, half = 99.5 + n / 2, max((n - 1) / 2, 0.5)

    def fading(t):
        return torch.exp(-b * (t - middle) / half)

    error = (at.weights @ fading(at.times) - fading(torch.arange(100, 100 + n, dtype=torch.float64))).abs().max()
    bound = interpolation_error(b, number)
    assert error <= bound + 1e-14
    assert n < 64 or bound < 1e-12 or error > 0.3 * math.exp(-2 * b) * bound
    torch.testing.assert_close(at.weights.sum(dim=1), torch.ones(n, dtype=torch.float64))


def test_as_many_nodes_as_needed():
    hardware = blocked_machine(0.3)
    needed = nodes_needed(hardware)
    b = 3 * 1.56e-4 * math.exp(4 * 0.3) * 63 / 2
    assert interpolation_error(b, needed) <= 1e-7 < interpolation_error(b, needed - 1)
    assert (
        nodes_needed(blocked_machine(0.3, per_token=1.0)) is None
        and nodes_needed(blocked_machine(3.0, per_token=1e-3)) is None
    )
    assert nodes_needed(blocked_machine(5.0)) is None


def test_blocked_error_is_inside_its_bound_and_the_bound_means_something(monkeypatch):
    """Two nodes only, so that there is an error. With linear cells and no edge met, sums carry its bound through both
    arrays."""
    monkeypatch.setattr(interpolation, "TOLERANCE", 1.0)
    T, n, rows, slope = 150, 64, 16, presets.LINEAR_SLOPE
    array, leakage = (
        Array(window=n, rows=rows, saturation_qk=500.0, saturation_av=40.0),
        Leakage(tau_s=1.0, token_time_s=4e-3),
    )
    wide = Converter(v_min=-99.0, v_max=99.0)
    hardware = replace(presets.ideal(), array=array, leakage=leakage, noise=Noise(tau_spread=0.3), readout=wide)
    assert nodes_needed(hardware) == 2
    g = torch.Generator().manual_seed(0)
    q, k, v = (0.46 + 0.44 * torch.rand(1, 1, T, 8, generator=g, dtype=torch.float64) for _ in range(3))
    eager, blocked = (
        gain_cell_attention(q, k, v, replace(hardware, backend=name), chip=CHIP)[0, 0] for name in ("eager", "blocked")
    )

    t, rate = torch.arange(T), leakage.decay_per_token
    rates = [rate * torch.exp(-0.3 * CHIP.cell_retention(a, 1, t % n, 8, torch.float64)[0]) for a in ArrayId]
    first = t // rows * rows
    middle, half = (first + (first + rows).clamp(max=T) - 1) / 2, (rows - 1) / 2
    seen = ((t[:, None] >= t) & (t[:, None] - t < n))[..., None]
    ages, ages_at_middle = ((x[:, None] - t)[..., None] for x in (t, middle))
    held = [seen * (x[0, 0] - 0.45) * torch.exp(-own * ages) for x, own in zip((k, v), rates, strict=True)]  # [T, S, D]
    off = [
        seen * (x[0, 0] - 0.45) * torch.exp(-own * ages_at_middle) * (own * half) ** 2 * torch.exp(own * half) / 4
        for x, own in zip((k, v), rates, strict=True)
    ]
    S, dS = (slope * torch.einsum("td,tsd->ts", q[0, 0], u) for u in (held[0], off[0]))
    phi, dphi = S / array.saturation_qk, dS / array.saturation_qk
    assert phi.max() < 1
    bound = (
        slope
        / array.saturation_av
        * (torch.einsum("ts,tsd->td", phi + dphi, off[1]) + torch.einsum("ts,tsd->td", dphi, held[1]))
    )
    torch.testing.assert_close(slope / array.saturation_av * torch.einsum("ts,tsd->td", phi, held[1]), eager)
    error = (blocked - eager).abs()
    assert (error <= bound).all()
    assert error.max() > 0.5 * bound.max()


@pytest.mark.parametrize("gradient", ["exact", "linear"])
@pytest.mark.parametrize(("H", "H_kv", "rows"), [(2, 1, 64), (4, 2, 16), (2, 2, 1)])
def test_blocked_equals_eager(H, H_kv, rows, gradient):
    hardware = blocked_machine(0.3, window=128 if rows > 1 else 24, rows=rows)
    hardware.cell.gradient = gradient
    eager, blocked = eager_and_blocked(hardware, 300 if rows > 1 else 40, H=H, H_kv=H_kv, D=8)
    for a, b in zip(blocked, eager, strict=True):
        assert (a - b).abs().max() < 3e-7 * b.abs().max()


def test_blocked_equals_eager_with_padding_in_float32():
    hardware = replace(
        blocked_machine(0.5, window=64, rows=16, per_token=2e-3), readout=Converter(n_levels=None, v_min=-1.0, inl=0.02)
    )
    q, k, v = inputs(150, B=2, H=4, H_kv=2, D=16, dtype=torch.float32)
    call = {"key_padding": left_padding(2, 150, 7, 90), "chip": CHIP}
    a, b = (
        gain_cell_attention(
            q, k, v, replace(hardware, backend=backend), generator=torch.Generator().manual_seed(0), **call
        )
        for backend in ("eager", "blocked")
    )
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("work_buffer_bytes", "span"), [(1, 1), (2**14, 96), (2**30, 10**6)])
def test_block_sizes_change_nothing(work_buffer_bytes, span, monkeypatch):
    hardware = blocked_machine(0.4, window=64, rows=16, per_token=1e-3)
    expected = eager_and_blocked(hardware, 200, H=4, H_kv=2, D=8)[1]
    monkeypatch.setattr(blocked_engine, "WORK_BUFFER_BYTES", work_buffer_bytes)
    monkeypatch.setattr(blocked_engine, "SPAN", span)
    for a, b in zip(eager_and_blocked(hardware, 200, H=4, H_kv=2, D=8)[1], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("per_token", "spread"), [(0.02, 0.5), (0.5, 0.001)])
def test_what_blocked_cannot_evaluate_is_eager(per_token, spread):
    qkv, hardware = inputs(70), blocked_machine(spread, per_token=per_token, window=64)
    eager = gain_cell_attention(
        *qkv, replace(hardware, backend="eager"), chip=CHIP, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(
        gain_cell_attention(*qkv, hardware, chip=CHIP, generator=torch.Generator().manual_seed(0)), eager
    )
    with pytest.raises(ValueError, match=r"hardware\.backend='blocked'.*noise\.tau_spread.*sub-tile.*eager"):
        gain_cell_attention(*qkv, replace(hardware, backend="blocked"), chip=CHIP)


def test_decoding_after_a_day():
    """Ages are exact after any pause, and cells that have leaked away stay where they ended."""
    q, k, v = inputs(20, dtype=torch.float32)
    hardware = machine(noise=SPREAD, leakage=Leakage(tau_s=5e-3, token_time_s=1e-6, target_v=0.0))
    arrays = KVArrays(k, hardware, CHIP)
    out, arrays = step_by_step(
        q, k, v, hardware, None, [1], chip=CHIP, each=lambda a: a.n_tokens == 10 and a.wait(86400.0)
    )
    assert torch.isfinite(out).all()
    voltages = arrays.voltages(ArrayId.QK)
    fresh = (arrays.tokens >= 10) & (arrays.tokens < 20)
    assert (voltages[:, :, ~fresh] == 0).all() and math.isfinite(voltages.sum())
    assert (voltages[:, :, fresh] > 0.05).any()
