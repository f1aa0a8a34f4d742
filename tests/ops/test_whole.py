"""Spans that are read in one compiled call, against the eager operator in float32 and against the runs."""

from dataclasses import replace

import pytest
import torch

from aimc import presets
from aimc.hardware import Array, Cell, Converter, Features, Leakage, Noise, Normaliser, Protection
from aimc.ops import compiled
from aimc.ops.attention import gain_cell_attention
from aimc.ops.blocked import engine, whole
from aimc.ops.blocked.folds import fold
from aimc.ops.effects.noise import Chip
from aimc.ops.scaling import Affine, Scaling
from tests.ops.test_blocked import ALL_NOISE, CUBIC, QUINTIC, both, machine
from tests.ops.test_blocked_softmax import both as softmax_both
from tests.ops.test_blocked_softmax import machine as softmax_machine
from tests.ops.test_normaliser import attended, inputs
from tests.ops.test_normaliser import machine as normalised_machine

pytestmark = pytest.mark.skipif(compiled.kernels() is None, reason="numba is not installed")


def by_runs(monkeypatch, compute):
    with monkeypatch.context() as patch:
        patch.setattr(engine, "fitting_kernels", lambda call: None)
        return compute()


@pytest.fixture
def counted(monkeypatch):
    """How many spans were read in one call."""
    found = []
    for name in ("read", "back"):
        method = getattr(whole.Whole, name)
        monkeypatch.setattr(whole.Whole, name, lambda *args, m=method, n=name: (found.append(n), m(*args))[1])
    return found


def assert_agree(hardware, T, counted, **kwargs):
    """A charge within rounding of a clip passes a gradient in one order of summation and not in another: such a query
    or key is one of few."""
    eager, blocked = both(hardware, T, dtype=torch.float32, **kwargs)
    assert {"read", "back"} <= set(counted)
    for name, expected in eager.items():
        error = (blocked[name] - expected).abs() / expected.abs().max().clamp(min=1e-30)
        assert error.isfinite().all()
        off = (error > 2e-5).float().mean() if error.ndim > 1 else (error > 1e-3).float().mean()
        assert off <= (0.0 if name == "out" else 0.01), f"{name}: {off:.1e} are off, by at most {error.max():.1e}"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"leakage": Leakage()},
        {"leakage": Leakage(tau_s=1.0, token_time_s=0.003, target_v=0.0), "noise": ALL_NOISE},
        {"leakage": Leakage(tau_s=1.0, token_time_s=2.0)},
        {"cell": Cell(coefficients=QUINTIC, gradient="linear", surrogate_slope=19.3)},
        {"cell": Cell(coefficients=CUBIC, gradient="linear", surrogate_slope=9.0), "noise": ALL_NOISE},
        {"cell": Cell(coefficients=[0.0, 19.3])},
        {"noise": ALL_NOISE},
        *({"noise": ALL_NOISE.only(name)} for name in ALL_NOISE.active()),
        {"readout": Converter(v_min=-0.2, v_max=0.3)},
        {"input_dac": Converter(inl=0.1), "storage_dac": Converter(v_max=0.9, inl=-0.1)},
    ],
    ids=lambda c: "+".join(f"{k}={v.active() if isinstance(v, Noise) else ''}" for k, v in c.items()),
)
def test_every_effect(changes, counted):
    assert_agree(machine(128, 32, **changes), 200, counted, D=16)


@pytest.mark.parametrize(("window", "rows"), [(64, 1), (24, 24), (640, 16), (128, 64)])
@pytest.mark.parametrize("T", [1, 65, 700])
def test_every_length_and_window(T, window, rows, counted):
    hardware = machine(window, rows, noise=ALL_NOISE.only("read_av"))
    assert_agree(hardware, T, counted, D=1 if rows == 24 else 8)


