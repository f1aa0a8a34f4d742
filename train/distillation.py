"""What a student learns from a teacher: divergence of predictions, and distance of hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from .errors import RunError

TOGETHER = 2**19
"""Logits that are compared at once on a CPU: more leave its cache."""
TOGETHER_ON_ACCELERATORS = 2**26
"""The same anywhere else: 1,300 tokens of a vocabulary of 50,000, 0.3 GB for each of the three to six tensors made of
them."""


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0, reverse_share: float = 0.0) -> Tensor:
    """Mean over tokens of (1 − ρ)·KL(teacher‖student) + ρ·KL(student‖teacher), in nat, times the square of the
    temperature (Hinton et al., arXiv 1503.02531), so that gradients keep their size. None of them reaches the teacher.

    Args:
        student, teacher: logits `[B, T, V]`, in any precision.
        temperature: both are divided by it.
        reverse_share: ρ.
    """
    return _Divergence.apply(student, teacher, temperature, reverse_share)  # type: ignore[no-untyped-call]


class _Divergence(torch.autograd.Function):
    """With its gradient at once, from the same probabilities, a few tokens at a time: only that gradient, which waits
    for the one from behind, is as large as all logits."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float, reverse_share: float) -> Tensor:  # type: ignore[override]
        slope, vocabulary = student.new_empty(student.shape), student.shape[-1]
        rows = max((TOGETHER if student.device.type == "cpu" else TOGETHER_ON_ACCELERATORS) // vocabulary, 1)
        total = torch.zeros((), device=student.device, dtype=_precise(student))
        for part in zip(*(x.flatten(0, -2).split(rows) for x in (student, teacher, slope)), strict=True):
            total += _kl(part, temperature, reverse_share)
        ctx.factor = temperature * vocabulary / student.numel()
        ctx.save_for_backward(slope)
        return total * temperature * ctx.factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * (grad * ctx.factor), None, None, None


def _kl(part: tuple[Tensor, ...], temperature: float, reverse_share: float) -> Tensor:
    """Of both models' logits `[N, V]`, the sum over tokens; into the third of the part goes its gradient for the
    student's, over the temperature."""
    student, teacher, slope = part
    # One pass less at the usual temperature.
    divided = (x if temperature == 1 else x.to(_precise(x)) / temperature for x in (student, teacher))
    drawn, wanted = (x.log_softmax(-1, dtype=_precise(x)) for x in divided)
    apart, drawn, wanted = drawn - wanted, drawn.exp_(), wanted.exp_()
    forward = -(wanted * apart).sum()
    if not reverse_share:
        slope.copy_(drawn.sub_(wanted))
        return forward
    reverse = (drawn * apart).sum(-1, keepdim=True)
    slope.copy_((1 - reverse_share) * (drawn - wanted) + reverse_share * drawn * (apart - reverse))
    return (1 - reverse_share) * forward + reverse_share * reverse.sum()


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def hidden_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over layers and tokens of 1 − cos between hidden states, of each layer's `[B, T, E]`; 0 to 2.

    As transformers gives them: what the embeddings give is left out (both models begin with the same), and the last
    layer's stands behind the final norm.
    """
    distances = [
        1 - cosine_similarity(a.float(), b.float(), dim=-1).mean()
        for a, b in zip(student[1:], teacher[1:], strict=True)
    ]
    return torch.stack(distances).mean()


def require_teacher(teacher: PreTrainedModel, student: PreTrainedModel, stage: str) -> None:
    """Check that a student can learn from a teacher.

    Raises:
        RunError: another vocabulary or architecture.
    """
    for name, what in (
        ("vocab_size", "each token's probability is compared"),
        ("model_type", "hidden states are compared layer by layer"),
        ("num_hidden_layers", "hidden states are compared layer by layer"),
        ("hidden_size", "hidden states are compared layer by layer"),
    ):
        one, other = getattr(teacher.config, name, None), getattr(student.config, name, None)
        if one != other:
            raise RunError(
                f"stage {stage}: the teacher has {name}={one} and the model that learns {other}, and {what}; take both"
                " from one run (output_dir, previous)"
            )
