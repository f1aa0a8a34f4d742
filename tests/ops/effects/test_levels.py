"""Levels at equal charge of a cell, and listed ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aimc import presets
from aimc.hardware import Cell, ConfigError, Converter, Hardware
from aimc.ops.effects.cell import transfer
from aimc.ops.effects.converters import before_storage_dac, quantize, storage_dac

CMOS = presets.gain_cell_cmos()


def machine(n_levels: int | None = None, **changes: object) -> Hardware:
    return replace(CMOS, storage_dac=Converter(n_levels=n_levels, v_max=0.9, spacing="equal_charge", **changes))


def charge(hardware: Hardware, x: torch.Tensor) -> torch.Tensor:
    return transfer(storage_dac(x, hardware) - hardware.cell.offset_v, hardware.cell)


def test_the_charge_of_a_curved_cell_is_a_straight_line_of_the_number() -> None:
    x = torch.linspace(0.0, 0.9, 1001, dtype=torch.float64)
    line = charge(machine(), x)
    straight = torch.lerp(line[0], line[-1], x / 0.9)
    assert float((line - straight).abs().max()) < 1e-9 * float(line[-1] - line[0])
    bent = charge(replace(CMOS, storage_dac=Converter(v_max=0.9)), x)
    assert float((bent - straight).abs().max()) > 0.09 * float(line[-1] - line[0])


@pytest.mark.parametrize("n_levels", [4, 8, 64])
def test_levels_are_n_and_evenly_spaced_in_charge(n_levels: int) -> None:
    x = torch.linspace(-0.2, 1.1, 20001, dtype=torch.float64)
    levels = storage_dac(x, machine(n_levels)).unique()
    assert (
        len(levels) == n_levels
        and float(levels.min()) == pytest.approx(0.0, abs=1e-12)
        and float(levels.max()) == pytest.approx(0.9)
    )
    steps = transfer(levels - CMOS.cell.offset_v, CMOS.cell).diff()
    assert torch.allclose(steps, steps.mean().expand_as(steps), rtol=1e-9)


@pytest.mark.parametrize("n_levels", [None, 8])
def test_the_gradient_behind_the_cell_is_the_lines_slope(n_levels: int | None) -> None:
    hardware = machine(n_levels)
    x = torch.linspace(-0.1, 1.0, 101, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(charge(hardware, x).sum(), x)
    ends = transfer(torch.tensor([-0.45, 0.45], dtype=torch.float64), CMOS.cell)
    slope = float(ends[1] - ends[0]) / 0.9
    inside = (x >= 0) & (x <= 0.9)
    assert torch.allclose(grad[inside], torch.full_like(grad[inside], slope), rtol=1e-6)
    assert not grad[~inside].any()


@pytest.mark.parametrize("inl", [0.0, 0.05])
def test_what_is_read_is_written_again(inl: float) -> None:
    hardware = machine(16, inl=inl)
    written = storage_dac(torch.linspace(0, 0.9, 50, dtype=torch.float64), hardware)
    again = storage_dac(before_storage_dac(written, hardware), hardware)
    assert torch.allclose(again, written, atol=1e-12)


def test_a_straight_cell_needs_no_curve() -> None:
    x = torch.linspace(0.0, 0.9, 100, dtype=torch.float64)
    hardware = replace(presets.gain_cell_linear(), storage_dac=machine(8).storage_dac)
    assert torch.allclose(storage_dac(x, hardware), quantize(x, Converter(n_levels=8, v_max=0.9)), atol=1e-12)


def test_listed_levels_take_the_nearest() -> None:
    converter = Converter(v_max=0.9, spacing="listed", positions=[0.1, 0.2, 0.7])
    assert converter.n_levels == 3
    x = torch.tensor([0.0, 0.14, 0.16, 0.46, 0.9], dtype=torch.float64, requires_grad=True)
    level = quantize(x, converter)
    assert level.tolist() == [0.1, 0.1, 0.2, 0.7, 0.7]
    assert torch.autograd.grad(level.sum(), x)[0].tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"spacing": "listed"}, "positions"),
        ({"positions": [0.1, 0.2]}, "positions"),
        ({"spacing": "listed", "positions": [0.2, 0.1]}, "positions.*rising"),
        ({"spacing": "listed", "positions": [0.1, 0.1]}, "positions.*rising"),
        ({"spacing": "listed", "positions": [0.1, 1.1]}, "positions.*v_max=1.0"),
        ({"spacing": "listed", "positions": [0.1]}, "positions"),
        ({"spacing": "listed", "positions": [0.1, 0.2], "n_levels": 4}, "n_levels"),
        ({"spacing": "logarithmic"}, "spacing"),
        ({"spacing": "equal_charge", "coding": "rounded"}, "spacing.*coding"),
    ],
)
def test_level_lists_that_no_converter_has(changes: dict[str, object], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        Converter(**changes)


def test_only_a_cell_whose_charge_rises_has_levels_at_equal_charge() -> None:
    falling = Cell(coefficients=[0.0, 1.0, 0.0, -5.0])
    with pytest.raises(ConfigError, match=r"storage_dac\.spacing.*does not rise"):
        Hardware(cell=falling, storage_dac=Converter(v_max=0.9, spacing="equal_charge"))
    with pytest.raises(ConfigError, match=r"input_dac\.spacing"):
        Hardware(input_dac=Converter(spacing="equal_charge"))
    with pytest.raises(ConfigError, match=r"supply"):
        Hardware(storage_dac=Converter(v_max=1.2, spacing="listed", positions=[0.1, 1.1]))
