from dataclasses import replace

import numpy as np
import pytest
import torch

from aimc import presets
from aimc.hardware import Array, Cell, Converter, Hardware, Leakage, Noise
from aimc.ops.attention import gain_cell_attention
from aimc.ops.effects.noise import Chip, draw_seed
from aimc.ops.effects.noise import draws_of as noise_draws
from tests.ops.draws import draws_of
from tests.ops.reference import ring_buffer

W, R, D = 16, 4, 3
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


BACKEND = "eager"
"""Which implementation the tests below look at; set by the fixture."""


@pytest.fixture(params=["eager", "blocked"], autouse=True)
def _backend(request, monkeypatch):
    monkeypatch.setitem(globals(), "BACKEND", request.param)


def machine(**changes) -> Hardware:
    """Small arrays with every deterministic effect strong enough to matter at D = 3: saturation, 20 % leakage in the
    window, cubic."""
    hardware = presets.gain_cell_cmos()
    hardware.array = Array(window=W, rows=R, saturation_qk=12.0, saturation_av=8.0)
    hardware.leakage = Leakage(tau_s=1.0, token_time_s=0.2 / W)
    return replace(hardware, backend=BACKEND, **changes)


def inputs(T, *, B=1, H=2, H_kv=1, D=D, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    q = torch.rand(B, H, T, D, generator=g, dtype=dtype) * 1.4 - 0.2
    k, v = (torch.rand(B, H_kv, T, D, generator=g, dtype=dtype) * 1.1 - 0.1 for _ in range(2))
    return q, k, v


def assert_equals_ring_buffer(hardware, qkv, draws=None, padding=None, **kwargs):
    out = gain_cell_attention(*qkv, hardware, key_padding=padding, **kwargs)
    expected = ring_buffer(*qkv, hardware, draws, padding)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-9, rtol=1e-5)


# --- The operator is the ring buffer
# ---------------------------------------------------------------------------------------


def leaking_to(target_v):
    return Leakage(tau_s=1.0, token_time_s=0.2 / W, target_v=target_v)


@pytest.mark.parametrize("T", [1, 5, 15, 16, 17, 40, 50])
def test_every_length_equals_the_ring_buffer(T):
    assert_equals_ring_buffer(machine(), inputs(T, B=4))


@pytest.mark.parametrize("T", [100, 160])
def test_published_subtile_of_64(T):
    hardware = presets.gain_cell_cmos()
    hardware.array = Array(window=64, rows=64, saturation_qk=10.0, saturation_av=40.0)
    assert_equals_ring_buffer(hardware, inputs(T, H=1, D=2))


@pytest.mark.parametrize(
    "changes",
    [
        {"leakage": Leakage()},
        {"leakage": Leakage(tau_s=1.0, token_time_s=3.0)},
        {"cell": Cell(coefficients=[0.0, 19.3])},
        {"cell": Cell(coefficients=QUINTIC)},
        {"cell": Cell(coefficients=[0.0, 0.0, 0.0, 60.0], offset_v=0.3, gradient="linear")},
        {"leakage": leaking_to(0.0)},
        {"leakage": leaking_to(0.9), "cell": Cell(coefficients=QUINTIC)},
        {"leakage": leaking_to(0.2), "cell": Cell(coefficients=[0.0, 0.0, 0.0, 60.0], offset_v=0.3, gradient="linear")},
        {"input_dac": Converter(), "storage_dac": Converter(v_max=0.9)},
        {"input_dac": Converter(n_levels=16, inl=0.08), "storage_dac": Converter(n_levels=8, v_max=0.9, inl=-0.1)},
        {"readout": Converter(n_levels=32, v_min=-1, v_max=1, coding="sign_magnitude", inl=0.05)},
        {"readout": Converter(n_levels=32, v_min=-1, v_max=1, coding="rounded", inl=-0.05)},
        {
            "input_dac": Converter(inl=0.1),
            "storage_dac": Converter(v_max=0.9, inl=0.2),
            "readout": Converter(v_min=-1, v_max=1, inl=0.1),
        },
        {"storage_dac": Converter(n_levels=5, v_min=0.2, v_max=0.7)},
        {"readout": Converter(n_levels=32, v_min=-1, v_max=1, coding="rounded")},
        {"readout": Converter(n_levels=9, v_min=-0.4, v_max=0.6)},
        {"array": Array(window=W, rows=W, saturation_qk=12.0, saturation_av=8.0)},
        {"array": Array(window=W, rows=1, saturation_qk=12.0, saturation_av=8.0)},
    ],
    ids=lambda c: next(iter(c)),
)
def test_every_deterministic_effect_equals_the_ring_buffer(changes):
    assert_equals_ring_buffer(machine(**changes), inputs(40))


