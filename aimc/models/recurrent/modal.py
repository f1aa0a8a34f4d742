"""A linear recurrence in modal form, as a convolution over a whole text and as a step a token.

x_t = p·x_{t−1} + u_t with a complex pole p per mode, and y_t = Re Σ r·x_t over the modes of a channel with their
residues r; so y = h ∗ u with the impulse response h_t = Re Σ r·p^t. H3's diagonal state space (arXiv 2212.14052,
section 3) and the long convolution of StripedHyena (arXiv 2310.18780, section 3) are both of this form.

Powers are taken in complex128 and products of them in complex64: at thousands of tokens an angle taken in float32 would
be wrong in the fourth digit.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from aimc.models.recurrent.convolution import causal_convolution


def powers(base: Tensor, n: int) -> Tensor:
    """base^0 … base^(n−1), `[..., n]`, by doubling: no logarithm, so a pole at 0 has powers and gradients, too."""
    result = torch.ones_like(base)[..., None]
    while result.shape[-1] < n:
        result = torch.cat([result, result * base[..., None]], dim=-1)
        base = base * base
    return result[..., :n]


def impulse_response(poles: Tensor, residues: Tensor, n: int) -> Tensor:
    """h_t = Re Σ residues·poles^t for t = 0 … n−1.

    p^(i·b + j) = (p^b)^i · p^j with b ≈ √n, so it is one matrix product a channel, and no array is as long as modes
    times tokens.

    Args:
        poles: `[C, N]`, complex128.
        residues: `[..., C, N]`, complex; with a batch in front it is the response to a state, see :func:`modal_filter`.

    Returns:
        `[..., C, n]` in float32.
    """
    block = math.isqrt(n - 1) + 1
    inside = powers(poles, block)  # [C, N, b]
    starts = powers(inside[..., -1] * poles, -(-n // block))  # [C, N, blocks]
    weights = (residues[..., None] * starts).to(torch.complex64)  # [..., C, N, blocks]
    return (weights.mT @ inside.to(torch.complex64)).real.flatten(-2)[..., :n]


def final_state(poles: Tensor, signal: Tensor) -> Tensor:
    """x after the last token, begun at 0: Σ_t poles^(T−1−t)·signal_t, in blocks as in :func:`impulse_response`.

    Args:
        poles: `[C, N]`, complex128.
        signal: `[B, C, T]`, real.

    Returns:
        `[B, C, N]`, complex64.
    """
    n = signal.shape[-1]
    block = math.isqrt(n - 1) + 1
    n_blocks = -(-n // block)
    folded = F.pad(signal.float(), (n_blocks * block - n, 0)).unflatten(-1, (n_blocks, block))  # [B, C, blocks, b]
    inside = powers(poles, block)  # [C, N, b]
    ends = powers(inside[..., -1] * poles, n_blocks).flip(-1).to(torch.complex64)  # [C, N, blocks]
    of_blocks = folded.to(torch.complex64) @ inside.flip(-1).mT.to(torch.complex64)  # [B, C, blocks, N]
    return (of_blocks * ends.mT).sum(-2)


def modal_filter(
    signal: Tensor, poles: Tensor, residues: Tensor, state: Tensor | None = None, *, keep_state: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The recurrence over new tokens: a step for one token that follows others, else a convolution.

    Args:
        signal: `[B, C, T]`, real.
        poles: `[C, N]`, complex128.
        residues: `[C, N]`, complex128.
        state: x of the tokens before, `[B, C, N]`, complex64; None: there are none.
        keep_state: whether the state after the last token is asked for.

    Returns:
        y `[B, C, T]` in float32, and x `[B, C, N]` in complex64, or None.
    """
    n_tokens = signal.shape[-1]
    if n_tokens == 1 and state is not None:
        state = poles.to(torch.complex64) * state + signal.float()  # [B, C, N] + [B, C, 1]
        return (residues.to(torch.complex64) * state).sum(-1, keepdim=True).real, state
    output = causal_convolution(signal, impulse_response(poles, residues, n_tokens))
    if state is not None:
        output = output + impulse_response(poles, residues * poles * state, n_tokens)
    if not keep_state:
        return output, None
    now = final_state(poles, signal)
    if state is not None:
        now = now + _power(poles, n_tokens).to(torch.complex64) * state
    return output, now


def _power(base: Tensor, n: int) -> Tensor:
    """base^n by squaring, for n ≥ 1."""
    result = torch.ones_like(base)
    while n:
        if n & 1:
            result = result * base
        base, n = base * base, n >> 1
    return result


def bilinear(dt: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Discretise x' = a·x + u: poles (1 + a·dt/2) / (1 − a·dt/2), and the gain dt / (1 − a·dt/2) of the input.

    Args:
        dt: step, `[C]`.
        a: continuous poles, `[C, N]`, complex.
    """
    half = a * dt[:, None] / 2
    return (1 + half) / (1 - half), dt[:, None] / (1 - half)


DT_MIN, DT_MAX = 1e-3, 1e-1
"""Range of the step at initialisation, spread evenly in its logarithm (S4D, arXiv 2206.11893, as H3 uses it)."""


def diag_lin(n_modes: int) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of S4D-Lin's poles, `[N]` each: −1/2 + iπn (arXiv 2206.11893, equation 10)."""
    return torch.full((n_modes,), -0.5), math.pi * torch.arange(n_modes, dtype=torch.float32)
