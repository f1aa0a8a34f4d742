"""What a student learns from a teacher: the divergence of predictions, its gradient, and the distance of hidden
states."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import kl_div

from train import distillation
from train.distillation import divergence, hidden_distance


def test_the_divergence_is_what_it_says() -> None:
    """Two tokens of two entries, by hand: p = (3/4, 1/4) and (1/2, 1/2), q = (1/2, 1/2) both times."""
    teacher = torch.tensor([[[math.log(3.0), 0.0], [1.0, 1.0]]])
    student = torch.zeros(1, 2, 2)
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert divergence(student, teacher).item() == pytest.approx(forward / 2)
    assert divergence(student, teacher, reverse_share=1.0).item() == pytest.approx(reverse / 2)
    assert divergence(student, teacher, reverse_share=0.25).item() == pytest.approx(
        (0.75 * forward + 0.25 * reverse) / 2
    )
    # at temperature 2 the odds are √3
    p = math.sqrt(3) / (1 + math.sqrt(3))
    soft = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert divergence(student, teacher, temperature=2.0).item() == pytest.approx(4 * soft / 2)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("reverse_share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("together", [2**19, 21])
def test_the_gradient_of_the_divergence(
    together: int, reverse_share: float, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is that of PyTorch's own divergence, and in double precision that of differences."""
    monkeypatch.setattr(distillation, "TOGETHER", together)
    g = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(2, 5, 7, generator=g) for _ in range(2))
    student.requires_grad_()
    drawn, wanted = ((x / temperature).log_softmax(-1).flatten(0, 1) for x in (student, teacher))
    expected = (1 - reverse_share) * kl_div(drawn, wanted, log_target=True, reduction="batchmean")
    expected = temperature**2 * (
        expected + reverse_share * kl_div(wanted, drawn, log_target=True, reduction="batchmean")
    )
    found = divergence(student, teacher, temperature, reverse_share)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(3 * x, student, retain_graph=True)[0] for x in (found, expected)))
    precise = student.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: divergence(x, teacher.double(), temperature, reverse_share), precise)


def test_the_divergence_of_half_precision_is_computed_in_full() -> None:
    student, teacher = (torch.randn(2, 5, 300, dtype=torch.bfloat16) for _ in range(2))
    student.requires_grad_()
    found, expected = divergence(student, teacher), divergence(student.float(), teacher.float())
    assert found.dtype == torch.float32 and found.equal(expected)
    of_half, of_full = (torch.autograd.grad(x, student)[0] for x in (found, expected))
    assert of_half.dtype == torch.bfloat16
    torch.testing.assert_close(of_half, of_full, rtol=2**-7, atol=0)


def test_hidden_states_are_compared_by_their_direction() -> None:
    first = torch.randn(2, 3, 4)
    turned = torch.tensor([[[0.0, 5.0]]]), torch.tensor([[[1.0, 1.0]]])
    along = torch.tensor([[[2.0, 0.0]]])
    assert hidden_distance((first, along, along), (-first, *turned)).item() == pytest.approx(
        (1 + 1 - math.sqrt(0.5)) / 2
    )