@pytest.mark.parametrize(("H", "H_kv"), [(4, 4), (4, 2), (3, 1)])
def test_grouped_heads(H, H_kv):
    assert_equals_ring_buffer(machine(), inputs(20, B=2, H=H, H_kv=H_kv))


@pytest.mark.parametrize("T", [13, 40])
def test_padding_left_and_right(T):
    padding = torch.zeros(2, T, dtype=torch.bool)
    padding[0, :6] = True
    padding[1, -5:] = True
    qkv = inputs(T, B=2)
    assert_equals_ring_buffer(machine(), qkv, padding=padding)
    assert (gain_cell_attention(*qkv, machine(), key_padding=padding)[padding[:, None].expand(2, 2, T)] == 0).all()


@pytest.mark.parametrize("T", [10, 40])
@pytest.mark.parametrize("name", [None, *ALL_NOISE.active()])
def test_noise_and_mismatch_enter_where_the_table_says(T, name):
    noise = ALL_NOISE if name is None else ALL_NOISE.only(name)
    B, H, H_kv = 2, 2, 1
    hardware, chip = machine(noise=noise), Chip(seed=3, layer=2)
    draws = draws_of(hardware, chip, 5, B=B, H=H, H_kv=H_kv, T=T, D=D)
    generator = torch.Generator().manual_seed(5)
    assert_equals_ring_buffer(hardware, inputs(T, B=B, H=H, H_kv=H_kv), draws, chip=chip, generator=generator)


def test_the_future_never_influences_the_past():
    q, k, v = inputs(40)
    before = gain_cell_attention(q, k, v, machine())
    for x in (q, k, v):
        x[:, :, 23:] = torch.rand_like(x[:, :, 23:])
    after = gain_cell_attention(q, k, v, machine())
    assert torch.equal(before[:, :, :23], after[:, :, :23]) and not torch.equal(before[:, :, 23:], after[:, :, 23:])


@pytest.mark.parametrize("T", [10, 40])
def test_details_are_the_steps_inside(T):
    hardware = machine()
    out, details = gain_cell_attention(*inputs(T), hardware, details=True)
    t = torch.arange(T)
    visible = (t <= t[:, None]) & (t > t[:, None] - W)
    assert (details.S[..., ~visible] == 0).all() and (details.phi[..., ~visible] == 0).all()
    torch.testing.assert_close(details.phi, (details.S / hardware.array.saturation_qk).clamp(0, 1))
    assert details.A.shape == (1, 2, T, -(-min(T, W) // R), D)
    torch.testing.assert_close(details.A.sum(-2), out)


# --- Precision and compilation
# ---------------------------------------------------------------------------------------------


def smooth_machine(**changes) -> Hardware:
    """Converters that only clip and saturations out of reach, so that everything but the clips is differentiable."""
    array = Array(window=W, rows=R, saturation_qk=40.0, saturation_av=30.0)
    readout = Converter(v_min=-1.0, v_max=1.0)
    return machine(array=array, input_dac=Converter(), storage_dac=Converter(v_max=0.9), readout=readout, **changes)


@pytest.mark.parametrize("T", [12, 40])
def test_float32_follows_float64(T):
    qkv = inputs(T)
    exact = gain_cell_attention(*qkv, smooth_machine())
    torch.testing.assert_close(
        gain_cell_attention(*(x.float() for x in qkv), smooth_machine()), exact.float(), atol=1e-5, rtol=1e-5
    )


def test_autocast_does_not_lower_the_precision_and_dtype_follows_the_query():
    qkv = [x.float() for x in inputs(20)]
    plain = gain_cell_attention(*qkv, machine())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gain_cell_attention(*qkv, machine()), plain)
        half = gain_cell_attention(*(x.bfloat16() for x in qkv), machine())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, gain_cell_attention(*(x.bfloat16().float() for x in qkv), machine()).bfloat16())


