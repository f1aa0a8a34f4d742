import pytest
import torch

from aimc import presets
from aimc.config import Converter
from aimc.ops.quantize import quantize


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 3, 8, 15, 16, 256])
@pytest.mark.parametrize(("v_min", "v_max"), [(0.0, 0.9), (0.0, 1.0), (-0.3, 0.7), (0.1, 0.8)])
def test_unsigned_makes_exactly_n_levels_inside_the_range(n, v_min, v_max, dtype):
    x = torch.linspace(v_min - 1, v_max + 1, 40_001, dtype=dtype)
    levels = quantize(x, Converter(n_levels=n, v_min=v_min, v_max=v_max)).unique()
    assert len(levels) == n
    assert levels.min() >= torch.tensor(v_min, dtype=dtype) and levels.max() <= torch.tensor(v_max, dtype=dtype)
    torch.testing.assert_close(levels, torch.linspace(v_min, v_max, n, dtype=dtype))


@pytest.mark.parametrize(("n", "v_max"), [(4, 1.0), (32, 1.0), (256, 1.0), (32, 0.7)])
def test_sign_magnitude_is_symmetric_with_zero_and_one_code_less(n, v_max):
    x = torch.linspace(-2, 2, 40_001)
    levels = quantize(x, Converter(n_levels=n, v_min=-v_max, v_max=v_max, coding="sign_magnitude")).unique()
    assert len(levels) == n - 1
    assert 0.0 in levels.tolist()
    torch.testing.assert_close(levels, torch.arange(-(n // 2 - 1), n // 2) * (v_max / (n // 2 - 1)))
    assert levels.abs().max() <= v_max


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_published_readout_makes_33_levels_and_leaves_the_range(dtype):
    levels = quantize(torch.linspace(-2, 2, 40_001, dtype=dtype), presets.published().readout).unique()
    assert len(levels) == 33
    assert levels.max().item() == pytest.approx(16 * 2 / 31) and levels.min().item() == pytest.approx(-16 * 2 / 31)


def test_nearest_level_is_chosen():
    x = torch.rand(1000, dtype=torch.float64) * 0.9
    y = quantize(x, Converter(n_levels=8, v_max=0.9))
    assert (x - y).abs().max() <= 0.9 / 7 / 2 + 1e-12


@pytest.mark.parametrize("n", [None, 8])
@pytest.mark.parametrize("coding", ["unsigned", "sign_magnitude", "rounded"])
def test_gradient_is_straight_through_inside_and_zero_outside(n, coding):
    x = torch.tensor([-1.5, -1.0, -0.3, 0.0, 0.77, 1.0, 1.0001], requires_grad=True)
    quantize(x, Converter(n_levels=n, v_min=-1.0, v_max=1.0, coding=coding)).backward(torch.arange(1.0, 8.0))
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0]


def test_without_levels_it_only_clips():
    x = torch.tensor([-0.5, 0.123, 1.5])
    assert quantize(x, Converter()).tolist() == pytest.approx([0.0, 0.123, 1.0])
