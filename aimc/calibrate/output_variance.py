"""How much of each head of the digital model the heads on arrays explain, on the digital model's hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from aimc.calibrate.blocks import Block, Call, relative_error, run_decoder, student_output, watching
from aimc.calibrate.observation import RealTokens
from aimc.calibrate.output_report import LayerOutput
from aimc.nn.attention import GainCellAttention


@dataclass(slots=True)
class Projection:
    """The output projection of a block, found while it computes, and what arrives there."""

    module: nn.Module | None = None
    heads: Tensor | None = None
    """`[B, T, H · D]`."""

    def of_head(self, head: int, n_heads: int) -> Tensor:
        """What one head adds to the block's output, `[B, T, features]`."""
        assert self.module is not None and self.heads is not None  # the block has computed
        features = self.heads.unflatten(-1, (n_heads, -1))
        alone = torch.zeros_like(features)
        alone[..., head, :] = features[..., head, :]
        nothing = torch.zeros_like(self.heads[:1, :1])  # leaves the bias, which belongs to no head
        return self.module(alone.flatten(-2)) - self.module(nothing)


@contextmanager
def projecting(attention: nn.Module) -> Iterator[Projection]:
    """Finds the output projection of an attention module that computes inside the block: the last of its children with
    weights to be called."""
    found = Projection()

    def called(module: nn.Module, args: tuple[Any, ...]) -> None:
        found.module, found.heads = module, args[0]

    with ExitStack() as stack:
        for child in attention.children():
            if not isinstance(child, GainCellAttention) and next(child.parameters(), None) is not None:
                stack.callback(child.register_forward_pre_hook(called).remove)
        yield found


def measured(reference: PreTrainedModel, blocks: list[Block], batch: dict[str, Tensor]) -> list[LayerOutput]:
    """Error of every block, and explained variance of its heads, as "before" and "after" alike; called without
    gradients and in evaluation mode."""
    found: list[LayerOutput] = []
    real = RealTokens()
    real.mask = batch.get("attention_mask")

    def seen(i: int, call: Call) -> None:
        block = blocks[i]
        with projecting(block.student) as student:
            output = student_output(block, call, real.mask)
        of_heads = _explained(student, teachers[i], len(block.layer.query_scaler.scale), real)
        teachers[i].heads = None
        error = float(relative_error(output, call.output, real.mask))
        found.append(
            LayerOutput(
                layer=block.layer.layer,
                error_before=error,
                error_after=error,
                explained_before=of_heads,
                explained_after=of_heads,
            )
        )

    with ExitStack() as stack:
        teachers = [stack.enter_context(projecting(block.teacher)) for block in blocks]
        stack.enter_context(watching([block.teacher for block in blocks], seen))
        run_decoder(reference, batch)
    return found


def _explained(student: Projection, teacher: Projection, n_heads: int, real: RealTokens) -> list[float]:
    # The teacher's projection tells of every call, and is called below.
    teacher = Projection(teacher.module, teacher.heads)
    return [
        explained_variance(real.of(student.of_head(head, n_heads), 1), real.of(teacher.of_head(head, n_heads), 1))
        for head in range(n_heads)
    ]


def explained_variance(x: Tensor, target: Tensor) -> float:
    """One minus the squared error of `[B, T, features]` over the target's power about the mean of each feature."""
    x, target = x.double(), target.double()
    power = (target - target.mean(dim=(0, 1))).square().sum().clamp(min=torch.finfo(torch.float64).tiny)
    return float(1 - (x - target).square().sum() / power)