@pytest.mark.slow
def test_compiled_equals_eager():
    torch._dynamo.reset()
    compiled = torch.compile(gain_cell_attention, backend="aot_eager", fullgraph=True)
    array = Array(window=W, rows=W, saturation_qk=12.0, saturation_av=8.0)
    for seed in (1, 2):  # another chip must not break the graph
        chip, qkv = Chip(seed=seed, layer=seed), [x.requires_grad_() for x in inputs(20)]
        hardware = machine(array=array, noise=Noise(write_v=0.02, read_qk=0.03, mismatch_gain=0.1))
        grads = []
        for operator in (gain_cell_attention, compiled):
            torch.manual_seed(0)
            out = operator(*qkv, hardware, chip=chip)
            grads.append([out, *torch.autograd.grad(out.square().sum(), qkv)])
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)


# --- Gradients
# -------------------------------------------------------------------------------------------------------------


def inner_inputs(T, **kwargs):
    """Inputs inside every clip range, with charges that mostly make pulses."""
    q, k, v = inputs(T, **kwargs)
    return [x.requires_grad_() for x in (q * 0.5 + 0.25, k * 0.3 + 0.52, v * 0.6 + 0.1)]


@pytest.mark.parametrize("cell", [Cell(coefficients=list(presets.CMOS_COEFFICIENTS)), Cell(coefficients=QUINTIC)])
@pytest.mark.parametrize("T", [6, 18])
def test_exact_gradients(T, cell):
    hardware = smooth_machine(cell=cell, noise=ALL_NOISE)

    def operator(q, k, v):
        return gain_cell_attention(q, k, v, hardware, chip=Chip(seed=1), generator=torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(operator, inner_inputs(T, D=2), fast_mode=True)


def test_linear_surrogate_gradients_written_out():
    """Surrogate: charges are exact, K and V receive the gradient of slope·decay·u, pulses receive the exact one."""
    T, slope = 8, 19.3
    cell = Cell(coefficients=list(presets.CMOS_COEFFICIENTS), gradient="linear", surrogate_slope=slope)
    hardware = smooth_machine(cell=cell)
    q, k, v = inner_inputs(T, H=1)
    out, details = gain_cell_attention(q, k, v, hardware), gain_cell_attention(q, k, v, hardware, details=True)[1]
    upstream = torch.rand(1, 1, T, D, dtype=torch.float64)
    torch.testing.assert_close(
        out, gain_cell_attention(q, k, v, replace(hardware, cell=replace(cell, gradient="exact"))), rtol=0, atol=1e-14
    )
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), upstream)

    t = torch.arange(T, dtype=torch.float64)
    decay = torch.exp(-hardware.leakage.decay_per_token * (t[:, None] - t)).tril()
    power = sum(
        c * ((v - 0.45)[:, :, None] * decay[..., None]) ** i for i, c in enumerate(cell.coefficients)
    )  # [B, H, T, S, D]
    stored = sum(c * ((k - 0.45)[:, :, None] * decay[..., None]) ** i for i, c in enumerate(cell.coefficients))
    dphi = torch.einsum("bhtd,bhtsd->bhts", upstream, power) / hardware.array.saturation_av
    dS = dphi * ((details.phi > 0) & (details.phi < 1)) / hardware.array.saturation_qk
    torch.testing.assert_close(dq, torch.einsum("bhts,bhtsd->bhtd", dS, stored))
    torch.testing.assert_close(dk, slope * (dS * decay).mT @ q)
    torch.testing.assert_close(dv, slope * (details.phi * decay).mT @ upstream / hardware.array.saturation_av)


