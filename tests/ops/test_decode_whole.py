"""A whole token in one compiled call: what operation by operation gives, in the arrays and out of them."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch

from aimc import presets
from aimc.hardware import Array, Converter, Hardware, Leakage, Noise, Normaliser, Protection
from aimc.ops import compiled
from aimc.ops.compiled import threads
from aimc.ops.decode import attention
from aimc.ops.decode.arrays import KVArrays
from aimc.ops.decode.attention import decode
from aimc.ops.decode.whole import fits
from aimc.ops.effects.noise import Chip
from aimc.ops.scaling import Affine, Scaling
from tests.ops.test_decode import MACHINES, W, inputs, machine, step_by_step
from tests.ops.test_softmax import left_padding

pytestmark = pytest.mark.skipif(compiled.kernels() is None, reason="numba is not installed")

FROZEN = Noise(mismatch_gain=0.1, mismatch_offset_v=0.02, column_gain=0.1, column_offset=0.05)
NORMALISED = Normaliser(is_on=True, full_scale=2.0, counter=Converter(n_levels=32))
SIGNED = Converter(n_levels=32, v_min=-1.0, coding="sign_magnitude")
PIECES = [6, *[1] * 14, 4, *[1] * 24]
WHOLE = {
    "published": machine(),
    "normalised": machine(normaliser=NORMALISED, input_dac=SIGNED),
    "no leakage": machine(leakage=Leakage()),
    "leaking to ground": machine(leakage=Leakage(tau_s=1.0, token_time_s=0.2 / W, target_v=0.0)),
    "one chip": machine(noise=FROZEN),
    "one chip, normalised": machine(noise=FROZEN, normaliser=NORMALISED),
    "gains of cells alone": machine(noise=Noise(mismatch_gain=0.1)),
    "no levels": machine(
        input_dac=Converter(),
        storage_dac=Converter(v_max=0.9),
        readout=Converter(v_min=-1.0, coding="sign_magnitude"),
        normaliser=replace(NORMALISED, counter=Converter()),
    ),
    "more levels than a byte has": machine(storage_dac=Converter(n_levels=1000, v_max=0.9)),
    "storage in part of the supply": machine(storage_dac=Converter(n_levels=5, v_min=0.1, v_max=0.7)),
    "thresholds": machine(threshold=True),
    "thresholds, normalised": machine(threshold=True, normaliser=replace(NORMALISED, least=0.3), input_dac=SIGNED),
    "counters outside of their range": machine(readout=presets.published().readout),
    "linear cell": Hardware(array=Array(window=W, rows=4, saturation_qk=12.0, saturation_av=8.0)),
}
OTHERS = {
    "write noise": machine(noise=Noise(write_v=0.01)),
    "read noise": machine(noise=Noise(read_qk=0.01)),
    "retention spread": machine(noise=Noise(tau_spread=0.5)),
    "softmax": MACHINES["softmax"],
    "protected": machine(protection=Protection(n_recent=3)),
    "noise of counters": machine(noise=Noise(read_av=0.01)),
    "pruned": machine(activation="pruned_softmax", input_dac=SIGNED),
    "bent input": machine(input_dac=Converter(n_levels=16, inl=0.02)),
    "bent normaliser": machine(normaliser=replace(NORMALISED, counter=Converter(n_levels=32, inl=0.02))),
    "bent converter": machine(readout=Converter(n_levels=32, v_min=-1.0, coding="sign_magnitude", inl=0.02)),
    "levels at equal charge": machine(storage_dac=Converter(n_levels=8, v_max=0.9, spacing="equal_charge")),
    "listed levels": machine(storage_dac=Converter(positions=[0.0, 0.1, 0.9], v_max=0.9, spacing="listed")),
    "stored levels outside of the range": machine(storage_dac=Converter(n_levels=8, v_max=0.8, coding="rounded")),
}


def text(name, B=3, T=3 * W):
    """Every head has scalers of its own."""
    q, k, v, _ = inputs(T, B=B, dtype=torch.float32)
    g = torch.Generator().manual_seed(1)
    query = Affine(torch.rand(4, generator=g) + 0.3, torch.rand(4, generator=g) / 10)
    key, value = (Affine(torch.rand(2, generator=g) / 4 + 0.1, torch.rand(2, generator=g) / 4 + 0.3) for _ in "kv")
    scaling = Scaling(query, key, value)
    if WHOLE[name].threshold:
        full_scales = {f"full_scale_{x}": torch.rand(4, generator=g) + 0.5 for x in ("qk", "av", "of_sum")}
        scaling = scaling._replace(pulse_threshold=torch.rand(4, generator=g) / 20, **full_scales)
    return q, k, v, scaling


@pytest.fixture
def taken(monkeypatch):
    """What the compiled call has given, token by token."""
    given, whole = [], attention.read_token

    def read_token(call, arrays):
        given.append(whole(call, arrays))
        return given[-1]

    monkeypatch.setattr(attention, "read_token", read_token)
    return given


def in_torch(monkeypatch, compute):
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "kernels", lambda: None)
        return compute()


def assert_same(got, expected, may_move=0.002):
    """But for sums that lie within rounding of another level."""
    apart = ((got - expected).abs() > 2e-5 + 1e-5 * expected.abs()).float().mean()
    assert float(apart) <= may_move and bool(torch.isfinite(got).all())


def assert_same_arrays(arrays, others):
    for held, wanted in zip(arrays.cells.values(), others.cells.values(), strict=True):
        torch.testing.assert_close(held.state, wanted.state, atol=1e-6, rtol=0)
    for name in ("tokens", "written_at", "padding", "n_real", "n_tokens", "now"):
        torch.testing.assert_close(getattr(arrays, name), getattr(others, name), atol=0, rtol=0)


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("name", WHOLE)
def test_it_is_what_operation_by_operation_gives(name, padded, taken, monkeypatch):
    given = *text(name)[:3], WHOLE[name], text(name)[3], PIECES, left_padding(3, 3 * W, 0, 9, 20) if padded else None
    got, arrays = step_by_step(*given)
    assert len(taken) == 38 and all(out is not None for out in taken)
    expected, others = in_torch(monkeypatch, lambda: step_by_step(*given))
    assert_same(got, expected, may_move=0 if "levels" in name else 0.002)
    assert_same_arrays(arrays, others)


def test_parts_side_by_side(taken, monkeypatch, two_threads):
    given = *text("one chip, normalised")[:3], WHOLE["one chip, normalised"], text("published")[3], PIECES
    alone, _ = step_by_step(*given)  # too little for two
    monkeypatch.setattr(threads, "LEAST", 1)
    together, _ = step_by_step(*given)
    assert torch.equal(alone, together) and len(taken) == 2 * 38


@pytest.mark.parametrize("name", OTHERS)
def test_what_else_hardware_may_have_goes_operation_by_operation(name, taken):
    q, k, v, scaling = inputs(8, dtype=torch.float32)
    assert not fits(OTHERS[name])
    step_by_step(q, k, v, OTHERS[name], scaling, [1])
    assert taken == [None] * 7


def test_other_numbers_go_operation_by_operation(taken):
    q, k, v, scaling = inputs(8)  # of 64 bits
    step_by_step(q, k, v, WHOLE["published"], scaling, [1])
    q, k, v, scaling = inputs(8, dtype=torch.float32)
    arrays = KVArrays(k, WHOLE["published"], Chip(seed=3))
    decode(q, k, v, arrays, scaling=scaling)  # differentiated
    decode(q[:, :, :1], k[:, :, :1], v[:, :, :1], arrays, scaling=scaling)
    assert taken == [None] * 7


def test_all_that_may_happen_between_tokens(taken, monkeypatch):
    """Time passes, cells are refreshed, rows of the batch chosen, the cache is copied, pickled and fixed."""
    q, k, v, scaling = text("published")

    def told():
        arrays, out = KVArrays(k, WHOLE["published"], Chip(seed=3)), []

        def read(tokens, rows=slice(None)):
            out.append(decode(*(x[rows, :, tokens] for x in (q, k, v)), arrays, scaling=scaling))

        with torch.no_grad():
            read(slice(0, 20))
            read(slice(20, 21))
            arrays.wait(0.05)
            read(slice(21, 22))
            arrays.refresh()
            read(slice(22, 23))
            rows = torch.tensor([2, 0])
            arrays.select(rows)
            read(slice(23, 24), rows)
            arrays = pickle.loads(pickle.dumps(copy.deepcopy(arrays)))
            read(slice(24, 25), rows)
            arrays.fix()
            read(slice(25, 26), rows)
        return out, arrays

    got, arrays = told()
    assert sum(out is not None for out in taken) == 5
    expected, others = in_torch(monkeypatch, told)
    for one, other in zip(got, expected, strict=True):
        assert_same(one, other)
    assert_same_arrays(arrays, others)


@pytest.mark.parametrize("batch", [1, 3])
def test_half_precision_and_rows_apart_in_memory(batch, taken, monkeypatch):
    """As GPT-2 gives them: parts of one product."""
    q, k, v, scaling = text("published", B=batch)
    joined = torch.cat([q, k, v], dim=1).transpose(1, 2).contiguous().transpose(1, 2).bfloat16()
    q, k, v = joined.split([4, 2, 2], dim=1)
    got, _ = step_by_step(q, k, v, WHOLE["published"], scaling, PIECES)
    assert len(taken) == 38 and all(out is not None for out in taken)
    expected, _ = in_torch(monkeypatch, lambda: step_by_step(q, k, v, WHOLE["published"], scaling, PIECES))
    assert got.dtype == torch.bfloat16
    assert_same(got.float(), expected.float())
