"""Slots: a bounded memory that is written by gates and read by a softmax over its slots.

Per head, with keys K and values V of m slots `[m, D]`, gates α `[m]` of a token:

    K ← diag(α)·K + (1 − α)·kᵀ,  V ← diag(α)·V + (1 − α)·vᵀ,  out = Vᵀ·softmax(K·q)

Source: arXiv 2409.07146, eq. 5-8.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Memory(NamedTuple):
    """What the slots of one layer hold."""

    keys: Tensor
    """`[B, H, m, D]`; in volt about rest where the slots are in cells."""
    values: Tensor
    """Likewise."""


def empty_memory(key: Tensor, n_slots: int) -> Memory:
    """Slots that hold nothing, for keys `[B, H, T, D]`."""
    n_batch, n_heads, _, size = key.shape
    return Memory(*(key.new_zeros(n_batch, n_heads, n_slots, size) for _ in range(2)))


def recurrent(query: Tensor, key: Tensor, value: Tensor, log_gate: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """Token by token, as the equations stand.

    Args:
        query, key, value: `[B, H, T, D]`.
        log_gate: log α of each slot, not above 0, `[B, H, T, m]`; 0 where a token is padding, which changes nothing.
        memory: before the first token.

    Returns:
        What is read at each token, after it is written, `[B, H, T, D]`, and the memory after the last.
    """
    keys, values = memory
    gates, shares = log_gate.exp(), -torch.expm1(log_gate)
    out = []
    for t in range(query.shape[2]):
        gate, share = gates[:, :, t, :, None], shares[:, :, t, :, None]  # [B, H, m, 1]
        keys = gate * keys + share * key[:, :, t, None]
        values = gate * values + share * value[:, :, t, None]
        scores = keys @ query[:, :, t, :, None]  # [B, H, m, 1]
        out.append((scores.softmax(dim=-2) * values).sum(dim=-2))
    return torch.stack(out, dim=2), Memory(keys, values)


def chunked(
    query: Tensor, key: Tensor, value: Tensor, log_gate: Tensor, memory: Memory, size: int = 16
) -> tuple[Tensor, Memory]:
    """:func:`recurrent`, all tokens of a chunk at once: the same outputs and gradients.

    Inside a chunk, token s still counts at t by `(1 − α_s)·Π_{s<r≤t} α_r` per slot, a product of pairs that never
    overflows; between chunks the memory is carried.

    Args:
        query, key, value, log_gate, memory: as there.
        size: C, tokens of a chunk; memory grows as T·C·m.
    """
    n_tokens = query.shape[2]
    missing = -n_tokens % size
    q, k, v, g = (
        pad(x, (0, 0, 0, missing)).unflatten(2, (-1, size)) for x in (query, key, value, log_gate)
    )  # [B, H, N, C, ·]; what is added has gates of 1 and writes nothing
    gone = g.cumsum(dim=-2)  # log of what is left of the memory before the chunk, [B, H, N, C, m]
    share = -torch.expm1(g)
    future = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1)[..., None]
    since = (gone[..., :, None, :] - gone[..., None, :, :]).masked_fill(future, -torch.inf)
    left = since.exp() * share[..., None, :, :]  # of token s at t, [B, H, N, C(t), C(s), m]
    at_end = ((gone[..., -1:, :] - gone).exp() * share).mT  # [B, H, N, m, C]
    kept = gone[..., -1, :, None].exp()  # [B, H, N, m, 1]
    of_keys, of_values = at_end @ k, at_end @ v  # [B, H, N, m, D]
    starts = []
    keys, values = memory
    # not by index: the gradient of each slice would be a whole tensor of zeros
    for left_of_old, new_keys, new_values in zip(*(x.unbind(dim=2) for x in (kept, of_keys, of_values)), strict=True):
        starts.append(Memory(keys, values))
        keys = left_of_old * keys + new_keys
        values = left_of_old * values + new_values
    before = Memory(*(torch.stack(parts, dim=2) for parts in zip(*starts, strict=True)))
    carried = gone.exp()  # [B, H, N, C, m]
    scores = torch.einsum("...ts,...tsm->...tm", q @ k.mT, left) + carried * (q @ before.keys.mT)
    shares = scores.softmax(dim=-1)
    weights = torch.einsum("...tm,...tsm->...ts", shares, left)
    out = weights @ v + (carried * shares) @ before.values
    return out.flatten(2, 3)[:, :, :n_tokens], Memory(keys, values)
