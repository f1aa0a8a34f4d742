"""The Triton kernels are the eager operator: same outputs, same gradients. Without a GPU they run in Triton's
interpreter."""

import math
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported, which is inside the first call

from dataclasses import replace

from aimc import gain_cell_attention, presets
from aimc.hardware import Array, Cell, Converter, Hardware, Leakage, Noise, Normaliser
from aimc.ops.effects.noise import Chip
from aimc.ops.triton import plan
from aimc.ops.triton.check import check_triton
from aimc.ops.triton.spread import half_length, orders_needed
from benchmarks.kernels import attention, machines

pytest.importorskip("triton", reason="the triton backend needs the package triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MORE = pytest.mark.slow if DEVICE.type == "cpu" else pytest.mark.filterwarnings("default")
"""For cases that take the interpreter long and show little more than their neighbours; a GPU does them all."""
CUBIC = presets.gain_cell_cmos().cell.coefficients
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
CHIP, SEED = Chip(seed=11, layer=3), 5
PADDING = [1, 4, 18, 19]
NAMES = ("output", "query gradient", "key gradient", "value gradient")


def machine(W: int = 32, R: int = 16, D: int = 32, **changes: object) -> Hardware:
    """Every deterministic effect strong enough to matter, converters ideal so that rounding cannot flip a code."""
    full_scales = {"saturation_qk": 0.6 * D, "saturation_av": 3.0 * R}
    hardware = Hardware(
        cell=Cell(coefficients=CUBIC, gradient="exact", surrogate_slope=19.3),
        leakage=Leakage(tau_s=1.0, token_time_s=0.01),
        array=Array(window=W, rows=R, **full_scales),
        readout=Converter(v_min=-0.8, v_max=0.8, coding="sign_magnitude"),
        backend="eager",
    )
    return replace(hardware, **changes)


def inputs(T: int, *, B: int = 1, H: int = 1, H_kv: int = 1, D: int = 32) -> list[torch.Tensor]:
    """Pulses, voltages, and the gradient of the output."""
    g = torch.Generator().manual_seed(T + 7)
    q = torch.rand(B, H, T, D, generator=g)
    k, v = (0.05 + 0.8 * torch.rand(B, H_kv, T, D, generator=g) for _ in range(2))
    v = v + 0.25 * torch.randn(B, H_kv, 1, D, generator=g)  # columns of one sign, so that some counters clip
    return [x.to(DEVICE) for x in (q, k, v, torch.randn(B, H, T, D, generator=g))]


def padding(T: int, n_batch: int) -> torch.Tensor:
    mask = torch.zeros(n_batch, T, dtype=torch.bool, device=DEVICE)
    mask[:, [p for p in PADDING if p < T]] = True
    return mask


def by_eager(hardware, q, k, v, d_out, mask=None):
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    generator = torch.Generator().manual_seed(SEED)
    out = gain_cell_attention(*leaves, hardware, key_padding=mask, chip=CHIP, generator=generator)
    return out.detach(), *torch.autograd.grad(out, leaves, d_out)


def by_triton(hardware, q, k, v, d_out, mask=None, operand_dtype=torch.float32):
    data = (x.to(operand_dtype) for x in (q, k, v))
    return by_eager(replace(hardware, backend="triton"), *data, d_out.to(operand_dtype), mask)


def assert_close(got, expected, tolerance=1e-5):
    """Every result by name, relative to its largest number."""
    for name, a, b in zip(NAMES, got, expected, strict=True):
        scale = b.abs().max().item()
        assert scale > 0 or b.shape[-2] == 1, f"{name} is zero everywhere: the case shows nothing"
        error = (a - b).abs().max().item()
        assert error <= tolerance * scale, f"{name}: off by {error / scale:.2e} of its maximum"


def assert_equals_eager(hardware, T, mask=False, tolerance=1e-5, operand_dtype=torch.float32, **sizes):
    data = inputs(T, **sizes)
    flags = padding(T, data[0].shape[0]) if mask else None
    got = by_triton(hardware, *data, mask=flags, operand_dtype=operand_dtype)
    assert_close(got, by_eager(hardware, *data, mask=flags), tolerance)


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(monkeypatch):
    """What a kernel forgets to write shows."""

    def poisoned(make):
        def made(*args, **kwargs):
            x = make(*args, **kwargs)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        return made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))


