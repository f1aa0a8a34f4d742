"""What a student learns from a teacher: divergence of predictions, and distance of hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, kl_div
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from .errors import RunError

TOKENS_TOGETHER = 2048
"""Tokens whose predictions are compared at once: log-probabilities of a vocabulary of 50,000 are 0.4 GB then, and none
are kept for the backward pass, which computes them again. Fewer tokens than these are compared in one go."""


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0, reverse_share: float = 0.0) -> Tensor:
    """Mean over tokens of (1 − ρ)·KL(teacher‖student) + ρ·KL(student‖teacher), in nat, times the square of the
    temperature (Hinton et al., arXiv 1503.02531), so that gradients keep their size.

    Args:
        student, teacher: logits `[B, T, V]`, in any precision.
        temperature: both are divided by it.
        reverse_share: ρ.
    """
    drawn, wanted = (x.flatten(0, -2).split(TOKENS_TOGETHER) for x in (student, teacher))  # [N, V] each
    n_tokens = sum(len(part) for part in drawn)
    settings = (temperature, reverse_share)
    if len(drawn) == 1:
        total = _sum_of_kl(drawn[0], wanted[0], *settings)
    else:
        parts = [
            checkpoint(_sum_of_kl, *of_part, *settings, use_reentrant=False, preserve_rng_state=False)
            for of_part in zip(drawn, wanted, strict=True)
        ]
        total = torch.stack(parts).sum()
    return temperature**2 * total / n_tokens


def _sum_of_kl(student: Tensor, teacher: Tensor, temperature: float, reverse_share: float) -> Tensor:
    """Of logits `[N, V]`, the sum over tokens."""
    drawn = (student.float() / temperature).log_softmax(-1)
    wanted = (teacher.float() / temperature).log_softmax(-1)
    loss = torch.zeros((), device=student.device)
    if reverse_share < 1:
        loss = (1 - reverse_share) * kl_div(drawn, wanted, log_target=True, reduction="sum")
    if reverse_share > 0:
        loss = loss + reverse_share * kl_div(wanted, drawn, log_target=True, reduction="sum")
    return loss


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