@pytest.mark.parametrize(("H", "H_kv"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("span", [70, 2048])
def test_groups_padding_and_spans(H, H_kv, span, counted, monkeypatch):
    monkeypatch.setattr(engine, "SPAN", span)
    padding = torch.zeros(2, 300, dtype=torch.bool)
    padding[0, :70], padding[1, -40:] = True, True
    hardware = machine(64, 16, noise=ALL_NOISE)
    assert_agree(hardware, 300, counted, B=2, H=H, H_kv=H_kv, padding=padding, scaled=span == 70)


def assert_close(expected, found, most_off=0.01):
    for name, one in expected.items():
        error = (found[name] - one).abs() / one.abs().max().clamp(min=1e-30)
        assert error.isfinite().all(), name
        off = (error > 5e-5).float().mean() if error.ndim > 1 else (error > 2e-3).float().mean()
        assert off <= most_off, f"{name}: {off:.1e} are off, by at most {error.max():.1e}"


@pytest.mark.parametrize("T", [5, 90, 150])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"leakage": Leakage(), "features": Features(normalise_queries=True)},
        {"noise": ALL_NOISE, "probability_dac": Converter(v_max=0.6)},
    ],
    ids=["clean", "without leakage", "noise"],
)
def test_softmax(changes, T, counted):
    eager, blocked = softmax_both(softmax_machine(**changes), T, padded=True, dtype=torch.float32)
    assert {"read", "back"} <= set(counted)
    assert_close(eager, blocked)


@pytest.mark.parametrize("T", [5, 150])
@pytest.mark.parametrize("noise", [Noise(), ALL_NOISE], ids=["clean", "noise"])
@pytest.mark.parametrize("normalised", [True, False])
def test_normaliser_and_threshold(normalised, noise, T, counted):
    hardware, results = normalised_machine(noise=noise), []
    hardware = replace(
        hardware,
        input_dac=Converter(v_min=-1.0),
        storage_dac=Converter(v_max=0.9),
        readout=Converter(v_min=-1.0),
        normaliser=Normaliser(is_on=normalised, full_scale=6.0, least=0.4 if T == 5 else 0.0),
    )
    upstream = torch.randn(2, 4, T, 8, generator=torch.Generator().manual_seed(1))
    for backend in ("eager", "blocked"):
        x = [tensor.detach().float().requires_grad_() for tensor in inputs(T)]
        out = attended(x, replace(hardware, backend=backend))
        results.append(dict(enumerate((out.detach(), *torch.autograd.grad(out, x, upstream)))))
    assert counted == ["read", "back"]
    assert_close(*results)


@pytest.mark.parametrize("name", ["mismatch_gain", "mismatch_offset_v", "column_gain"])
def test_fewer_terms_are_the_same_terms(name, counted):
    hardware = machine(512, 64, leakage=presets.gain_cell_cmos().leakage, noise=ALL_NOISE.only(name))
    assert fold((0, 1, 2, 3), tuple(CUBIC), hardware.leakage.decay_per_token, whole.QUERIES).matrix.shape == (3, 4)
    assert_agree(hardware, 600, counted, D=16)


def called(hardware, scaling=None, dtype=torch.float32, twice=False):
    g = torch.Generator().manual_seed(0)
    x = [torch.rand(1, 2, 150, 16, generator=g, dtype=dtype).requires_grad_() for _ in range(3)]
    out = gain_cell_attention(*x, hardware, scaling=scaling, chip=Chip(seed=1), generator=g)
    if twice:
        torch.autograd.grad(out.square().sum(), x, retain_graph=True)
    return out, *torch.autograd.grad(out.square().sum(), x)


