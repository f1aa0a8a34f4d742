import pytest
import torch

from aimc import presets
from aimc.hardware import Cell
from aimc.ops.effects.cell import cell_coefficients, cell_operands, transfer
from aimc.ops.effects.leakage import age, decay_factor

QUINTIC = [0.3, 5.0, -2.0, 7.0, 1.5, -4.0]


def u_values():
    return torch.linspace(-0.45, 0.45, 21, dtype=torch.float64)


@pytest.mark.parametrize("coefficients", [[0.0, 19.3], list(presets.CMOS_COEFFICIENTS), QUINTIC, [0.0, 0.0, 0.0, 3.0]])
@pytest.mark.parametrize("gradient", ["exact", "linear"])
def test_transfer_is_the_polynomial(coefficients, gradient):
    u = u_values()
    expected = sum(c * u**i for i, c in enumerate(coefficients))
    torch.testing.assert_close(transfer(u, Cell(coefficients=coefficients, gradient=gradient)), expected)


@pytest.mark.parametrize("coefficients", [[0.0, 19.3], list(presets.CMOS_COEFFICIENTS), QUINTIC])
@pytest.mark.parametrize("decay", [1.0, 0.6])
@pytest.mark.parametrize("with_gain", [False, True])
@pytest.mark.parametrize("with_offset", [False, True])
def test_operands_and_decay_powers_make_the_leaky_mismatched_cell(coefficients, decay, with_gain, with_offset):
    u0 = u_values()
    gain = torch.linspace(-0.1, 0.2, 21, dtype=torch.float64) if with_gain else None
    offset = torch.linspace(0.03, -0.02, 21, dtype=torch.float64) if with_offset else None
    cell = Cell(coefficients=coefficients)
    operands = cell_operands(u0, cell, cell_coefficients(cell, gain, offset))
    assert len(operands) == len(coefficients)
    total = sum(decay**j * operand for j, operand in enumerate(operands))
    u = u0 * decay + (0.0 if offset is None else offset)
    torch.testing.assert_close(total, transfer(u, cell) * (1.0 if gain is None else 1 + gain))


def test_absent_powers_stay_plain_zeros():
    operands = cell_operands(u_values(), Cell(coefficients=[0.5, 0.0, 2.0]))
    assert operands[0] == 0.5 and operands[1] == 0.0 and isinstance(operands[1], float)


def test_exact_gradient_is_the_derivative():
    u = u_values().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: transfer(x, Cell(coefficients=QUINTIC)), (u,))


@pytest.mark.parametrize("coefficients", [QUINTIC, [0.0, 0.0, 0.0, 3.0]])
def test_linear_gradient_is_the_slope_whatever_the_polynomial_and_mismatch(coefficients):
    cell = Cell(coefficients=coefficients, gradient="linear", surrogate_slope=19.3)
    u = u_values().requires_grad_()
    transfer(u, cell).sum().backward()
    torch.testing.assert_close(u.grad, torch.full_like(u, 19.3))
    u0 = u_values().requires_grad_()
    operands = cell_operands(u0, cell, cell_coefficients(cell, torch.full((21,), 0.2), torch.full((21,), 0.01)))
    sum((0.6**j * operand for j, operand in enumerate(operands)), torch.zeros(())).sum().backward()
    torch.testing.assert_close(u0.grad, torch.full_like(u0, 19.3 * 0.6))


def test_decay_falls_by_one_lambda_per_token_and_never_grows():
    positions = torch.arange(5)
    ages = age(positions, positions)
    assert ages[4].tolist() == [4, 3, 2, 1, 0] and ages[0].tolist() == [0] * 5
    factors = decay_factor(ages, 0.3, power=2, dtype=torch.float64)
    assert factors[4, 1].item() == pytest.approx(2.718281828459045 ** (-2 * 0.3 * 3))
    assert factors.max() == 1.0
