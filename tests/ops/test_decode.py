"""Token by token equals all at once: the decoder against the parallel operator, with the ring buffer wrapped twice."""

from dataclasses import replace

import pytest
import torch

from aimc import presets
from aimc.hardware import Array, ConfigError, Converter, Leakage, Noise, Normaliser, Protection
from aimc.ops.attention import gain_cell_attention
from aimc.ops.decode.arrays import KVArrays
from aimc.ops.decode.attention import decode
from aimc.ops.effects.noise import ArrayId, Chip
from aimc.ops.scaling import Affine, Scaling
from tests.ops.test_softmax import left_padding
from tests.ops.test_softmax import machine as softmax_machine

W, R, D = 16, 4, 5
ALL_NOISE = Noise(
    write_v=0.02,
    read_qk=0.03,
    read_av=0.04,
    mismatch_gain=0.1,
    mismatch_offset_v=0.02,
    column_gain=0.1,
    column_offset=0.05,
)
PROTECTION = Protection(n_sink=2, n_recent=3)
PATTERNS = {
    "token by token": [1],
    "chunks": [7],
    "prompt, then tokens": [21, 1, 1, 1, 1, 1],
    "mixed": [1, 5, 1, 1, 13, 3],
    "long": [40, 1],
}


def machine(**changes):
    hardware = presets.gain_cell_cmos()
    hardware.array = Array(window=W, rows=R, saturation_qk=12.0, saturation_av=8.0)
    hardware.leakage = Leakage(tau_s=1.0, token_time_s=0.2 / W)
    return replace(hardware, **changes)


MACHINES = {
    "deterministic": machine(),
    "no leakage": machine(leakage=Leakage()),
    "all noise": machine(noise=ALL_NOISE),
    "protected": machine(noise=ALL_NOISE, protection=PROTECTION),
    "leaking to ground": machine(noise=ALL_NOISE, leakage=Leakage(tau_s=1.0, token_time_s=0.2 / W, target_v=0.0)),
    "retention spread": machine(noise=replace(ALL_NOISE, tau_spread=0.5), backend="eager"),
    "all of it": softmax_machine(
        noise=replace(ALL_NOISE, tau_spread=0.5),
        leakage=Leakage(tau_s=1.0, token_time_s=0.2 / W, target_v=0.9),
        storage_dac=Converter(n_levels=8, v_max=0.9, inl=0.08),
        input_dac=Converter(n_levels=16, v_min=-1.0, inl=-0.05),
        probability_dac=Converter(n_levels=16, inl=0.05),
        readout=Converter(n_levels=64, v_min=-1.0, inl=0.02),
        score_adc=Converter(n_levels=64, v_min=-1.0, inl=0.02),
        protection=PROTECTION,
    ),
    "normalised": machine(noise=ALL_NOISE, normaliser=Normaliser(is_on=True, full_scale=2.0, least=0.3)),
    "softmax": softmax_machine(noise=ALL_NOISE),
    "softmax, protected": softmax_machine(noise=ALL_NOISE, protection=PROTECTION),
}


def inputs(T, *, B=2, H=4, H_kv=2, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(B, heads, T, D, generator=g, dtype=dtype) for heads in (H, H_kv, H_kv))
    scaling = Scaling(
        *(
            Affine(torch.full((heads,), a), torch.full((heads,), b))
            for heads, a, b in ((H, 0.5, 0.1), (H_kv, 0.2, 0.45), (H_kv, 0.2, 0.45))
        )
    )
    return q, k, v, scaling


def pieces(T, pattern):
    start = 0
    i = 0
    while start < T:
        stop = min(
            start + pattern[min(i, len(pattern) - 1)] if len(pattern) == 1 else start + pattern[i % len(pattern)], T
        )
        yield slice(start, stop)
        start, i = stop, i + 1


def step_by_step(q, k, v, hardware, scaling, pattern, padding=None, chip=None, seed=5, each=None):
    arrays = KVArrays(k, hardware, chip or Chip(seed=3, layer=2), torch.Generator().manual_seed(seed))
    out = []
    with torch.no_grad():
        for piece in pieces(q.shape[2], pattern):
            if each is not None:
                each(arrays)
            flags = None if padding is None else padding[:, piece]
            out.append(
                decode(q[:, :, piece], k[:, :, piece], v[:, :, piece], arrays, scaling=scaling, key_padding=flags)
            )
    return torch.cat(out, dim=2), arrays


