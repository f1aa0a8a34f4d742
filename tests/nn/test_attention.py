"""The module: scalers in front of and behind the operator, per head."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import aimc
from aimc.hardware import Hardware
from aimc.hardware.presets import gain_cell_cmos, gain_cell_normalised, with_softmax
from aimc.nn.attention import PARTS, GainCellAttention
from aimc.nn.scaler import AffineScaler


def test_scaler_is_affine_per_head() -> None:
    scaler = AffineScaler(3, scale=2.0, offset=0.45)
    with torch.no_grad():
        scaler.scale[1], scaler.offset[2] = -1.0, 7.0
    x = torch.randn(2, 3, 5, 4)
    y = scaler(x)
    torch.testing.assert_close(y[:, 0], 2 * x[:, 0] + 0.45)
    torch.testing.assert_close(y[:, 1], -x[:, 1] + 0.45)
    torch.testing.assert_close(y[:, 2], 2 * x[:, 2] + 7)


def test_scaler_stays_in_float32_under_autocast() -> None:
    scaler = AffineScaler(1, scale=1.001)
    x = torch.full((1, 1, 1, 1), 0.7, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert scaler(x).dtype == torch.float32


def test_published_start(hardware: Hardware) -> None:
    """a = 1; b = 0.45 V for k and v, 0 for q and out (docs/physics.md, Scale)."""
    module = GainCellAttention(2, 1, hardware, layer=0)
    assert all((module.scaler(part).scale == 1).all() for part in PARTS)
    assert [module.scaler(part).offset[0].item() for part in PARTS] == pytest.approx([0, 0.45, 0.45, 0])
    assert [len(module.scaler(part).scale) for part in PARTS] == [2, 1, 1, 2]


def test_same_chip_same_output_other_chip_another(hardware: Hardware) -> None:
    hardware.noise.mismatch_gain = 0.2
    module = GainCellAttention(2, 2, hardware, layer=1)
    x = torch.rand(1, 2, 20, 8)
    module.chip_seed = 3
    first = module(x, x, x)
    assert torch.equal(first, module(x, x, x))
    module.chip_seed = 4
    assert not torch.equal(first, module(x, x, x))
    other_layer = GainCellAttention(2, 2, hardware, layer=2)
    other_layer.chip_seed = 3
    assert not torch.equal(first, other_layer(x, x, x))


def test_observer_sees_what_passes(hardware: Hardware) -> None:
    module = GainCellAttention(2, 2, hardware, layer=0)
    seen = {}
    module.observer = lambda layer, parts, details: seen.update(parts, details=details)
    module.observe_details = True
    x = torch.rand(1, 2, 6, 8)
    out = module(x, x, x)
    torch.testing.assert_close(seen["key"], x + 0.45)
    assert torch.equal(seen["output"], out)
    torch.testing.assert_close(seen["details"].A.sum(dim=3), out)


def test_dtype_of_the_query_comes_back(hardware: Hardware) -> None:
    x = torch.rand(1, 2, 6, 8, dtype=torch.bfloat16)
    assert GainCellAttention(2, 2, hardware, layer=0)(x, x, x).dtype == torch.bfloat16


def test_operator_is_public(hardware: Hardware) -> None:
    x = torch.rand(1, 2, 6, 8)
    assert aimc.gain_cell_attention(x, x, x, hardware).shape == x.shape


@pytest.mark.parametrize(
    "made",
    [gain_cell_cmos, gain_cell_normalised, lambda: with_softmax(gain_cell_cmos())],
    ids=["hard sigmoid", "normaliser", "softmax"],
)
@pytest.mark.parametrize("with_gradient", [True, False])
def test_parameters_keep_memory_that_can_be_resized(made: Callable[[], Hardware], with_gradient: bool) -> None:
    """What numpy has seen of a parameter can never be freed again, which FSDP does after every block."""
    hardware = made()
    hardware.threshold = not hardware.has_softmax
    module = GainCellAttention(2, 2, hardware, layer=0)
    x = torch.rand(1, 2, 40, 8, requires_grad=with_gradient)
    with torch.set_grad_enabled(with_gradient):
        out = module(x, x, x)
    if with_gradient:
        out.sum().backward()
    shared = [name for name, p in module.named_parameters() if not p.untyped_storage().resizable()]
    assert not shared