@pytest.mark.parametrize("coding", ["sign_magnitude", "rounded", "unsigned"])
@pytest.mark.parametrize("normalised", [False, True])
def test_heads_with_full_scales_of_their_own_and_levels_of_each_coding(coding, normalised, counted, monkeypatch):
    hardware = machine(64, 16, backend="blocked", noise=ALL_NOISE)
    hardware.array = Array(window=64, rows=16, saturation_qk=30.0, saturation_av=12.0, full_scales="head")
    v_min = 0.0 if coding == "unsigned" else -1.0
    hardware.readout = Converter(n_levels=64, v_min=v_min, v_max=1.0, coding=coding)
    scales = {"full_scale_qk": torch.tensor([0.7, 1.3]), "full_scale_av": torch.tensor([1.2, 0.4])}
    if normalised:
        hardware.normaliser = Normaliser(is_on=True, full_scale=6.0, counter=Converter(n_levels=64))
        scales["full_scale_of_sum"] = torch.tensor([0.2, 1.4])
    scaling = Scaling(*(Affine(torch.tensor([1.0, 0.9]), torch.tensor([0.0, 0.1])) for _ in range(3)), **scales)
    found = called(hardware, scaling)
    assert counted == ["read", "back"]
    for one, other in zip(found, by_runs(monkeypatch, lambda: called(hardware, scaling)), strict=True):
        off = (one - other).abs() > 1e-4 * other.abs().max()
        assert off.float().mean() <= 1e-3
    assert counted == ["read", "back"]


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": ALL_NOISE},
        {"noise": ALL_NOISE, "activation": "softmax", "probability_dac": Converter(v_max=0.6)},
        {"normaliser": Normaliser(is_on=True, full_scale=6.0)},
    ],
    ids=["clips", "softmax", "normaliser"],
)
@pytest.mark.parametrize("span", [70, 2048])
def test_what_is_kept_for_the_way_back_is_what_it_would_compute_again(changes, span, counted, monkeypatch):
    hardware = machine(64, 16, backend="blocked", **changes)
    monkeypatch.setattr(engine, "SPAN", span)
    kept = called(hardware)
    assert all(map(torch.equal, kept, called(hardware, twice=True)))  # nothing of it is overwritten
    monkeypatch.setattr(engine, "MOST_KEPT", 0)
    assert all(map(torch.equal, kept, called(hardware)))
    assert "back" in counted


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": Noise(tau_spread=0.1)},
        {"readout": Converter(v_min=-1.0, n_levels=9, inl=0.1)},
        {"readout": Converter(v_min=-1.0, spacing="listed", positions=[-0.5, 0.0, 0.7])},
        {"protection": Protection(n_recent=2)},
        {"activation": "softmax", "leakage": Leakage(tau_s=1.0, token_time_s=0.003, compensate=True)},
        {"activation": "pruned_softmax"},
    ],
    ids=str,
)
def test_what_it_does_not_have_goes_run_by_run(changes, counted):
    called(machine(64, 16, backend="blocked", **changes))
    called(machine(64, 16, backend="blocked"), dtype=torch.float64)
    assert not counted
    called(replace(machine(64, 16, backend="blocked")))
    assert counted


def test_products_of_any_layout_on_one_thread():
    import numba
    import numpy as np
    import threadpoolctl

    from aimc.ops.compiled.products import multiply, on_one_thread

    @numba.njit
    def multiplied(left, right, scale, out):
        multiply(left, right, scale, out)

    rng = np.random.default_rng(0)
    with on_one_thread(), on_one_thread():
        assert {x["num_threads"] for x in threadpoolctl.threadpool_info() if x["user_api"] == "blas"} == {1}
        for m, k, n in [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1)]:
            for left in (rng.random((m, k + 2), np.float32)[:, :k], rng.random((k, m), np.float32).T):
                for right in (rng.random((k, n + 1), np.float32)[:, :n], rng.random((n, k), np.float32).T):
                    out = np.ones((m, n + 3), np.float32)
                    multiplied(left, right, np.full(1, 2.0, np.float32), out[:, :n])
                    np.testing.assert_allclose(out[:, :n], left @ right + 2, rtol=1e-5)
                    assert (out[:, n:] == 1).all()


def test_an_output_may_be_changed_in_place():
    """What is kept of a small call for its way back is not the output."""
    parts = [torch.randn(1, 2, 48, 4, requires_grad=True) for _ in range(3)]
    hardware = replace(machine(), backend="blocked")
    plain = gain_cell_attention(*parts, hardware)
    expected = torch.autograd.grad((0.5 * plain).sum(), parts)
    changed = gain_cell_attention(*parts, hardware)
    changed *= 0.5
    for a, b in zip(torch.autograd.grad(changed.sum(), parts), expected, strict=True):
        assert torch.equal(a, b)