def test_quantisers_are_straight_through():
    """Fine converters change the value by less than a step and the gradient not at all, at the quantised operating
    point."""
    coarse = smooth_machine()
    coarse.readout = Converter(n_levels=32, v_min=-1.0, v_max=1.0, coding="sign_magnitude")
    qkv = inner_inputs(12)
    upstream = torch.rand(1, 2, 12, D, dtype=torch.float64)
    smooth_out, coarse_out = gain_cell_attention(*qkv, smooth_machine()), gain_cell_attention(*qkv, coarse)
    assert 0 < (smooth_out - coarse_out).abs().max() < (W / R) / 15
    for a, b in zip(
        torch.autograd.grad(smooth_out, qkv, upstream), torch.autograd.grad(coarse_out, qkv, upstream), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_no_gradient_beyond_the_clips():
    q, k, v = (x.requires_grad_() for x in inputs(12))
    gain_cell_attention(q, k, v, smooth_machine()).sum().backward()
    assert (
        (q.grad[(q < 0) | (q > 1)] == 0).all()
        and (k.grad[(k < 0) | (k > 0.9)] == 0).all()
        and (v.grad[(v < 0) | (v > 0.9)] == 0).all()
    )
    assert (v.grad != 0).any() and (k.grad != 0).any() and (q.grad != 0).any()


# --- Random non-idealities
# -------------------------------------------------------------------------------------------------


def plain_machine(noise: Noise, window=32, rows=16) -> Hardware:
    """A linear cell and clips that nothing reaches: any difference is the noise."""
    array = Array(window=window, rows=rows, saturation_qk=80.0, saturation_av=40.0)
    return replace(presets.ideal(), backend=BACKEND, array=array, noise=noise, readout=Converter(v_min=-9.0, v_max=9.0))


def same_token(T, B=2, H=2, D=16):
    """Every token alike, so that what differs between positions is the hardware."""
    return torch.full((B, H, T, D), 0.5), torch.full((B, H, T, D), 0.6), torch.full((B, H, T, D), 0.7)


def run(noise, T=64, seed=0, chip=None, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return gain_cell_attention(
        *same_token(T), plain_machine(noise, **kwargs), chip=chip, generator=generator, details=True
    )[1]


def deviation(noise, **kwargs):
    """Charge of the first array minus the noiseless one, in full scales, and which entries are visible."""
    clean, noisy = run(Noise(), **kwargs), run(noise, **kwargs)
    return (noisy.S - clean.S) / 80.0, clean.phi[0, 0] > 0, noisy.A - clean.A


def test_read_noise_of_the_first_array_is_fresh_at_every_read():
    d, visible, _ = deviation(Noise(read_qk=0.01))
    x = d[..., visible]
    assert x.mean().abs() < 4 * 0.01 / x.numel() ** 0.5 and x.std().item() == pytest.approx(0.01, rel=0.05)
    assert torch.corrcoef(torch.stack([d[0, 0, 40:60, 35], d[0, 0, 40:60, 36]]))[0, 1].abs() < 0.8
    assert d[0, 0, 40:60, 35].std() > 0.005  # the same cell, read again


def test_read_noise_of_the_second_array_is_fresh_at_every_read():
    _, _, d = deviation(Noise(read_av=0.02))
    first = d[:, :, :, 0]
    assert first.std().item() == pytest.approx(0.02, rel=0.05) and first.mean().abs() < 0.001
    assert (d[:, :, :16, 1] == 0).all() and (d[:, :, 16:, 1] != 0).float().mean() > 0.99  # not read before it is in use


def test_write_noise_stays_from_read_to_read_and_is_new_at_every_write():
    d, _, _ = deviation(Noise(write_v=0.01))
    expected = 19.3 * 0.01 * 0.5 * 16**0.5 / 80.0
    diagonal = d.diagonal(dim1=-2, dim2=-1)
    assert diagonal.std().item() == pytest.approx(expected, rel=0.15)
    torch.testing.assert_close(d[..., 20:40, 18], d[..., 18:19, 18].expand(2, 2, 20), atol=1e-6, rtol=0)
    assert not torch.allclose(diagonal[..., :32], diagonal[..., 32:], atol=1e-4)  # the same slot, written again


@pytest.mark.parametrize("name", ["mismatch_gain", "mismatch_offset_v", "column_gain", "column_offset"])
def test_frozen_noise_belongs_to_the_cell(name):
    noise = Noise(**{name: 0.02})
    d, _, a = deviation(noise, chip=Chip(seed=1))
    diagonal = d.diagonal(dim1=-2, dim2=-1)
    assert diagonal.std() > 1e-5
    assert torch.equal(diagonal[0], diagonal[1])  # one chip serves every sequence
    assert not torch.equal(diagonal[:, 0], diagonal[:, 1])  # heads have arrays of their own
    torch.testing.assert_close(
        diagonal[..., :32], diagonal[..., 32:], atol=1e-6, rtol=0
    )  # token s and s+W: the same slot
    torch.testing.assert_close(d[..., 20:40, 18], d[..., 18:19, 18].expand(2, 2, 20), atol=1e-6, rtol=0)
    assert torch.equal(deviation(noise, chip=Chip(seed=1), seed=9)[2], a)
    for other in (Chip(seed=2), Chip(seed=1, layer=1)):
        assert not torch.allclose(deviation(noise, chip=other)[2], a, atol=1e-4)


def test_frozen_noise_has_the_spread_it_is_given():
    chip = Chip(seed=1)
    kwargs = {"T": 512, "chip": chip, "window": 512}
    clean = run(Noise(), **kwargs).S.diagonal(dim1=-2, dim2=-1)[0] / 80.0
    spread = {
        n: deviation(Noise(**{n: 0.02}), **kwargs)[0].diagonal(dim1=-2, dim2=-1)[0]
        for n in ("column_gain", "column_offset")
    }
    assert (spread["column_gain"] / clean).std().item() == pytest.approx(0.02, rel=0.1)
    assert spread["column_offset"].std().item() == pytest.approx(0.02, rel=0.1)
    gain = deviation(Noise(mismatch_gain=0.02), **kwargs)[0].diagonal(dim1=-2, dim2=-1)[0] / clean
    assert gain.std().item() == pytest.approx(0.02 / 16**0.5, rel=0.1)


def test_noise_is_reproduced_by_the_generator_and_changes_with_it():
    hardware, qkv, chip = machine(noise=ALL_NOISE), inputs(20), Chip(seed=0)

    def outputs(seed):
        generator = torch.Generator().manual_seed(seed)
        return [gain_cell_attention(*qkv, hardware, chip=chip, generator=generator) for _ in range(2)]

    (a, b), (c, d), (e, _) = outputs(1), outputs(1), outputs(2)
    assert torch.equal(a, c) and torch.equal(b, d) and not torch.equal(a, b) and not torch.equal(a, e)
    torch.manual_seed(4)
    f = gain_cell_attention(*qkv, hardware, chip=chip)
    torch.manual_seed(4)
    assert torch.equal(gain_cell_attention(*qkv, hardware, chip=chip), f)


def test_without_drawn_noise_no_random_number_is_used():
    generator = torch.Generator().manual_seed(1)
    states = torch.get_rng_state(), generator.get_state()
    frozen_only = machine(noise=Noise(mismatch_gain=0.1, column_offset=0.1))
    a = gain_cell_attention(*inputs(20), machine(), chip=Chip(seed=8), generator=generator)
    gain_cell_attention(*inputs(20), frozen_only, chip=Chip(seed=8))
    assert torch.equal(torch.get_rng_state(), states[0]) and torch.equal(generator.get_state(), states[1])
    assert torch.equal(a, gain_cell_attention(*inputs(20), machine()))  # a chip without mismatch is no effect


# --- Errors
# ----------------------------------------------------------------------------------------------------------------


def x(*shape, **kwargs):
    return torch.zeros(*shape, **kwargs)


@pytest.mark.parametrize(
    ("q", "k", "v", "error", "names"),
    [
        (x(2, 4, 3), x(1, 2, 4, 3), x(1, 2, 4, 3), ValueError, "query"),
        (x(1, 2, 4, 3), x(1, 2, 4, 3), x(1, 2, 5, 3), ValueError, "value"),
        (x(1, 2, 1, 3), x(1, 2, 4, 3), x(1, 2, 4, 3), ValueError, "tokens"),
        (x(1, 3, 4, 3), x(1, 2, 4, 3), x(1, 2, 4, 3), ValueError, "3 heads"),
        (x(1, 2, 4, 3), x(1, 2, 4, 3, dtype=torch.long), x(1, 2, 4, 3), TypeError, "key"),
        (x(1, 2, 4, 3), x(1, 2, 4, 3), x(1, 2, 4, 3, device="meta"), ValueError, "value is on meta"),
    ],
)
def test_tensors_that_do_not_fit(q, k, v, error, names):
    with pytest.raises(error, match=names):
        gain_cell_attention(q, k, v, machine())


@pytest.mark.parametrize(
    ("padding", "error"),
    [
        (torch.zeros(1, 9), TypeError),
        (torch.zeros(1, 8, dtype=torch.bool), ValueError),
        (x(1, 9, dtype=torch.bool, device="meta"), ValueError),
    ],
)
def test_padding_that_does_not_fit(padding, error):
    with pytest.raises(error, match="key_padding"):
        gain_cell_attention(*inputs(9), machine(), key_padding=padding)


@pytest.mark.parametrize("name", ["mismatch_gain", "mismatch_offset_v", "column_gain", "column_offset"])
def test_frozen_noise_needs_a_chip(name):
    with pytest.raises(ValueError, match=rf"noise\.{name}.*chip=Chip"):
        gain_cell_attention(*inputs(9), machine(noise=Noise(**{name: 0.1})))


def test_the_noise_of_a_sequence_is_its_own_whatever_batch_it_is_read_in():
    hardware = machine(noise=ALL_NOISE)
    q, k, v = inputs(20, B=4, dtype=torch.float32)
    chip = Chip(seed=3)

    def read(part: slice, first: int, seed: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
        query = q[part].clone().requires_grad_()
        draws = noise_draws(seed, first)
        out = gain_cell_attention(query, k[part], v[part], hardware, chip=chip, draws=draws)
        out.square().sum().backward()
        return out.detach(), query.grad

    whole, gradient = read(slice(0, 4), 40)
    for part in (slice(0, 1), slice(1, 3), slice(3, 4)):
        out, of_query = read(part, 40 + part.start)
        torch.testing.assert_close(out, whole[part], atol=1e-6, rtol=0)
        torch.testing.assert_close(of_query, gradient[part], atol=1e-5, rtol=1e-5)
    assert (read(slice(0, 4), 41)[0] - whole).abs().max() > 1e-3  # other sequences
    assert (read(slice(0, 4), 40, seed=8)[0] - whole).abs().max() > 1e-3


def test_draws_are_the_generators_where_sequences_count_from_zero():
    hardware = machine(noise=Noise(write_v=0.02, read_qk=0.03))
    x = inputs(20, B=2)
    seed = int(draw_seed(torch.Generator().manual_seed(5), torch.device("cpu")))
    drawn = gain_cell_attention(*x, hardware, generator=torch.Generator().manual_seed(5))
    assert gain_cell_attention(*x, hardware, draws=noise_draws(seed)).equal(drawn)


@pytest.mark.parametrize(("seed", "first"), [(-1, 0), (2**63, 0), (0, -1), (0, 2**31)])
def test_draws_outside_their_range_are_refused(seed, first):
    with pytest.raises(ValueError, match=f"seed={seed}, first_sequence={first}: .* give such numbers"):
        noise_draws(seed, first)
