"""The blocked operator against the eager one: outputs and each gradient by name, with every uninitialised number a
NaN."""

from dataclasses import replace

import pytest
import torch

from aimc import presets
from aimc.hardware import Array, Cell, Converter, Hardware, Leakage, Noise, Protection
from aimc.ops.attention import gain_cell_attention
from aimc.ops.blocked import engine as blocked_engine
from aimc.ops.blocked.runs import runs
from aimc.ops.effects.noise import Chip
from aimc.ops.packing import pack, unpack
from aimc.ops.scaling import Affine, Scaling

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
CUBIC = list(presets.CMOS_COEFFICIENTS)
QUINTIC = [0.4, 9.0, -2.0, 30.0, 3.0, -20.0]
ALL_NOISE = Noise(
    write_v=0.02,
    read_qk=0.03,
    read_av=0.04,
    mismatch_gain=0.1,
    mismatch_offset_v=0.02,
    column_gain=0.1,
    column_offset=0.05,
)
LENGTHS = [1, 63, 64, 65, 200, 1024, 1500]


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan():
    """PyTorch's deterministic mode fills `empty` tensors with NaN: a number that is never written fails the
    comparison."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


def machine(window=256, rows=64, *, levels=False, **changes) -> Hardware:
    hardware = presets.gain_cell_cmos()
    hardware.array = Array(window=window, rows=rows, saturation_qk=30.0, saturation_av=12.0)
    hardware.leakage = Leakage(tau_s=1.0, token_time_s=0.3 / window)
    if not levels:
        hardware.input_dac, hardware.storage_dac, hardware.readout = (
            Converter(),
            Converter(v_max=0.9),
            Converter(v_min=-1.0, v_max=1.0),
        )
    return replace(hardware, **changes)


def both(hardware, T, *, B=1, H=2, H_kv=1, D=8, dtype=torch.float64, padding=None, scaled=True):
    """Output and gradients by name from the eager and the blocked operator, same seeds."""
    g = torch.Generator().manual_seed(0)
    q = torch.rand(B, H, T, D, generator=g, dtype=dtype) * 1.4 - 0.2
    k, v = (torch.rand(B, H_kv, T, D, generator=g, dtype=dtype) * 1.1 - 0.1 for _ in range(2))
    scalers = [torch.rand(n, generator=g, dtype=dtype) * 0.2 + at for n in (H, H_kv, H_kv) for at in (0.9, -0.1)]
    upstream = torch.randn(B, H, T, D, generator=g, dtype=dtype)
    results = []
    for backend in ("eager", "blocked"):
        x = [t.clone().requires_grad_() for t in (q, k, v, *scalers)][: 9 if scaled else 3]
        scaling = Scaling(Affine(*x[3:5]), Affine(*x[5:7]), Affine(*x[7:9])) if scaled else None
        out = gain_cell_attention(
            *x[:3],
            replace(hardware, backend=backend),
            scaling=scaling,
            key_padding=padding,
            chip=Chip(seed=3, layer=2),
            generator=torch.Generator().manual_seed(1),
        )
        grads = torch.autograd.grad(out, x, upstream)
        results.append({"out": out.detach()} | dict(zip(NAMES, grads, strict=False)))
    return results


def assert_agree(hardware, T, *, tolerance=1e-10, **kwargs):
    eager, blocked = both(hardware, T, **kwargs)
    assert eager["out"].abs().max() > 0.01
    for name, expected in eager.items():
        error = (blocked[name] - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
        assert error <= tolerance, f"{name}: relative error {error:.1e}"  # NaN fails, too


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_surrogate_slope_of_a_cell_without_a_slope(dtype):
    """The first power passes the gradient, though it has no charge."""
    odd = machine(cell=Cell(coefficients=[0.0, 0.0, 0.0, 60.0], gradient="linear"))
    assert_agree(odd, 100, dtype=dtype, tolerance=1e-4)


@pytest.mark.parametrize("sizes", [(0, 5), (2, 0)])
def test_no_text(sizes):
    for backend in ("auto", "eager", "blocked"):
        x = torch.zeros(sizes[0], 2, sizes[1], 8, requires_grad=True)
        out = gain_cell_attention(x, x, x, replace(machine(), backend=backend))
        assert out.shape == x.shape
        out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sinks_where_a_text_is_all_padding(dtype, two_threads):
    """A part of the call has no token in its digital memory."""
    padding = torch.zeros(2, 150, dtype=torch.bool)
    padding[0] = True
    protected = machine(protection=Protection(n_sink=1))
    assert_agree(protected, 150, B=2, padding=padding, dtype=dtype, tolerance=1e-4)


@pytest.mark.parametrize("window", [256, 2048])
@pytest.mark.parametrize("T", LENGTHS)
def test_every_length(T, window):
    assert_agree(machine(window), T)


@pytest.mark.parametrize(
    "changes",
    [
        {"leakage": Leakage()},
        {"leakage": Leakage(tau_s=1.0, token_time_s=2.0)},
        {"leakage": Leakage(tau_s=1.0, token_time_s=0.003, target_v=0.0), "noise": ALL_NOISE},
        {
            "leakage": Leakage(tau_s=1.0, token_time_s=0.003, target_v=0.9),
            "cell": Cell(coefficients=CUBIC, gradient="linear", surrogate_slope=9.0),
        },
        {
            "input_dac": Converter(inl=0.1),
            "storage_dac": Converter(v_max=0.9, inl=-0.1),
            "readout": Converter(v_min=-1.0, inl=0.05),
        },
        {"cell": Cell(coefficients=QUINTIC)},
        {"cell": Cell(coefficients=CUBIC, gradient="linear", surrogate_slope=19.3)},
        {"cell": Cell(coefficients=QUINTIC, gradient="linear", surrogate_slope=19.3), "noise": ALL_NOISE},
        {"cell": Cell(coefficients=QUINTIC, gradient="linear", surrogate_slope=19.3), "leakage": Leakage()},
        {"cell": Cell(coefficients=[0.0, 19.3])},
        {"cell": Cell(coefficients=[0.3, 0.0, 0.0, 60.0])},
        {"cell": Cell(coefficients=[0.3, 19.3, 0.0])},
        {"noise": ALL_NOISE},
        {"noise": ALL_NOISE, "leakage": Leakage()},
        *({"noise": ALL_NOISE.only(name)} for name in ALL_NOISE.active()),
    ],
    ids=lambda c: "+".join(f"{k}={v.active() if isinstance(v, Noise) else ''}" for k, v in c.items()),
)
@pytest.mark.parametrize("T", [65, 200])
def test_every_feature(T, changes):
    assert_agree(machine(128, 32, **changes), T)


@pytest.mark.parametrize("backend", ["eager", "blocked"])
def test_a_clean_gradient_under_noise(backend):
    of = ["eager", "blocked"].index(backend)
    noisy = both(machine(128, 32, noise=ALL_NOISE), 200)[of]
    clean = both(machine(128, 32), 200)[of]
    found = both(machine(128, 32, noise=ALL_NOISE, noise_gradient="clean"), 200)[of]
    torch.testing.assert_close(found["out"], noisy["out"])
    for name in NAMES:
        torch.testing.assert_close(found[name], clean[name])
        assert (noisy[name] - clean[name]).abs().max() > 0.01 * clean[name].abs().max()


@pytest.mark.parametrize(("H", "H_kv"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("noise", [Noise(), ALL_NOISE], ids=["clean", "noisy"])
def test_grouped_heads_and_padding(H, H_kv, noise):
    padding = torch.zeros(2, 200, dtype=torch.bool)
    padding[0, :70], padding[1, -40:] = True, True
    assert_agree(machine(64, 16, noise=noise), 200, B=2, H=H, H_kv=H_kv, padding=padding)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("T", [1, 64, 200])
def test_float32_to_its_rounding(T, scaled):
    assert_agree(machine(), T, tolerance=1e-5, dtype=torch.float32, D=32, scaled=scaled)


@pytest.mark.parametrize(("T", "window"), [(600, 128), (600, 1024)])
def test_float32_of_long_texts(T, window):
    """Outputs only: where a charge lies within rounding of a clip, its gradient is there in one order of summation and
    not in another."""
    eager, blocked = both(machine(window), T, dtype=torch.float32, D=32)
    assert (eager["out"] - blocked["out"]).abs().max() <= 1e-5 * eager["out"].abs().max()


@pytest.mark.parametrize("T", [65, 200, 600])
@pytest.mark.parametrize("noise", [Noise(), ALL_NOISE], ids=["clean", "noisy"])
def test_with_all_levels_hardly_a_count_moves_and_then_by_one_step(T, noise):
    eager, blocked = both(machine(levels=True, noise=noise), T, dtype=torch.float32, D=32)
    difference, step = (eager["out"] - blocked["out"]).abs(), 1 / 15
    moved = difference > 1e-4
    assert moved.float().mean() <= 1e-3
    assert ((difference[moved] / step - 1).abs() < 1e-3).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_float32(dtype):
    eager, blocked = both(machine(), 100, dtype=dtype)
    for name, expected in eager.items():
        assert blocked[name].dtype == dtype
        torch.testing.assert_close(blocked[name], expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("work_buffer_bytes", [1, 2**14, 2**30])
@pytest.mark.parametrize("span", [1, 96, 10**6])
def test_block_sizes_change_nothing(work_buffer_bytes, span, monkeypatch):
    monkeypatch.setattr(blocked_engine, "WORK_BUFFER_BYTES", work_buffer_bytes)
    monkeypatch.setattr(blocked_engine, "SPAN", span)
    assert_agree(machine(64, 16, noise=ALL_NOISE), 200)


def test_runs_as_long_as_on_an_accelerator_change_nothing(monkeypatch):
    monkeypatch.setattr(blocked_engine, "LENGTH", blocked_engine.LENGTH_ON_ACCELERATORS)
    assert_agree(machine(256, 16, noise=ALL_NOISE), 600)


@pytest.mark.parametrize("T", [1, 7, 8, 9, 31, 32, 33, 100])
@pytest.mark.parametrize("length", [1, 3, 8, 24, 10**6])
def test_every_visible_score_is_read_once_and_little_else(T, length):
    array = Array(window=32, rows=8)
    count, touched, queries = torch.zeros(T, T, dtype=torch.int64), 0, []
    for run in runs(T, length, array, torch.device("cpu")):
        tokens = run.tokens
        text = tokens[tokens < T]
        count[run.start : run.stop, text] += 1
        assert len(text.unique()) == len(text) and run.own <= run.start < run.stop <= run.behind
        assert (run.behind - run.own) % 8 == run.n_line % 8 == run.first % 8 == 0
        if run.oldest is not None:  # of the same slots
            assert torch.equal(tokens[run.n_line :] % 32, torch.arange(run.own, run.behind) % 32)
        touched += (run.stop - run.start) * len(tokens)
        queries += range(run.start, run.stop)
    t = torch.arange(T)
    visible = (t <= t[:, None]) & (t > t[:, None] - 32)
    assert queries == t.tolist() and (count[visible] == 1).all() and (count <= 1).all()
    assert touched <= visible.sum() + 2 * min(max(length, 8), 32) * T  # in vain: the diagonal and what is opposite


def test_memory_grows_with_the_tokens_not_their_square():
    def saved_and_work(T):
        q, k, v = (torch.rand(1, 1, T, 16).requires_grad_() for _ in range(3))
        with torch.profiler.profile(profile_memory=True) as profile:
            gain_cell_attention(q, k, v, machine(64, 16)).sum().backward()
        allocations = [e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0]
        return max(allocations)

    torch.use_deterministic_algorithms(False)
    small, large = saved_and_work(512), saved_and_work(4096)
    assert large < 8 * 4096 * 16 * 4 and large <= 8.5 * small


def test_hardware_survives_packing():
    hardware = machine(
        levels=True,
        noise=ALL_NOISE,
        cell=Cell(coefficients=QUINTIC, gradient="linear", surrogate_slope=2.5, offset_v=0.3),
    )
    hardware.readout.coding = "rounded"
    later = machine(
        noise=Noise(tau_spread=0.2),
        leakage=Leakage(tau_s=1.0, target_v=0.0),
        storage_dac=Converter(v_max=0.9, inl=-0.1),
    )
    for original in (hardware, Hardware(), presets.published(), later):
        assert unpack(pack(original)) == replace(original, backend="auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_registered_operator_says_what_it_returns(dtype):
    """What `torch.compile` believes of the operators (shapes, strides, dtypes, gradients) is true."""
    from aimc.ops.fused import _backward, _forward

    torch.use_deterministic_algorithms(False)  # it would fill the outputs whose shapes are compared
    q, k, v = (
        torch.rand(2, 20, 4, 8, dtype=dtype).transpose(1, 2),
        *(torch.rand(2, 2, 20, 8, dtype=dtype) for _ in range(2)),
    )
    affines = [x for n in (4, 2, 2) for x in (torch.ones(n), torch.zeros(n))]
    of_heads = [*(torch.ones(4) for _ in range(5)), *[None] * 4, *(torch.ones(2) for _ in range(4))]
    draws, padding = torch.tensor([7, 3]), torch.zeros(2, 20, dtype=torch.bool)
    rest = (*affines, *of_heads, padding, draws, 1, 2, pack(machine(16, 4, noise=ALL_NOISE)), "blocked", False)
    for check in ("test_schema", "test_faketensor"):
        torch.library.opcheck(_forward, (q, k, v, *rest), test_utils=check)
        upstream = torch.rand(2, 20, 4, 8, dtype=dtype)
        torch.library.opcheck(_backward, (upstream, None, [], q, k, v, *rest), test_utils=check)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(_forward, (*inputs, *rest), test_utils="test_aot_dispatch_static", rtol=2e-2, atol=1e-2)
