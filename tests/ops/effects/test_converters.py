import pytest
import torch

from aimc import presets
from aimc.hardware import Converter
from aimc.ops.effects.converters import adc, adc_, before_dac, dac, quantize


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


# --- Integral nonlinearity
# -------------------------------------------------------------------------------------------------

BENT = [
    Converter(n_levels=8, v_max=0.9, inl=0.1),
    Converter(n_levels=16, v_min=-0.3, v_max=0.7, inl=-0.24),
    Converter(n_levels=32, v_min=-1.0, coding="sign_magnitude", inl=0.05),
    Converter(v_max=0.9, inl=0.24),
]


@pytest.mark.parametrize("converter", BENT, ids=str)
def test_a_bent_dac_has_displaced_levels_in_order_between_the_same_ends(converter):
    n, low, high = converter.n_levels or 1001, converter.v_min, converter.v_max
    n -= converter.coding == "sign_magnitude"
    x = torch.linspace(low, high, n, dtype=torch.float64)
    levels = dac(x, converter)
    assert levels[0] == low and levels[-1] == pytest.approx(high) and (levels.diff() > 0).all()
    z = torch.linspace(0, 1, n, dtype=torch.float64)
    torch.testing.assert_close(levels, x + converter.inl * (high - low) * 4 * z * (1 - z))
    off_line = (levels - x).abs().max() / (high - low)
    assert off_line <= abs(converter.inl) + 1e-12 and off_line > 0.9 * abs(converter.inl)
    if converter.n_levels is not None:
        assert len(dac(torch.linspace(low - 1, high + 1, 9999, dtype=torch.float64), converter).unique()) == n


@pytest.mark.parametrize("converter", [c for c in BENT if c.n_levels], ids=str)
def test_a_bent_adc_has_ideal_codes_and_displaced_thresholds(converter):
    x = torch.linspace(converter.v_min - 0.5, converter.v_max + 0.5, 400_001, dtype=torch.float64)
    codes, ideal = adc(x, converter), quantize(x, converter)
    assert torch.equal(codes.unique(), ideal.unique()) and (codes.diff() >= 0).all()
    bent, straight = (x[1:][of.diff() > 0] for of in (codes, ideal))
    span = converter.v_max - converter.v_min
    z = (bent - converter.v_min) / span
    torch.testing.assert_close(bent + converter.inl * span * 4 * z * (1 - z), straight, atol=1e-5, rtol=0)
    torch.testing.assert_close(adc_(x.clone(), converter), codes, rtol=0, atol=0)


def test_the_nonlinearity_of_a_signed_readout_is_an_offset_at_zero():
    readout = Converter(v_min=-1.0, inl=0.02)
    assert adc(torch.tensor([-1.0, 0.0, 1.0]), readout).tolist() == pytest.approx([-1.0, 0.04, 1.0])


@pytest.mark.parametrize("converter", BENT, ids=str)
@pytest.mark.parametrize("convert", [dac, adc])
def test_the_nonlinearity_is_not_in_the_gradient(convert, converter):
    x = torch.tensor(
        [converter.v_min - 0.1, converter.v_min, 0.2, converter.v_max, converter.v_max + 0.1], requires_grad=True
    )
    convert(x, converter).backward(torch.arange(1.0, 6.0))
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]


@pytest.mark.parametrize("inl", [-0.249, -0.1, 1e-6, 0.2, 0.249])
def test_what_a_bent_dac_was_given(inl):
    bent = Converter(v_min=0.1, v_max=0.9, inl=inl)
    x = torch.linspace(0.1, 0.9, 101, dtype=torch.float64)
    torch.testing.assert_close(before_dac(dac(x, bent), bent), x, atol=1e-9, rtol=0)


@pytest.mark.parametrize("convert", [dac, adc])
def test_a_straight_converter_is_quantize_to_the_bit(convert):
    x, converter = torch.randn(1000), Converter(n_levels=16, v_min=-1.0)
    assert torch.equal(convert(x, converter), quantize(x, converter))
