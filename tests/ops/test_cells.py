"""What cells hold between tokens: the levels themselves, a byte each, read the same way compiled and in PyTorch."""

from dataclasses import replace

import pytest
import torch

from aimc import presets
from aimc.evaluate.memory import held_bytes
from aimc.hardware import Array, Converter, Leakage, Noise
from aimc.ops import compiled
from aimc.ops.decode import cells as module
from aimc.ops.decode.arrays import KVArrays
from aimc.ops.decode.cells import Cells
from aimc.ops.eager import operands
from aimc.ops.effects.array import charge_av, charge_qk, decayed
from aimc.ops.effects.cell import leaking_cell
from aimc.ops.effects.converters import storage_dac
from aimc.ops.effects.noise import ArrayId, Chip
from aimc.ops.heads import Heads
from aimc.ops.scaling import Scaling

W, R, D = 32, 8, 64
CODES = {
    "8 levels": Converter(n_levels=8, v_max=0.9),
    "256 levels": Converter(n_levels=256, v_max=0.9),
    "bent": Converter(n_levels=16, v_max=0.9, inl=-0.1),
    "equal charge": Converter(n_levels=8, v_max=0.9, spacing="equal_charge", inl=0.05),
    "listed": Converter(v_max=0.9, spacing="listed", positions=[0.0, 0.1, 0.35, 0.9]),
    "rounded": Converter(n_levels=8, v_max=0.9, coding="rounded"),
    "rounded, beside its ends": Converter(n_levels=8, v_min=0.13, v_max=0.85, coding="rounded"),
}
VOLTAGES = {
    "no levels": {"storage_dac": Converter(v_max=0.9)},
    "more levels than a byte": {"storage_dac": Converter(n_levels=257, v_max=0.9)},
    "write noise": {"noise": Noise(write_v=0.01)},
}
MISMATCH = Noise(mismatch_gain=0.1, mismatch_offset_v=0.02)
MACHINES = {
    "levels": {},
    "levels, mismatch": {"noise": MISMATCH},
    "uneven levels": {"storage_dac": CODES["equal charge"]},
    "voltages, leaking to ground": {
        "noise": Noise(write_v=0.02),
        "leakage": Leakage(tau_s=1.0, token_time_s=0.01, target_v=0.0),
    },
    "linear, no leakage": {"cell": presets.gain_cell_linear().cell, "leakage": Leakage()},
    "each its own decay": {"noise": replace(MISMATCH, tau_spread=0.4)},
}


def machine(**changes):
    hardware = presets.gain_cell_cmos()
    hardware.array = Array(window=W, rows=R)
    hardware.leakage = Leakage(tau_s=1.0, token_time_s=0.01)
    return replace(hardware, **changes)


def filled(hardware, *, B=3, H_kv=2, G=2, n_tokens=2 * W + R, dtype=torch.float32):
    """Arrays that have been written to, and a query's heads."""
    g = torch.Generator().manual_seed(0)
    key, value = 0.45 + 0.3 * torch.randn(2, B, H_kv, n_tokens, D, generator=g, dtype=dtype)
    query = torch.rand(B, H_kv * G, 1, D, generator=g, dtype=dtype)
    arrays = KVArrays(key, hardware, Chip(seed=3), torch.Generator().manual_seed(1))
    heads = Heads(query, key, hardware, arrays.chip, arrays.seed, arrays.cell)
    arrays.write(heads, key, value, torch.zeros(B, n_tokens, dtype=torch.bool), Scaling(None, None, None))
    return arrays, heads, query.view(B, H_kv, G, D)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CODES)
def test_codes_stand_for_exactly_what_the_dac_writes(name, dtype):
    hardware = machine(storage_dac=CODES[name])
    cell = leaking_cell(hardware)
    x = 2.4 * torch.rand(2, 3, W, D, generator=torch.Generator().manual_seed(0), dtype=dtype) - 1.2
    cells = Cells((2, 3, W, D), hardware, cell, x)
    cells.write(torch.arange(W).flip(0), storage_dac(x, hardware) - cell.offset_v)
    assert cells.state.dtype == torch.uint8
    assert torch.equal(cells.voltages(slice(None)), (storage_dac(x, hardware) - cell.offset_v).flip(2))
    if cells.line is not None:  # the straight line that stands for the levels where cells are read
        step, lowest = cells.line
        torch.testing.assert_close(lowest + step * cells.state.to(dtype), cells.voltages(slice(None)))


