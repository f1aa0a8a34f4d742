"""A tiny random model of slots."""

from __future__ import annotations

import torch

from aimc.models.gsa import GSAConfig, GSAForCausalLM

GAIN = 4.0
"""On matrices: at their first size all scores are almost equal."""


def tiny(seed: int = 0) -> GSAForCausalLM:
    """Two layers of 2 heads of 8 features and 6 slots, 64 tokens, in evaluation."""
    torch.manual_seed(seed)
    config = GSAConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_slots=6,
        intermediate_size=24,
        chunk_size=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    model = GSAForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(GAIN)
    return model


def ids(length: int, seed: int = 3) -> torch.Tensor:
    """Random tokens `[2, length]`."""
    return torch.randint(2, 64, (2, length), generator=torch.Generator().manual_seed(seed))