# --- Outputs and gradients
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("T", "W"),
    [
        *((T, 32) for T in (1, 17, 50)),
        *(
            pytest.param(*at, marks=MORE)
            for at in ((15, 32), (16, 32), (100, 32), (17, 64), (100, 64), (50, 128), (140, 128))
        ),
    ],
)
def test_every_length_and_window(T, W):
    assert_equals_eager(machine(W=W), T)


def test_the_cases_clip_both_arrays_and_not_everything():
    hardware, (q, k, v, _) = machine(), inputs(100)
    details = gain_cell_attention(q, k, v, hardware, details=True)[1]
    phi, counts = details.phi, details.A[:, :, 20:]
    assert (phi == 1).float().mean() > 0.01 and ((phi > 0) & (phi < 1)).float().mean() > 0.1
    clipped = counts.abs() == hardware.readout.v_max
    assert 0.01 < clipped.float().mean() < 0.5


@pytest.mark.parametrize(
    ("gradient", "leaky"),
    [
        ("exact", True),
        ("linear", False),
        *(pytest.param(*at, marks=MORE) for at in (("exact", False), ("linear", True))),
    ],
)
@pytest.mark.parametrize(
    "coefficients",
    [CUBIC, pytest.param(QUINTIC, marks=MORE), pytest.param([0.0, 12.0], marks=MORE), [0.0, 0.0, 0.0, 60.0]],
    ids=["cubic", "quintic", "linear", "odd"],
)
def test_every_cell(coefficients, gradient, leaky):
    cell = Cell(coefficients=coefficients, gradient=gradient, surrogate_slope=19.3)
    leakage = Leakage(tau_s=1.0, token_time_s=0.01) if leaky else Leakage()
    assert_equals_eager(machine(W=16, cell=cell, leakage=leakage), 20)


@pytest.mark.parametrize(
    "noise",
    [pytest.param(noise, marks=MORE) for noise in (*map(ALL_NOISE.only, ALL_NOISE.active()), ALL_NOISE)],
    ids=[*ALL_NOISE.active(), "all"],
)
def test_every_noise(noise):
    assert_equals_eager(machine(noise=noise), 50)


@pytest.mark.parametrize("target_v", [0.0, pytest.param(0.9, marks=MORE)])
@pytest.mark.parametrize("gradient", ["exact", pytest.param("linear", marks=MORE)])
def test_leaking_to_ground_or_supply(target_v, gradient):
    cell = Cell(coefficients=CUBIC, gradient=gradient, surrogate_slope=19.3)
    leakage = Leakage(tau_s=1.0, token_time_s=0.01, target_v=target_v)
    assert_equals_eager(machine(W=16, cell=cell, leakage=leakage, noise=Noise(mismatch_gain=0.1)), 20)


@pytest.mark.parametrize("n_levels", [pytest.param(None, marks=MORE), 16])
def test_bent_converters(n_levels):
    readout = Converter(n_levels=n_levels, v_min=-0.8, v_max=0.8, coding="sign_magnitude", inl=0.06)
    dacs = {"input_dac": Converter(inl=-0.1), "storage_dac": Converter(v_max=0.9, inl=0.1)}
    assert_equals_eager(machine(W=16, readout=readout, **dacs), 20)


SLOW_LEAK = Leakage(tau_s=1.0, token_time_s=0.0005)
"""Which cells may leak at so different rates that each has its own polynomial of ten orders."""


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"noise": replace(ALL_NOISE, tau_spread=0.5)}, marks=MORE),
        pytest.param({"noise": Noise(tau_spread=0.5), "cell": Cell(coefficients=QUINTIC)}, marks=MORE),
        {"noise": Noise(tau_spread=0.5), "cell": Cell(coefficients=CUBIC, gradient="linear", surrogate_slope=19.3)},
        pytest.param(
            {"noise": Noise(tau_spread=0.5), "leakage": replace(SLOW_LEAK, target_v=0.0)},
            marks=MORE,
        ),
    ],
    ids=["all noise", "quintic", "surrogate", "to ground"],
)
def test_every_cell_at_a_rate_of_its_own(changes):
    hardware = machine(**{"leakage": SLOW_LEAK, **changes})
    assert_equals_eager(hardware, 34)
    alike = replace(hardware, noise=replace(hardware.noise, tau_spread=0.0))
    data = inputs(34)
    out, of_alike = by_eager(hardware, *data)[0], by_eager(alike, *data)[0]
    assert (out - of_alike).abs().max() > 1e-3 * out.abs().max(), "the spread can be seen"