def at_once(q, k, v, hardware, scaling, padding=None, chip=None, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return gain_cell_attention(
        q, k, v, hardware, scaling=scaling, key_padding=padding, chip=chip or Chip(seed=3, layer=2), generator=generator
    )


EVERY = ("deterministic", "protected")
"""Machines whose tokens come in every pattern; the others' in one, or two."""


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        pytest.param(
            name,
            kind,
            marks=()
            if name in EVERY or kind == "mixed" or (name, kind) == ("softmax, protected", "long")
            else pytest.mark.slow,
        )
        for name in MACHINES
        for kind in PATTERNS
    ],
)
def test_decoding_equals_the_parallel_form(name, pattern):
    """Every effect, read noise included: its draws belong to (query, key), so even they are the same."""
    q, k, v, scaling = inputs(3 * W)
    got, _ = step_by_step(q, k, v, MACHINES[name], scaling, PATTERNS[pattern])
    torch.testing.assert_close(got, at_once(q, k, v, MACHINES[name], scaling), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(pattern, id=kind, marks=() if kind in ("token by token", "mixed") else pytest.mark.slow)
        for kind, pattern in PATTERNS.items()
    ],
)
@pytest.mark.parametrize("name", ["all noise", "softmax, protected"])
def test_left_padding(name, pattern):
    q, k, v, scaling = inputs(3 * W, B=3)
    padding = left_padding(3, 3 * W, 0, 9, 20)
    got, _ = step_by_step(q, k, v, MACHINES[name], scaling, pattern, padding)
    torch.testing.assert_close(got, at_once(q, k, v, MACHINES[name], scaling, padding), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    "cell",
    [presets.gain_cell_linear().cell, replace(presets.gain_cell_cmos().cell, gradient="linear")],
    ids=["linear", "surrogate"],
)
@pytest.mark.parametrize("noise", [Noise(), Noise(mismatch_gain=0.1), Noise(mismatch_offset_v=0.02)], ids=str)
def test_cells_whose_operands_are_plain_numbers(cell, noise):
    q, k, v, scaling = inputs(2 * W)
    hardware = machine(cell=cell, noise=noise)
    got, _ = step_by_step(q, k, v, hardware, scaling, [3, 1])
    torch.testing.assert_close(got, at_once(q, k, v, hardware, scaling), atol=1e-9, rtol=1e-9)


def test_float32_is_close_enough_for_logits():
    q, k, v, scaling = inputs(3 * W, dtype=torch.float32)
    got, _ = step_by_step(q, k, v, MACHINES["no leakage"], scaling, [5, 1])
    expected = at_once(q, k, v, MACHINES["no leakage"], scaling)
    assert (
        (got - expected).abs() > 1e-4
    ).float().mean() < 1e-3  # a charge within rounding of a level may take the next one


def test_the_cells_hold_what_was_written():
    q, k, v, scaling = inputs(W + 3)
    _, arrays = step_by_step(q, k, v, machine(leakage=Leakage()), scaling, [1])
    assert arrays.tokens.tolist() == [W, W + 1, W + 2, *range(3, W)]
    stored = arrays.voltages(ArrayId.QK)
    level = 0.9 / 7
    torch.testing.assert_close(stored, (stored / level).round() * level)  # whole storage levels
    wanted = ((k * 0.2 + 0.45).clamp(0, 0.9) / level).round() * level
    torch.testing.assert_close(stored[:, :, 3:], wanted[:, :, 3:W])
    torch.testing.assert_close(stored[:, :, :3], wanted[:, :, W:])


def test_voltages_decay_to_rest():
    q, k, v, scaling = inputs(W)
    hardware = machine(leakage=Leakage(tau_s=1e-3, token_time_s=1e-5))
    _, arrays = step_by_step(q, k, v, hardware, scaling, [W])
    before = arrays.voltages(ArrayId.AV) - 0.45
    arrays.wait(1e-3)
    torch.testing.assert_close(arrays.voltages(ArrayId.AV) - 0.45, before / torch.e)
    arrays.wait(1.0)
    assert (arrays.voltages(ArrayId.AV) - 0.45).abs().max() < 1e-12


def test_a_pause_is_the_same_as_a_slower_clock():
    """Waiting one token time before every token doubles all ages."""
    q, k, v, scaling = inputs(2 * W)
    slow = machine(leakage=Leakage(tau_s=1.0, token_time_s=0.2 / W))
    fast = replace(slow, leakage=Leakage(tau_s=1.0, token_time_s=0.1 / W))
    got, _ = step_by_step(q, k, v, fast, scaling, [1], each=lambda arrays: arrays.n_tokens and arrays.wait(0.1 / W))
    torch.testing.assert_close(got, at_once(q, k, v, slow, scaling), atol=1e-9, rtol=1e-9)


def test_a_pause_inside_a_chunked_text():
    q, k, v, scaling = inputs(2 * W)
    hardware = machine()
    runs = [
        step_by_step(q, k, v, hardware, scaling, pattern, each=lambda a: a.n_tokens == 20 and a.wait(0.05))[0]
        for pattern in ([1], [4])
    ]
    torch.testing.assert_close(runs[0], runs[1], atol=1e-9, rtol=1e-9)
    assert not torch.allclose(runs[0], at_once(q, k, v, hardware, scaling))


