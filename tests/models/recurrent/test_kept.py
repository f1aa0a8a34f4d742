"""What is made of weights is made again when they change, and never kept where it would be out of date."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from aimc.models.recurrent.kept import kept


class Made(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.count = 0

    @kept
    def double(self) -> torch.Tensor:
        self.count += 1
        return 2 * self.weight


@torch.no_grad()
def test_it_is_made_once_until_a_weight_changes() -> None:
    made = Made().eval()
    assert made.double() is made.double() and made.count == 1
    made.weight.mul_(3)
    assert made.double().tolist() == [6, 6]
    made.weight.data = torch.zeros(2)  # as moving a model to another device does
    assert made.double().tolist() == [0, 0]
    made.load_state_dict({"weight": torch.full((2,), 5.0)})
    assert made.double().tolist() == [10, 10] and made.count == 4
    other = deepcopy(made)
    other.weight.fill_(1)
    assert other.double().tolist() == [2, 2] and made.double().tolist() == [10, 10]


def test_training_keeps_nothing() -> None:
    made = Made().eval()
    assert made.double().requires_grad and made.double() is not made.double()
    with torch.no_grad():
        made.train()
        assert made.double() is not made.double()
    with torch.inference_mode():
        assert Made().eval().double().tolist() == [2, 2]