def test_spread_of_retention_that_is_too_wide_is_refused_and_means_nothing_without_leakage():
    hardware = machine(noise=Noise(tau_spread=0.5))
    reason = check_triton((1, 1, 50, 32), torch.float32, DEVICE, hardware)
    assert "noise.tau_spread=0.5" in reason and "blocked" in reason
    assert check_triton((1, 1, 50, 32), torch.float32, DEVICE, replace(hardware, leakage=Leakage())) is None
    made_up_for = replace(hardware, activation="softmax", leakage=replace(SLOW_LEAK, compensate=True))
    assert "leakage.compensate" in check_triton((1, 1, 50, 32), torch.float32, DEVICE, made_up_for)
    with pytest.raises(ValueError, match=r"hardware\.backend='triton'.*noise\.tau_spread"):
        gain_cell_attention(*inputs(50)[:3], replace(hardware, backend="triton"), chip=CHIP)


def test_the_published_cell_needs_few_orders_in_time():
    """Within a window of 1,024 tokens, out to four standard deviations."""
    hardware = presets.gain_cell_cmos()
    assert orders_needed(hardware, 4096, torch.bfloat16) == 0
    hardware.noise = Noise(tau_spread=0.2)
    found = [orders_needed(hardware, 4096, dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert found == [8, 6]
    for n_orders in found:  # what is left out, of the fastest cell, at the ends of the time
        b = 3 * hardware.leakage.decay_per_token * math.exp(0.8) * half_length(hardware, 4096)
        for x in (-1.0, 1.0):
            series = sum((-b * x) ** m / math.factorial(m) for m in range(n_orders))
            assert abs(series - math.exp(-b * x)) < (1e-6 if n_orders == 8 else 5e-4)


@MORE
def test_all_noise_without_leakage():
    assert_equals_eager(machine(noise=ALL_NOISE, leakage=Leakage()), 50)


def test_surrogate_gradient_knows_no_mismatch():
    cell = Cell(coefficients=CUBIC, gradient="linear", surrogate_slope=19.3)
    assert_equals_eager(machine(W=16, noise=ALL_NOISE, cell=cell), 20)


@MORE
@pytest.mark.parametrize(("H", "H_kv"), [(4, 2), (2, 2), (4, 1)])
def test_grouped_heads(H, H_kv):
    assert_equals_eager(machine(W=16), 34, H=H, H_kv=H_kv)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": Noise(mismatch_gain=0.1)},
        pytest.param({"noise": ALL_NOISE}, marks=MORE),
        pytest.param({"noise": ALL_NOISE, "activation": "softmax"}, marks=MORE),
    ],
    ids=["mismatch", "all noise", "softmax, all noise"],
)
def test_pairs_that_have_no_room_are_computed_again(monkeypatch, changes):
    monkeypatch.setattr(plan, "MOST_PAIR_BYTES", 0)
    monkeypatch.setattr(plan, "_plans", {})
    assert_equals_eager(machine(W=16, **changes), 20, mask=True, H=2, H_kv=1)
    assert not any(made.keeps_pairs for made in plan._plans.values())


@MORE
def test_batch_groups_padding_and_noise_together():
    assert_equals_eager(machine(W=16, noise=ALL_NOISE), 20, mask=True, B=2, H=2, H_kv=1)


@pytest.mark.parametrize("T", [1, pytest.param(17, marks=MORE), 50])
def test_padding(T):
    assert_equals_eager(machine(), T, mask=True)


def test_a_padded_query_gives_and_gets_nothing():
    q, k, v, d_out = inputs(20)
    mask = padding(20, 1)
    d_out[:, :, mask[0]] = 1e6
    out, d_q, *d_stored = by_triton(machine(noise=ALL_NOISE), q, k, v, d_out, mask)
    assert (out[:, :, mask[0]] == 0).all() and (d_q[:, :, mask[0]] == 0).all()
    assert all((d[:, :, mask[0]] == 0).all() and d.abs().max() < 1e5 for d in d_stored)


@pytest.mark.parametrize("D", [20, *(pytest.param(D, marks=MORE) for D in (64, 80, 96, 128))])
def test_head_sizes(D):
    assert_equals_eager(machine(W=16, D=D, noise=ALL_NOISE), 20, D=D)


@pytest.mark.parametrize(
    ("R", "W", "T"),
    [
        (32, 32, 40),
        *(pytest.param(*at, marks=MORE) for at in ((64, 64, 100), (32, 64, 100), (128, 128, 140), (16, 16, 50))),
    ],
)
def test_sub_tile_sizes(R, W, T):
    assert_equals_eager(machine(R=R, W=W, D=16, noise=ALL_NOISE), T, D=16)