def newest(arrays):
    """Position of the token that reads."""
    return torch.tensor([arrays.n_tokens - 1])


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("n_tokens", [2 * W + R, R + 1])
def test_a_read_is_that_of_the_operands(name, n_tokens, monkeypatch):
    """Compiled and in PyTorch, all heads at once or one by one, on full arrays and on the first sub-tiles."""
    arrays, heads, pulses = filled(machine(**MACHINES[name]), n_tokens=n_tokens)
    n_slots = min(-(-n_tokens // R) * R, W)
    n_held, n_tiles = min(n_tokens, W), n_slots // R
    widths = torch.rand(*pulses.shape[:3], n_slots).masked_fill(torch.rand(n_slots) < 0.3, 0.0)
    widths[..., n_held:] = 0.0  # an empty slot gets no pulse
    expected, moments = [], arrays.moments(heads, n_slots, newest(arrays))
    for array, x in zip(ArrayId, (pulses, widths), strict=True):
        u = arrays.cells[array].voltages(slice(0, n_held)).double()
        double = Heads(*(torch.zeros(3, n, 1, D, dtype=torch.float64) for n in (4, 2)), arrays.hardware, arrays.chip, 0)
        charge = decayed(
            operands(double, u, array, arrays.tokens[:n_held]),
            arrays.cell_decay(array, slice(0, n_held), arrays.now - 1),
        )
        if array == ArrayId.QK:
            expected.append(charge_qk(x.double(), [charge], None))
        else:
            charge = torch.nn.functional.pad(charge, (0, 0, 0, n_slots - n_held)).unflatten(-2, (n_tiles, R))
            of_tiles = x.double().unflatten(-1, (n_tiles, R)).transpose(2, 3)
            expected.append(charge_av(of_tiles, [charge], None))

    def check():
        scores = arrays.cells[ArrayId.QK].read_qk(pulses, moments[0])[..., :n_held]
        counts = arrays.cells[ArrayId.AV].read_av(widths, moments[1], n_tiles)
        for got, wanted in zip((scores, counts), expected, strict=True):
            torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-3)  # a full scale is 80 or 40

    if compiled.kernels() is not None:
        check()
    monkeypatch.setattr(compiled, "kernels", lambda: None)
    check()
    monkeypatch.setattr(module, "CELLS_AT_ONCE", 1)
    check()


def test_compiled_reads_are_taken_where_they_can_be(monkeypatch):
    if compiled.kernels() is None:
        pytest.skip("numba is not installed")
    taken = []
    kernels = compiled.kernels()
    monkeypatch.setattr(compiled, "kernels", lambda: taken.append(1) or kernels)
    for name, n_taken in {"levels": 1, "each its own decay": 0}.items():
        arrays, heads, pulses = filled(machine(**MACHINES[name]))
        moments, _ = arrays.moments(heads, W, newest(arrays))  # which draws what is frozen, unless another test has
        taken.clear()
        arrays.cells[ArrayId.QK].read_qk(pulses, moments)
        assert len(taken) == n_taken, name


# --- Memory
# -----------------------------------------------------------------------------------------------------------------


def share_of_digital(arrays):
    """Memory over that of a digital float32 cache of the same tokens."""
    assert arrays.n_bytes == held_bytes(vars(arrays))
    return arrays.n_bytes / (2 * 4 * arrays.n_batch * arrays.n_kv_heads * W * D)


@pytest.mark.parametrize("change", [None, *CODES], ids=str)
def test_levels_are_kept_in_a_byte(change):
    hardware = machine(noise=MISMATCH) if change is None else machine(storage_dac=CODES[change])
    arrays, *_ = filled(hardware, B=2, H_kv=12)
    assert share_of_digital(arrays) <= 0.3
    arrays.refresh()
    arrays.select(torch.tensor([1, 0]))
    assert share_of_digital(arrays) <= 0.3


def test_the_shipped_hardware_keeps_bytes():
    for hardware in (presets.gain_cell_cmos(), presets.published(), presets.with_softmax(presets.igzo())):
        hardware.array = Array(window=W, rows=R)
        arrays, *_ = filled(hardware, B=1, H_kv=12, G=1)
        assert share_of_digital(arrays) <= 0.3


@pytest.mark.parametrize("name", VOLTAGES)
def test_what_only_a_voltage_tells_is_kept_as_one(name):
    arrays, *_ = filled(machine(**VOLTAGES[name]), B=2, H_kv=12)
    assert 1.0 <= share_of_digital(arrays) <= 1.1
    arrays.refresh()
    arrays.select(torch.tensor([1, 0]))
    assert share_of_digital(arrays) <= 1.1
