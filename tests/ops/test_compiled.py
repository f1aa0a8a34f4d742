"""The compiled passes against those of PyTorch."""

import pytest
import torch

from aimc.hardware import Converter
from aimc.ops import compiled
from aimc.ops.blocked.reader import _weighted_sum
from aimc.ops.conversion import converted, converter_gradient
from aimc.ops.effects.converters import adc, adc_, dac, dac_
from aimc.ops.scaling import Affine, scaled

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


def laid_out(shape, how):
    """Numbers as models hand them on: by token, side by side in one projection, one for all heads, in no order."""
    if how == "by token":
        return torch.randn(shape[0], shape[2], shape[1], shape[3]).transpose(1, 2)
    if how == "of a projection":
        return torch.randn(shape[0], shape[2], 3, shape[1], shape[3])[:, :, 1].transpose(1, 2)
    if how == "expanded":
        return torch.randn(shape[0], 1, *shape[2:]).expand(shape)
    return torch.randn(*shape[:2], shape[3], shape[2]).mT


@pytest.fixture(params=["alone", "in parts"])
def in_parts(request, monkeypatch):
    """On one thread, and on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if request.param == "alone" else 2)
    monkeypatch.setattr("aimc.ops.compiled.threads.LEAST", 1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("converter", CONVERTERS, ids=lambda c: f"{c.coding}-{c.n_levels}-{c.inl:g}")
@pytest.mark.parametrize("how", ["by token", "of a projection", "expanded", "transposed"])
@pytest.mark.parametrize("has_scaler", [True, False])
def test_what_is_scaled_and_converted_is_the_same_to_the_last_bit(converter, how, has_scaler, in_parts, monkeypatch):
    x = laid_out((2, 3, 50, 5), how)
    affine = Affine(torch.tensor([0.3, 1.0, 2.0]), torch.tensor([0.1, 0.0, -0.2])) if has_scaler else None

    def made():
        return converted(x, affine, converter, less=0.45, over=torch.tensor([0.5, 1.0, 3.0])[:, None, None])

    assert torch.equal(made(), in_torch(monkeypatch, made))


@pytest.mark.parametrize("how", ["by token", "of a projection", "expanded", "transposed"])
@pytest.mark.parametrize("has_scaler", [True, False])
def test_the_way_back_through_a_converter_is_that_of_autograd(how, has_scaler, in_parts):
    x = laid_out((2, 3, 300, 5), how)
    x[0, 0, 0, :3] = torch.tensor([0.7, -0.7, 1e9])
    scalers = [torch.tensor([1.0, 0.3, 2.0]), torch.tensor([0.0, 0.1, -0.2])]
    given = [t.clone().requires_grad_() for t in (x, *scalers)]
    grad = torch.randn(2, 3, 300, 5)
    affine = Affine(*given[1:]) if has_scaler else None
    at_converter = scaled(given[0], affine)
    expected = torch.autograd.grad(dac(at_converter, CONVERTERS[1]), given[: 3 if has_scaler else 1], grad)
    of_x, of_scaler = converter_gradient(grad, x, Affine(*scalers) if has_scaler else None, CONVERTERS[1])
    torch.testing.assert_close(of_x, expected[0], rtol=0, atol=0)
    if has_scaler:
        torch.testing.assert_close(of_scaler, torch.stack(expected[1:]), rtol=1e-4, atol=1e-4)
    else:
        assert not of_scaler.any()


def test_no_tokens_are_converted_to_none():
    x, affine = torch.empty(2, 3, 0, 5), Affine(torch.ones(3), torch.zeros(3))
    assert converted(x, affine, CONVERTERS[0]).shape == x.shape
    of_x, of_scaler = converter_gradient(x, x, affine, CONVERTERS[0])
    assert of_x.shape == x.shape and not of_scaler.any() and of_scaler.shape == (2, 3)


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