def test_what_fades_within_a_sub_tile_is_refused_and_what_fades_within_the_window_is_not():
    assert_equals_eager(machine(W=48, leakage=Leakage(tau_s=1.0, token_time_s=0.18)), 50)
    reason = check_triton((1, 1, 50, 32), torch.float32, DEVICE, machine(leakage=Leakage(tau_s=1.0, token_time_s=5.0)))
    assert "leakage.tau_s" in reason and "blocked" in reason


# --- Normaliser column, threshold, signed queries, full scales
# -----------------------------------------------------------------------------------------------------------------

COUNTER = Converter(v_max=0.9)


@pytest.mark.parametrize("noise", [Noise(), pytest.param(ALL_NOISE, marks=MORE)], ids=["clean", "noisy"])
@pytest.mark.parametrize("full_scale", [pytest.param(16.0, marks=MORE), 2.0], ids=["never full", "full now and then"])
def test_normaliser(full_scale, noise):
    normaliser = Normaliser(is_on=True, full_scale=full_scale, counter=COUNTER)
    assert_equals_eager(machine(normaliser=normaliser, noise=noise), 34, mask=True, H=2)


@pytest.mark.parametrize("least", [0.0, 1.5])
def test_a_normaliser_that_counts_next_to_nothing(least):
    normaliser = Normaliser(is_on=True, full_scale=4.0, counter=Converter(n_levels=5), least=least)
    hardware = machine(W=16, normaliser=normaliser)
    hardware.array.saturation_qk *= 40.0
    assert_equals_eager(hardware, 20)


def test_signed_queries():
    hardware = machine(W=16, input_dac=Converter(v_min=-1.0, n_levels=31), noise=ALL_NOISE)
    q, k, v, d_out = inputs(20)
    data = 2.0 * q - 1.0, k, v, d_out
    assert_close(by_triton(hardware, *data), by_eager(hardware, *data))


def without_clips() -> Hardware:
    hardware = machine(W=16, readout=Converter(v_min=-50.0, v_max=50.0), noise=Noise(column_offset=1.0))
    hardware.array.saturation_qk *= 100  # pulses stay off their edges at 0 and 1 but for columns whose offset is there
    return hardware


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=["bfloat16", "float16"]
)
def test_half_precision_operands(dtype, tolerance):
    """Tolerance: 8 (11) significant bits per factor. No clip is reached, because rounding moves charges over its
    edge."""
    hardware = without_clips()
    assert_equals_eager(hardware, 20, tolerance=tolerance, operand_dtype=dtype)


@pytest.mark.skipif(plan.interpreted(), reason="noise by the GPU's own logarithm and cosine: needs a GPU, or tests/ptx")
@pytest.mark.parametrize(
    "noise", [Noise(write_v=0.1), Noise(read_qk=0.1), Noise(read_av=0.1)], ids=["write", "read", "second read"]
)
def test_noise_of_half_precision_is_the_same_noise(noise):
    """Where it is a fifth of the output and more."""
    hardware, data = replace(without_clips(), noise=noise), [x.bfloat16().float() for x in inputs(40)]
    expected = by_eager(hardware, *data)
    quiet, *_ = by_eager(replace(hardware, noise=Noise()), *data)
    assert (expected[0] - quiet).abs().max() > 0.2 * expected[0].abs().max()
    assert_close(by_triton(hardware, *data, operand_dtype=torch.bfloat16), expected, 2e-2)


def test_float16_keeps_small_gradients():
    hardware = without_clips()
    q, k, v, d_out = inputs(17)
    small = by_triton(hardware, q, k, v, 1e-3 * d_out, operand_dtype=torch.float16)
    for name, a, b in zip(NAMES[1:], small[1:], by_triton(hardware, q, k, v, d_out)[1:], strict=True):
        assert (1e3 * a - b).abs().max() < 1e-2 * b.abs().max(), name


# --- Converters
# ------------------------------------------------------------------------------------------------------------

READOUTS = {
    "sign_magnitude": Converter(n_levels=32, v_min=-1.0, v_max=1.0, coding="sign_magnitude"),
    "rounded": Converter(n_levels=32, v_min=-1.0, v_max=1.0, coding="rounded"),
    "unsigned": Converter(n_levels=9, v_min=-0.4, v_max=0.6),
}


