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


def test_a_changed_file_empties_the_cache(monkeypatch, tmp_path):
    from aimc.ops.compiled import once

    monkeypatch.setattr(once, "CACHE", tmp_path / "__pycache__")
    source, kept = tmp_path / "reads.py", tmp_path / "__pycache__" / "reads.nbc"
    found = []
    for text in ("first", "first", "second"):
        source.write_text(text)
        with once.one_process_at_a_time():
            found.append(kept.exists())
            kept.write_text("machine code")
    assert found == [False, True, False]


def test_arguments_are_cast_to_the_signature():
    import numba
    import numpy as np

    from aimc.ops.compiled.activations import clip

    @numba.njit
    def clipped(charge, widths, sums):
        clip(charge, 0, widths, sums)

    charge, sums = np.array([[-1.0, 0.5, 2.0]], np.float32), np.zeros(1, np.float32)
    clipped(charge, widths := np.empty_like(charge), sums)
    assert widths.tolist() == [[0.0, 0.5, 1.0]] and sums.tolist() == [1.5]
    with pytest.raises(numba.TypingError):
        clipped(charge.astype(np.float64), widths, sums)
