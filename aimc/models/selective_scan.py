"""Mamba's scan for training without its CUDA kernels.

transformers' reference takes a slice of two large tensors at every token; the gradient of a slice is a whole tensor of
zeros, so its backward pass grows by the square of the length: minutes for one step over 256 tokens. Here is the same
recurrence with its own backward pass, which grows with the length.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Recurrence(torch.autograd.Function):
    """h_t = a_t·h_{t−1} + x_t over the second axis of `[B, T, …]`, with h_{−1} = 0.

    On a CPU token by token, which reads everything once; on an accelerator, where a call costs more than its work, in
    √T chunks side by side: 2·√T calls in place of T.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, x: Tensor, chunk: int | None = None) -> Tensor:  # type: ignore[override]
        """All states, `[B, T, …]`; `chunk`: tokens of a chunk, None: as the device wants it."""
        if chunk is None:
            chunk = x.shape[1] if x.device.type == "cpu" else math.isqrt(x.shape[1])
        states = walked(a, x, chunk)
        ctx.save_for_backward(a, states)
        ctx.chunk = chunk
        return states

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        """Of `a` and of `x`: the same recurrence from the end."""
        a, states = ctx.saved_tensors
        if ctx.chunk < grad.shape[1]:
            of_x = walked(a.flip(1).roll(1, 1), grad.flip(1), ctx.chunk).flip(1)
        else:  # without the copies that turn it around
            of_x = torch.empty_like(grad)
            of_x[:, -1] = grad[:, -1]
            for t in range(grad.shape[1] - 2, -1, -1):
                torch.addcmul(grad[:, t], a[:, t + 1], of_x[:, t + 1], out=of_x[:, t])
        of_a = torch.zeros_like(a)
        torch.mul(of_x[:, 1:], states[:, :-1], out=of_a[:, 1:])
        return of_a, of_x, None


def walked(a: Tensor, x: Tensor, chunk: int) -> Tensor:
    """The recurrence: in each chunk by itself from zero, then from chunk to chunk, then what is left over.

    Factors up to 1 in size, as of all that forgets, cannot overflow in the products of a chunk.

    Args:
        a, x: `[B, T, …]`.
        chunk: tokens of a chunk; T: one after the other.
    """
    states, n_tokens = torch.empty_like(x), x.shape[1]
    chunk = min(chunk, n_tokens)
    n_chunks = n_tokens // chunk
    whole = n_chunks * chunk
    a_in, x_in, states_in = (y[:, :whole].unflatten(1, (n_chunks, chunk)) for y in (a, x, states))
    states_in[:, :, 0] = x_in[:, :, 0]
    for t in range(1, chunk):
        torch.addcmul(x_in[:, :, t], a_in[:, :, t], states_in[:, :, t - 1], out=states_in[:, :, t])
    if n_chunks > 1:
        left = a_in.cumprod(dim=2)  # at each token, of what was there before its chunk
        for n in range(1, n_chunks):
            states_in[:, n].addcmul_(left[:, n], states_in[:, n - 1, -1:])
    for t in range(whole, n_tokens):
        torch.addcmul(x[:, t], a[:, t], states[:, t - 1], out=states[:, t])
    return states


def selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **kwargs: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """As `mamba_selective_scan` of transformers: inputs, steps and gates `[batch, channels, T]`, A `[channels, N]`, B
    and C `[batch, N, T]`; outputs `[batch, channels, T]`, and the last state `[batch, channels, N]` where asked."""
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype)[..., None]
    if delta_softplus:
        dt = F.softplus(dt)
    dt, u = dt.mT.float(), hidden_states.mT.float()  # [batch, T, channels]
    states = Recurrence.apply(torch.exp(dt[..., None] * A.float()), (dt * u)[..., None] * B.mT.float()[:, :, None])
    out = (states @ C.mT.float()[..., None]).squeeze(-1).mT.to(hidden_states.dtype)
    if D is not None:
        out = out + hidden_states * D[:, None]
    if z is not None:
        out = out * F.silu(z)
    return (out, states[:, -1]) if return_last_state else out


def lighten_backward(model: nn.Module) -> None:
    """Have Mamba train by :func:`selective_scan` where its kernels are not installed; on a CPU passes without a
    gradient, and every other model, stay as they are.

    transformers looks its scan up in the module of Mamba's code, so the exchange is for all Mambas of the process.
    """
    if getattr(getattr(model, "config", None), "model_type", None) != "mamba":
        return
    from transformers.models.mamba import modeling_mamba
    from transformers.utils.import_utils import is_mamba_ssm_available

    theirs: Any = modeling_mamba.mamba_selective_scan
    if getattr(theirs, "is_light", False) or is_mamba_ssm_available():
        return

    def scan(*args: Any, **kwargs: Any) -> Any:
        is_ours = torch.is_grad_enabled() or args[0].is_cuda  # there a loop over tokens waits for its calls
        return (selective_scan if is_ours else theirs)(*args, **kwargs)

    scan.is_light = True  # type: ignore[attr-defined]
    modeling_mamba.mamba_selective_scan = scan
