"""Processes of a data-parallel run that share a calculation, each a part of it, so that all have the whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that make the same calls in the same order."""

    number: int = 0
    n: int = 1
    group: Any = None
    """torch's process group for objects; None: the one of all processes."""

    def mine(self, items: range) -> range:
        """Every n-th of some numbers."""
        return items[self.number :: self.n]

    def united(self, parts: dict[int, T]) -> list[T]:
        """The parts that all processes have, by number, in order."""
        if self.n > 1:
            found: list[dict[int, T]] = [{}] * self.n
            distributed.all_gather_object(found, parts, group=self.group)
            parts = {number: part for of_rank in found for number, part in of_rank.items()}
        return [parts[number] for number in sorted(parts)]

    def total(self, x: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.n > 1:
            x = x.contiguous()
            distributed.all_reduce(x)
        return x


ALONE = Ranks()


def all_ranks() -> Ranks:
    """Those of torch's process group; :data:`ALONE` where there is none."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def exact_sum(parts: list[Tensor]) -> Tensor:
    """The sum of float64 tensors of one shape `[N]`, rounded once: the same in whatever order, and however many
    processes have made the parts."""
    columns = zip(*(part.tolist() for part in parts), strict=True)
    return torch.tensor([math.fsum(column) for column in columns], dtype=torch.float64)