@pytest.mark.parametrize("pattern", [[20, 1], [20, 10]])
def test_after_a_long_pause_only_new_tokens_count(pattern):
    """One second or one day: all older voltages are at rest, and the new ones' ages are as exact as ever."""
    q, k, v, scaling = inputs(40, dtype=torch.float32)
    hardware = machine(
        leakage=Leakage(tau_s=5e-3, token_time_s=2.6e-4), storage_dac=Converter(v_max=0.9), input_dac=Converter()
    )
    hardware = replace(hardware, readout=Converter(v_min=-1.0, v_max=1.0))
    texts = [
        step_by_step(q, k, v, hardware, scaling, pattern, each=lambda a, s=s: a.n_tokens == 20 and a.wait(s))[0]
        for s in (1.0, 86400.0)
    ]
    torch.testing.assert_close(texts[0][:, :, 20:], texts[1][:, :, 20:], atol=1e-6, rtol=1e-5)


def test_refresh_restores_the_levels():
    """A loss of less than half a level is undone completely; without levels nothing is."""
    q, k, v, scaling = inputs(W)
    hardware = machine(leakage=Leakage(tau_s=1.0, token_time_s=0.05 / W))
    _, arrays = step_by_step(q, k, v, hardware, scaling, [1])
    arrays.refresh()
    _, fresh = step_by_step(q, k, v, replace(hardware, leakage=Leakage()), scaling, [1])
    torch.testing.assert_close(arrays.voltages(ArrayId.QK), fresh.voltages(ArrayId.QK))
    assert arrays.n_refreshed == W
    _, analog = step_by_step(q, k, v, replace(hardware, storage_dac=Converter(v_max=0.9)), scaling, [1])
    before = analog.voltages(ArrayId.QK)
    analog.refresh()
    torch.testing.assert_close(analog.voltages(ArrayId.QK), before)


@pytest.mark.parametrize("pattern", [[1], [5], [30, 1]])
def test_refreshing_every_few_tokens_undoes_leakage(pattern):
    q, k, v, scaling = inputs(3 * W)
    hardware = machine(leakage=Leakage(tau_s=1.0, token_time_s=0.01))

    def every_token(arrays):
        arrays.refresh_every = 1

    got, arrays = step_by_step(q, k, v, hardware, scaling, pattern, each=every_token)
    assert arrays.n_refreshed > 3 * W
    unrefreshed, still = (
        at_once(q, k, v, replace(hardware, leakage=leak), scaling) for leak in (hardware.leakage, Leakage())
    )
    assert (got - still).abs().mean() < 0.3 * (unrefreshed - still).abs().mean()


def test_refresh_draws_write_noise_of_its_own():
    q, k, v, scaling = inputs(W)
    _, arrays = step_by_step(q, k, v, machine(leakage=Leakage(), noise=Noise(write_v=0.01)), scaling, [1])
    before = arrays.voltages(ArrayId.QK)
    arrays.refresh()
    change = arrays.voltages(ArrayId.QK) - before
    assert 0.007 < change.std() < 0.02


def test_what_belongs_to_the_hardware_is_computed_once(monkeypatch):
    """A token draws the errors of its own cells, not those of every column; the cell about its leak target stays."""
    q, k, v, scaling = inputs(2 * W)
    hardware = MACHINES["leaking to ground"]
    arrays = KVArrays(k, hardware, Chip(seed=3, layer=2), torch.Generator().manual_seed(5))
    with torch.no_grad():
        decode(q[:, :, :20], k[:, :, :20], v[:, :, :20], arrays, scaling=scaling)
        for name in ("column_gain_qk", "column_offset_qk", "column_gain_av", "column_offset_av"):
            monkeypatch.setattr(Chip, name, None)
        monkeypatch.setattr("aimc.ops.heads.leaking_cell", None)
        got = [
            decode(q[:, :, t : t + 1], k[:, :, t : t + 1], v[:, :, t : t + 1], arrays, scaling=scaling)
            for t in range(20, 2 * W)
        ]
    monkeypatch.undo()
    expected = at_once(q, k, v, hardware, scaling)[:, :, 20:]
    torch.testing.assert_close(torch.cat(got, dim=2), expected, atol=1e-9, rtol=1e-9)


