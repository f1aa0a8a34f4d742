"""The compiled passes against those of PyTorch."""

import pytest
import torch

from aimc.hardware import Converter
from aimc.ops import compiled
from aimc.ops.blocked.reader import _weighted_sum
from aimc.ops.effects.converters import adc, adc_, dac_

pytestmark = pytest.mark.skipif(compiled.kernels() is None, reason="numba is not installed")

CONVERTERS = [
    Converter(v_min=-1.0, v_max=1.0, coding="sign_magnitude", n_levels=256),
    Converter(v_min=-0.7, v_max=0.7, coding="sign_magnitude", n_levels=8),
    Converter(v_min=0.0, v_max=1.0, n_levels=256),
    Converter(v_min=-0.3, v_max=0.9, n_levels=5),
    Converter(v_min=-1.0, v_max=1.0, coding="rounded", n_levels=17),
    Converter(v_min=-1.0, v_max=1.0),
    Converter(v_min=-1.0, v_max=1.0, n_levels=16, inl=0.1),
]


def in_torch(monkeypatch, compute):
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "kernels", lambda: None)
        return compute()


@pytest.mark.parametrize("converter", CONVERTERS, ids=lambda c: f"{c.coding}-{c.n_levels}-{c.inl:g}")
def test_levels_are_the_same_to_the_last_bit(converter, monkeypatch):
    x = torch.randn(50, 301)
    x[0, :7] = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.9, 1e9, -1e9])
    for convert in (adc_, dac_):
        expected = in_torch(monkeypatch, lambda convert=convert: convert(x.clone(), converter))
        assert torch.equal(convert(x.clone(), converter), expected)
    assert torch.equal(adc_(x.clone(), converter), adc(x, converter))


def test_part_of_a_buffer_is_converted_and_nothing_else():
    x, converter = torch.randn(3, 4, 30), CONVERTERS[0]
    for part in (x[..., 5:21], x.transpose(0, 1)[..., :3], x.transpose(1, 2)[:, 25:]):
        whole = x.clone()
        expected = adc(part, converter)
        adc_(part, converter)
        assert torch.equal(part, expected)
        x.copy_(whole)


@pytest.mark.parametrize("with_constant", [True, False])
def test_terms_add_up(with_constant, monkeypatch):
    terms, factors = torch.randn(2, 5, 4 * 8), torch.randn(5, 4)
    constant = torch.randn(2, 5, 1) if with_constant else None

    def added():
        out = torch.full((2, 5, 8), torch.nan)
        _weighted_sum(terms, factors, constant, out)
        return out

    torch.testing.assert_close(added(), in_torch(monkeypatch, added))


def test_only_where_it_fits(monkeypatch):
    x = torch.randn(3)
    assert compiled.kernels_for(x) is not None
    assert compiled.kernels_for(x.double()) is None and compiled.kernels_for(x.to("meta")) is None
    compiled.kernels.cache_clear()
    monkeypatch.setenv(compiled.SWITCH, "0")
    assert compiled.kernels_for(x) is None
    compiled.kernels.cache_clear()
