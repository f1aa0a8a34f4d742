"""The options beside the published circuit (normaliser column, threshold, signed pulses): blocked against eager, each
gradient by name, and what they are for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aimc import presets
from aimc.hardware import Array, Converter, Hardware, Noise, Normaliser, Protection
from aimc.ops.attention import gain_cell_attention
from aimc.ops.effects.noise import Chip
from aimc.ops.scaling import Affine, Scaling

H, H_KV, D = 4, 2, 8
NAMES = ("query", "key", "value", *(f"{part} {x}" for part in ("query", "key", "value") for x in ("scale", "offset")))


def machine(**changes) -> Hardware:
    hardware = presets.gain_cell_cmos()
    return replace(
        hardware,
        array=Array(window=64, rows=16, saturation_qk=30.0, saturation_av=12.0),
        leakage=replace(hardware.leakage, tau_s=1.0, token_time_s=0.005),
        input_dac=Converter(n_levels=32, v_min=-1.0, coding="sign_magnitude"),
        normaliser=Normaliser(is_on=True, full_scale=6.0, counter=Converter(n_levels=64)),
        threshold=True,
        **changes,
    )


def inputs(T: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = [torch.randn(2, n, T, D, generator=g, dtype=torch.float64) for n in (H, H_KV, H_KV)]
    for n, scale, offset in ((H, 0.7, 0.05), (H_KV, 0.3, 0.45), (H_KV, 0.3, 0.5)):
        x += [torch.full((n,), float(number), dtype=torch.float64) for number in (scale, offset)]
    x.append(torch.tensor([0.0, 0.1, -0.05, 0.2], dtype=torch.float64))  # θ
    return [tensor.requires_grad_() for tensor in x]


def attended(
    x: list[torch.Tensor], hardware: Hardware, padded: bool = True, **references: torch.Tensor
) -> torch.Tensor:
    padding = torch.zeros(2, x[0].shape[2], dtype=torch.bool)
    padding[0, :3] = padded
    scaling = Scaling(Affine(*x[3:5]), Affine(*x[5:7]), Affine(*x[7:9]), pulse_threshold=x[9], **references)
    generator = torch.Generator().manual_seed(5)
    out = gain_cell_attention(
        *x[:3], hardware, scaling=scaling, key_padding=padding, chip=Chip(seed=3, layer=1), generator=generator
    )
    assert isinstance(out, torch.Tensor)
    return out


def of_heads() -> dict[str, torch.Tensor]:
    """Some fill every other counter."""
    factors = {"full_scale_av": [0.4, 1.3, 0.8, 2.0], "full_scale_of_sum": [0.3, 1.0, 0.1, 3.0]}
    return {name: torch.tensor(x, dtype=torch.float64) for name, x in factors.items()}


@pytest.mark.parametrize("least", [0.0, 0.4], ids=["a step", "so many pulses"])
@pytest.mark.parametrize("references", [False, True], ids=["one for all", "one a head"])
@pytest.mark.parametrize("T", [5, 70, 150], ids=["short", "the ring wraps", "it wraps twice"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"noise": presets.typical()}, {"protection": Protection(n_sink=2, n_recent=5), "noise": presets.typical()}],
    ids=["clean", "typical", "protected"],
)
def test_blocked_is_eager(changes, T, references, least) -> None:
    x, results = inputs(T), []
    upstream = torch.randn(2, H, T, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for backend in ("eager", "blocked"):
        hardware = machine(backend=backend, **changes)
        hardware.normaliser.least = least
        out = attended(x, hardware, **(of_heads() if references else {}))
        results.append((out.detach(), *torch.autograd.grad(out, x, upstream)))
    for name, eager, blocked in zip(("out", *NAMES, "threshold"), *results, strict=True):
        assert eager.abs().max() > 1e-3, name
        error = (blocked - eager).abs().max() / eager.abs().max()
        assert error < 1e-10, f"{name}: {error:.1e}"


def test_a_factor_of_a_head_is_another_full_scale_of_its_counter() -> None:
    """Clean and noisy, clipped and divided by the least that there is."""
    x, hardware = inputs(40), replace(machine(), noise=presets.typical())
    for factor in (0.02, 0.25, 4.0):
        normaliser = replace(hardware.normaliser, full_scale=6.0 * factor)
        other = attended(x, replace(hardware, normaliser=normaliser))
        of_heads = attended(x, hardware, full_scale_of_sum=torch.full((H,), factor, dtype=torch.float64))
        torch.testing.assert_close(of_heads, other, rtol=1e-12, atol=1e-12)
        assert (of_heads - attended(x, hardware)).abs().max() > 1e-3


def test_gradient_of_the_threshold_is_the_slope() -> None:
    hardware = machine(backend="eager")
    ideal = replace(
        hardware, input_dac=Converter(v_min=-1.0), storage_dac=Converter(v_max=0.9), readout=Converter(v_min=-1.0)
    )
    ideal = replace(ideal, normaliser=Normaliser(is_on=True, full_scale=16.0))
    x = inputs(20)
    (slope,) = torch.autograd.grad(attended(x, ideal).sum(), x[9])
    step = 1e-6
    for head in range(H):
        moved = []
        for sign in (1, -1):
            y = [tensor.detach().clone() for tensor in x]
            y[9][head] += sign * step
            moved.append(float(attended(y, ideal).sum()))
        assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(float(slope[head]), rel=1e-4)


def test_a_normalised_head_gives_a_mean_however_long_the_text() -> None:
    """Of equal keys and values all outputs are the cell's charge for that value over A_sat; without the column they
    grow with the text."""
    hardware = replace(machine(), normaliser=Normaliser(is_on=True, full_scale=16.0), leakage=presets.ideal().leakage)
    wide = replace(hardware.array, saturation_av=200.0)  # no counter is full
    hardware = replace(hardware, readout=Converter(v_min=-1.0), array=wide)
    x = inputs(40)
    for tensor in x[:3]:
        tensor.data.copy_(tensor[:, :, :1].expand_as(tensor))
    out = attended(x, hardware, padded=False)
    assert (out - out[:, :, :1]).abs().max() < 1e-9 and out.abs().max() > 1e-3
    without = attended(x, replace(hardware, normaliser=Normaliser()), padded=False)
    assert without[:, :, 9].abs().max() > 5 * without[:, :, :1].abs().max()


def test_a_query_that_meets_next_to_nothing_is_not_blown_up() -> None:
    hardware = machine()
    x = inputs(20)
    x[9].data.fill_(50.0)  # no key passes
    assert attended(x, replace(hardware, noise=Noise(read_av=0.001))).abs().max() < 1.0
