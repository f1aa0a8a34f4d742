"""The softmax activation and protected tokens: equal to the single-cell loop, and to digital attention where the arrays
are ideal."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from aimc import presets
from aimc.hardware import Array, Converter, Leakage, Noise, Protection
from aimc.ops.attention import gain_cell_attention
from aimc.ops.effects.noise import Chip
from aimc.ops.scaling import Scaling
from tests.ops.reference import ring_buffer

W, R, D = 16, 4, 3
SIGNED = Converter(n_levels=16, v_min=-1.0, v_max=1.0, coding="sign_magnitude")
ADC = Converter(n_levels=64, v_min=-1.0, v_max=1.0, coding="sign_magnitude")


def machine(**changes):
    hardware = presets.gain_cell_cmos()
    hardware.array = Array(window=W, rows=R, saturation_qk=12.0, saturation_av=8.0)
    hardware.leakage = Leakage(tau_s=1.0, token_time_s=0.2 / W)
    softmax = dict(activation="softmax", input_dac=SIGNED, score_adc=ADC, probability_dac=Converter(n_levels=16))
    return replace(hardware, **{**softmax, **changes})


def inputs(T, *, B=2, H=4, H_kv=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    q = torch.rand(B, H, T, D, generator=g, dtype=torch.float64) * 2.4 - 1.2
    k, v = (torch.rand(B, H_kv, T, D, generator=g, dtype=torch.float64) * 1.1 - 0.1 for _ in range(2))
    return q, k, v


def assert_equals_ring_buffer(hardware, qkv, padding=None):
    gain = torch.linspace(0.2, 0.5, qkv[0].shape[1], dtype=torch.float64)
    scaling = Scaling(None, None, None, gain)
    out = gain_cell_attention(*qkv, hardware, scaling=scaling, key_padding=padding)
    expected = ring_buffer(*qkv, hardware, padding=padding, score_gain=gain)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-9, rtol=1e-5)


def left_padding(B, T, *lengths):
    padding = torch.zeros(B, T, dtype=torch.bool)
    for b, n in enumerate(lengths):
        padding[b, :n] = True
    return padding


@pytest.mark.parametrize("T", [1, 7, 16, 17, 50])
def test_softmax_equals_the_ring_buffer(T):
    assert_equals_ring_buffer(machine(), inputs(T))


def test_softmax_with_left_padding():
    assert_equals_ring_buffer(machine(), inputs(40), left_padding(2, 40, 6, 19))


PROTECTIONS = [Protection(n_sink=3), Protection(n_recent=1), Protection(n_recent=5), Protection(n_sink=2, n_recent=3)]


@pytest.mark.parametrize("activation", ["softmax", "hard_sigmoid"])
@pytest.mark.parametrize("protection", PROTECTIONS, ids=str)
def test_protected_tokens_are_digital(activation, protection):
    changes = {} if activation == "softmax" else {"activation": activation, "input_dac": Converter(n_levels=16)}
    assert_equals_ring_buffer(machine(protection=protection, **changes), inputs(40))
    assert_equals_ring_buffer(machine(protection=protection, **changes), inputs(24), left_padding(2, 24, 5, 0))


def ideal(**changes):
    """Linear cells, converters that only clip far out."""
    wide = dict(
        input_dac=Converter(v_min=-1.0, v_max=1.0),
        score_adc=Converter(v_min=-1e3, v_max=1e3),
        readout=Converter(v_min=-1e3, v_max=1e3),
    )
    return replace(presets.ideal(), activation="softmax", array=Array(window=64, rows=16), **{**wide, **changes})


def test_ideal_arrays_are_digital_attention():
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 4, 50, 8, generator=g, dtype=torch.float64) for _ in range(3))
    slope, step = presets.LINEAR_SLOPE, 0.1
    hardware = ideal()
    gain = torch.full((4,), 8**-0.5 / (slope * step**2), dtype=torch.float64)
    out = gain_cell_attention(
        step * q, step * k + 0.45, step * v + 0.45, hardware, scaling=Scaling(None, None, None, gain)
    )
    clipped = [x.clamp(-4.5, 4.5) for x in (k, v)]
    expected = scaled_dot_product_attention(q.clamp(-10, 10), *clipped, is_causal=True)
    torch.testing.assert_close(out * hardware.array.saturation_av / (slope * step), expected)


def test_full_protection_is_digital_attention_whatever_the_arrays_do():
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 2, 30, 8, generator=g, dtype=torch.float64) for _ in range(3))
    hardware = machine(protection=Protection(n_recent=100), noise=Noise(write_v=0.1, mismatch_gain=0.5, read_qk=0.5))
    slope = hardware.cell.coefficients[1]
    gain = torch.full((2,), 8**-0.5 / slope, dtype=torch.float64)
    out = gain_cell_attention(
        q, k + 0.45, v + 0.45, hardware, scaling=Scaling(None, None, None, gain), chip=Chip(seed=1)
    )
    expected = scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close((out * hardware.array.saturation_av - hardware.cell.coefficients[0]) / slope, expected)


def test_gradients_of_softmax_and_protection():
    hardware = machine(
        input_dac=Converter(v_min=-1.0),
        storage_dac=Converter(v_max=0.9),
        score_adc=Converter(v_min=-10.0, v_max=10.0),
        probability_dac=Converter(),
        readout=Converter(v_min=-10.0, v_max=10.0),
        protection=Protection(n_sink=1, n_recent=2),
    )
    q, k, v = (0.8 * x.clamp(-0.9, 0.95).abs().clamp(0.05, 0.85).requires_grad_() for x in inputs(9, B=1))
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    gain = torch.full((4,), 0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda q, k, v, gain: gain_cell_attention(q, k, v, hardware, scaling=Scaling(None, None, None, gain)),
        (q, k, v, gain),
    )


def test_triton_says_what_it_does_not_have():
    with pytest.raises(ValueError, match="hardware.backend='triton'.*pruned_softmax.*blocked"):
        gain_cell_attention(*inputs(9), machine(backend="triton", activation="pruned_softmax"))


def test_score_gain_of_another_size():
    with pytest.raises(ValueError, match=r"scaling.score has shape \(3,\).*\(4,\)"):
        gain_cell_attention(*inputs(9), machine(), scaling=Scaling(None, None, None, torch.ones(3)))