@pytest.mark.parametrize(
    "readout",
    [pytest.param(x, marks=() if name == "unsigned" else MORE) for name, x in READOUTS.items()],
    ids=READOUTS,
)
def test_codes(readout):
    """A charge on the edge between two codes may fall on either side: at most one in a thousand, by one step."""
    dacs = {"input_dac": Converter(n_levels=16), "storage_dac": Converter(n_levels=8, v_max=0.9)}
    hardware, data = machine(readout=readout, noise=ALL_NOISE, **dacs), inputs(40)
    (out, *grads), (expected, *expected_grads) = by_triton(hardware, *data), by_eager(hardware, *data)
    n = readout.n_levels
    step = (
        readout.v_max / (n // 2 - 1)
        if readout.coding == "sign_magnitude"
        else (readout.v_max - readout.v_min) / (n - 1)
    )
    off = (out - expected).abs()
    assert off.max() < 1.001 * step and (off > 1e-5).float().mean() <= 1e-3
    assert_close((expected, *grads), (expected, *expected_grads))


def test_number_of_levels():
    readout = READOUTS["sign_magnitude"]
    hardware = machine(W=16, readout=readout)  # one sub-tile: the output is its counter
    out = by_triton(hardware, *inputs(34, D=64))[0]
    levels = torch.arange(-15, 16, device=DEVICE) / 15
    off = (out[..., None] - levels).abs().amin(-1).max()  # a GPU divides by a number by its reciprocal
    assert len(out.unique()) > 15 and off <= (0 if DEVICE.type == "cpu" else 1e-7)


# --- What it refuses
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "rows", "dtype", "device", "words"),
    [
        (256, 16, torch.float32, DEVICE, "head sizes"),
        (8, 16, torch.float32, DEVICE, "head sizes"),
        (32, 8, torch.float32, DEVICE, "array.rows"),
        (32, 16, torch.float64, DEVICE, "float64"),
    ],
)
def test_says_what_it_cannot_do(size, rows, dtype, device, words):
    reason = check_triton((1, 1, 4, size), dtype, device, machine(R=rows))
    assert reason is not None and words in reason and "backend=" in reason


@pytest.mark.skipif(DEVICE.type == "cpu" and not plan.interpreted(), reason="tests/ptx is one")
def test_says_that_it_needs_a_gpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = check_triton((1, 1, 4, 32), torch.float32, torch.device("cpu"), machine())
    assert reason is not None and "CUDA" in reason


def test_forced_on_what_it_cannot_do():
    with pytest.raises(ValueError, match="array.rows"):
        by_triton(machine(R=8, W=32), *inputs(4))


def test_no_tokens():
    assert by_triton(machine(), *(x[:, :, :0] for x in inputs(4)))[0].shape == (1, 1, 0, 32)


# --- GPU
# -------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="published sizes need a GPU")
@pytest.mark.parametrize("noise", [Noise(), ALL_NOISE], ids=["quiet", "all noise"])
def test_published_sizes(noise):
    """So many charges lie within rounding of a clip that a few of their gradients are there in one sum and not in the
    other: one element in ten thousand may be off."""
    hardware = machine(W=1024, R=64, D=64, noise=noise, leakage=presets.gain_cell_cmos().leakage)
    data, mask = inputs(1500, B=2, H=4, H_kv=2, D=64), padding(1500, 2)
    got, expected = by_triton(hardware, *data, mask=mask), by_eager(hardware, *data, mask=mask)
    for name, a, b in zip(NAMES, got, expected, strict=True):
        off = (a - b).abs() / b.abs().max()
        assert (off > 1e-4).float().mean() < 1e-4 and off.max() < 0.05, f"{name}: off by {off.max():.1e}"


@MORE
@pytest.mark.parametrize("hardware", [pytest.param(x, id=name) for name, x in machines()])
def test_half_precision_of_published_sizes(hardware):
    """Bfloat16 has 8 significant bits: codes fall on the other side, and every gradient behind a clip comes or goes."""
    hardware = replace(hardware, array=replace(hardware.array, window=128))
    *data, d_out = (x.bfloat16().float() for x in inputs(160, H=2, H_kv=2, D=64))
    results = []
    for backend, dtype in (("triton", torch.bfloat16), ("eager", torch.float32)):
        leaves = [x.to(dtype).requires_grad_() for x in data]
        out = attention(leaves, replace(hardware, backend=backend))
        results.append([x.float() for x in (out.detach(), *torch.autograd.grad(out, leaves, d_out.to(dtype)))])
    for name, a, b in zip(NAMES, *results, strict=True):
        assert b.norm() > 0 and (a - b).norm() < 0.05 * b.norm(), f"{name}: off by {(a - b).norm() / b.norm():.1e}"