def test_rows_of_the_batch_can_be_reordered():
    q, k, v, scaling = inputs(2 * W, B=3)
    hardware = MACHINES["softmax, protected"]
    hardware = replace(hardware, noise=Noise(mismatch_gain=0.1, mismatch_offset_v=0.01))
    order = torch.tensor([2, 0, 0])
    _, arrays = step_by_step(q[:, :, :20], k[:, :, :20], v[:, :, :20], hardware, scaling, [6])
    arrays.select(order)
    rest = slice(20, 2 * W)
    with torch.no_grad():
        got = decode(q[order][:, :, rest], k[order][:, :, rest], v[order][:, :, rest], arrays, scaling=scaling)
    torch.testing.assert_close(got, at_once(q, k, v, hardware, scaling)[order][:, :, rest], atol=1e-9, rtol=1e-9)


def test_reading_noise_has_the_right_spread():
    """Independent of the seed's equality: the same token in many texts, each with noise of its own, decoded and in
    parallel, has one distribution."""
    q, k, v, scaling = inputs(W, B=1)
    q, k, v = (x.expand(200, -1, -1, -1) for x in (q, k, v))
    hardware = machine(noise=Noise(read_qk=0.05, read_av=0.05), readout=Converter(v_min=-1, v_max=1))
    decoded = step_by_step(q, k, v, hardware, scaling, [W - 1, 1], seed=0)[0][:, :, -1]
    parallel = at_once(q, k, v, hardware, scaling, seed=1000)[:, :, -1]
    error = (decoded.var(dim=0) / 200 + parallel.var(dim=0) / 200).sqrt()
    assert ((decoded.mean(dim=0) - parallel.mean(dim=0)).abs() < 5 * error).all()
    ratio = decoded.std(dim=0) / parallel.std(dim=0)
    assert (ratio > 0.75).all() and (ratio < 1.33).all()


def test_memory_does_not_grow():
    q, k, v, scaling = inputs(6 * W, B=1)
    hardware = MACHINES["protected"]
    sizes = []
    step_by_step(q, k, v, hardware, scaling, [1], each=lambda arrays: sizes.append(arrays.n_bytes))
    assert len(set(sizes[2 * W :])) == 1 and sizes[-1] > 0


def test_gradients_of_a_first_piece_are_those_of_the_operator():
    q, k, v, scaling = inputs(9)
    q.requires_grad_()
    arrays = KVArrays(k, machine(), Chip(seed=3, layer=2))
    decode(q, k, v, arrays, scaling=scaling).square().sum().backward()
    got, q.grad = q.grad, None
    at_once(q, k, v, machine(), scaling).square().sum().backward()
    torch.testing.assert_close(got, q.grad)


# --- Bad input
# --------------------------------------------------------------------------------------------------------------


def test_padding_on_the_right():
    q, k, v, scaling = inputs(8)
    padding = left_padding(2, 8, 0, 3)
    padding[1, -1] = True
    with pytest.raises(ValueError, match="padding after a real token.*pad on the left"):
        decode(q, k, v, KVArrays(k, machine(), Chip(seed=0)), scaling=scaling, key_padding=padding)


def test_a_clean_gradient_of_a_text_that_goes_on():
    q, k, v, scaling = inputs(8)
    noisy = machine(noise=Noise(read_av=0.1), noise_gradient="clean")
    arrays = KVArrays(k, noisy, Chip(seed=0))
    q.requires_grad_()
    decode(q[:, :, :4], k[:, :, :4], v[:, :, :4], arrays, scaling=scaling)
    with pytest.raises(NotImplementedError, match="noise_gradient='clean'.*torch.no_grad"):
        decode(q[:, :, 4:], k[:, :, 4:], v[:, :, 4:], arrays, scaling=scaling)


def test_another_machine_batch_or_chip():
    q, k, v, scaling = inputs(8)
    noisy = machine(noise=Noise(mismatch_gain=0.1))
    arrays = KVArrays(k, noisy, Chip(seed=0))
    arrays.check_continues(machine(noise=Noise(mismatch_gain=0.1)), Chip(seed=0), k)
    with pytest.raises(ValueError, match="other hardware.*new cache"):
        arrays.check_continues(machine(), Chip(seed=0), k)
    with pytest.raises(ValueError, match="chip 0.*chip 1"):
        arrays.check_continues(noisy, Chip(seed=1), k)
    with pytest.raises(ValueError, match="batch of 2.*have 1"):
        arrays.check_continues(noisy, Chip(seed=0), k[:1])


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_time_runs_forwards(seconds):
    _, k, _, _ = inputs(8)
    with pytest.raises(ValueError, match="forwards in time"):
        KVArrays(k, machine(), Chip(seed=0)).wait(seconds)


def test_waiting_needs_the_time_of_a_token():
    _, k, _, _ = inputs(8)
    with pytest.raises(ConfigError, match="leakage.token_time_s"):
        KVArrays(k, machine(leakage=Leakage(token_time_s=None)), Chip(seed=0)).wait(1.0)
