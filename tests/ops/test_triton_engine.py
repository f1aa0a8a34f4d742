"""`backend='triton'` through the public operator: scalers, converters, noise and chip in front of the kernels, and the
way back."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported, which is inside the first call

from dataclasses import replace

from aimc import presets
from aimc.hardware import Array, Leakage, Noise
from aimc.ops.attention import gain_cell_attention
from aimc.ops.effects.noise import Chip, draws_of
from aimc.ops.scaling import Affine, Scaling
from tests.ops.test_triton import MORE

pytest.importorskip("triton", reason="the triton backend needs the package triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ALL_NOISE = Noise(
    write_v=0.02,
    read_qk=0.03,
    read_av=0.04,
    mismatch_gain=0.1,
    mismatch_offset_v=0.02,
    column_gain=0.1,
    column_offset=0.05,
)
NAMES = (
    "query",
    "key",
    "value",
    "query scale",
    "query offset",
    "key scale",
    "key offset",
    "value scale",
    "value offset",
)


@pytest.mark.parametrize("noise", [pytest.param(Noise(), marks=MORE), ALL_NOISE], ids=["clean", "noisy"])
@pytest.mark.parametrize("scaled", [True, pytest.param(False, marks=MORE)])
def test_equals_eager_with_scalers_levels_and_padding(noise, scaled):
    T, hardware = 40, presets.gain_cell_cmos()
    hardware.array = Array(window=32, rows=16, saturation_qk=30.0, saturation_av=12.0)
    hardware.leakage = Leakage(tau_s=1.0, token_time_s=0.01)
    hardware.readout.n_levels = None  # the other levels stand in front of both implementations
    hardware.noise = noise
    g = torch.Generator().manual_seed(0)
    q = torch.rand(1, 2, T, 32, generator=g) * 1.4 - 0.2
    k, v = (torch.rand(1, 1, T, 32, generator=g) * 1.1 - 0.1 for _ in range(2))
    scalers = [torch.rand(n, generator=g) * 0.2 + at for n in (2, 1, 1) for at in (0.9, -0.1)]
    upstream = torch.randn(1, 2, T, 32, generator=g).to(DEVICE)
    padding = torch.zeros(1, T, dtype=torch.bool, device=DEVICE)
    padding[:, :5] = True
    results = []
    for backend in ("eager", "triton"):
        x = [t.to(DEVICE, copy=True).requires_grad_() for t in (q, k, v, *scalers)][: 9 if scaled else 3]
        out = gain_cell_attention(
            *x[:3],
            replace(hardware, backend=backend),
            scaling=Scaling(Affine(*x[3:5]), Affine(*x[5:7]), Affine(*x[7:9])) if scaled else None,
            key_padding=padding,
            chip=Chip(seed=3, layer=2),
            generator=torch.Generator().manual_seed(1),
        )
        results.append({"out": out.detach()} | dict(zip(NAMES, torch.autograd.grad(out, x, upstream), strict=False)))
    eager, triton = results
    assert eager["out"].abs().max() > 0.1
    for name, expected in eager.items():
        error = (triton[name] - expected).abs().max() / expected.abs().max()
        assert error <= 1e-5, f"{name}: relative error {error:.1e}"


def test_threshold_and_full_scales_of_heads():
    T, hardware = 40, presets.gain_cell_normalised()
    hardware.array = Array(window=32, rows=16, saturation_qk=30.0, saturation_av=12.0, full_scales="head")
    hardware.threshold, hardware.leakage = True, Leakage(tau_s=1.0, token_time_s=0.01)
    hardware.readout.n_levels = hardware.normaliser.counter.n_levels = None
    g = torch.Generator().manual_seed(0)
    data = [2.0 * torch.rand(1, 2, T, 32, generator=g) - 1.0, *(torch.rand(1, 1, T, 32, generator=g) for _ in "kv")]
    upstream = torch.randn(1, 2, T, 32, generator=g).to(DEVICE)
    results = []
    for backend in ("eager", "triton"):
        q, k, v = (t.to(DEVICE, copy=True).requires_grad_() for t in data)
        of_heads = {"pulse_threshold": [0.05, -0.1], "full_scale_qk": [1.0, 0.7], "full_scale_av": [0.8, 1.2]}
        of_heads["full_scale_of_sum"] = [0.15, 1.7]  # of 16 pulses: full now and then, and never
        scaling = Scaling(None, None, None, **{name: torch.tensor(x, device=DEVICE) for name, x in of_heads.items()})
        threshold = scaling.pulse_threshold.requires_grad_()
        out = gain_cell_attention(q, k, v, replace(hardware, backend=backend), scaling=scaling)
        grads = torch.autograd.grad(out, (q, k, v, threshold), upstream)
        results.append({"out": out.detach()} | dict(zip((*NAMES[:3], "threshold"), grads, strict=True)))
    for name, expected in results[0].items():
        assert expected.abs().max() > 0, name
        error = (results[1][name] - expected).abs().max() / expected.abs().max()
        assert error <= 1e-5, f"{name}: relative error {error:.1e}"


def test_the_noise_of_a_sequence_is_its_own_whatever_batch_it_is_read_in():
    hardware = presets.gain_cell_cmos()
    hardware.array = Array(window=32, rows=16, saturation_qk=30.0, saturation_av=12.0)
    hardware.noise, hardware.readout.n_levels = Noise(write_v=0.02, read_qk=0.03, read_av=0.04), None
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.rand(2, 1, 20, 16, generator=g).to(DEVICE) for _ in range(3))
    eager = gain_cell_attention(q, k, v, replace(hardware, backend="eager"), draws=draws_of(7, 40))
    second = gain_cell_attention(q[1:], k[1:], v[1:], replace(hardware, backend="triton"), draws=draws_of(7, 41))
    torch.testing.assert_close(second, eager[1:], atol=2e-4, rtol=1e-3)


def small(**changes):
    hardware = presets.gain_cell_cmos()
    hardware.array = Array(window=32, rows=16, saturation_qk=10.0, saturation_av=6.0)
    hardware.readout.n_levels = None
    return replace(hardware, backend="triton", **changes)


def three(T=20, D=16):
    g = torch.Generator().manual_seed(0)
    return [torch.rand(1, 1, T, D, generator=g).to(DEVICE).requires_grad_() for _ in range(3)]


def test_the_backward_pass_does_not_make_the_forward_pass_again(monkeypatch):
    from aimc.ops.triton import engine

    kept = []

    def counted(*args, keep=False):
        kept.append(keep)
        return forward(*args, keep=keep)

    forward = engine.triton_forward
    monkeypatch.setattr(engine, "triton_forward", counted)
    q, k, v = three()
    gain_cell_attention(q, k, v, small()).sum().backward()
    assert kept == [True]
    with torch.no_grad():
        gain_cell_attention(q, k, v, small())
    assert kept == [True, False]


@MORE
def test_more_sub_tiles_than_a_byte_has_bits():
    hardware = small(readout=presets.with_softmax(small()).readout)
    hardware.array = Array(window=160, rows=16, saturation_qk=10.0, saturation_av=1.5)
    hardware.readout.n_levels = None
    results = []
    for backend in ("eager", "triton"):
        x = three(T=190)
        out = gain_cell_attention(*x, replace(hardware, backend=backend))
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        results.append([out.detach(), *torch.autograd.grad(out, x, upstream)])
    for expected, got in zip(*results, strict=True):
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_gradients_of_the_clean_network():
    hardware = small(noise=Noise(read_qk=0.03, read_av=0.04), noise_gradient="clean")
    results = []
    for backend in ("eager", "triton"):
        x = three()
        generator = torch.Generator().manual_seed(1)
        out = gain_cell_attention(*x, replace(hardware, backend=backend), generator=generator)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), x)])
    for expected, got in zip(*results, strict=True):
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("activation", ["hard_sigmoid", "softmax"])
def test_what_is_kept_has_the_shapes_that_a_compiler_is_told(activation):
    from torch._subclasses.fake_tensor import FakeTensorMode

    from aimc.ops import fused

    hardware = small(activation=activation)
    q, k, v = three()
    rest = [None] * (len(fused._SCALING) + 1)  # and padding
    draws = torch.zeros(2, dtype=torch.int64)
    arguments = [*rest, draws.to(DEVICE), 0, 0, fused.pack(hardware), "triton", True]
    out, kept = torch.ops.aimc.gain_cell_attention(q.detach(), k.detach(), v.detach(), *arguments)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        told = torch.ops.aimc.gain_cell_attention(*(fake.from_tensor(x.detach()) for x in (q, k, v)), *arguments)
    assert [(x.shape, x.dtype) for x in (out, *kept)] == [(x.shape, x.dtype) for x in (told[0], *told[1])]
