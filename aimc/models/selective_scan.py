"""Mamba's scan for training without its CUDA kernels.

transformers' reference takes a slice of two large tensors at every token; the gradient of a slice is a whole tensor of
zeros, so its backward pass grows by the square of the length: minutes for one step over 256 tokens. Here is the same
recurrence with its own backward pass, which grows with the length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Recurrence(torch.autograd.Function):
    """h_t = a_t·h_{t−1} + x_t over the second axis of `[B, T, …]`, with h_{−1} = 0."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        """All states, `[B, T, …]`."""
        states = torch.empty_like(x)
        states[:, 0] = x[:, 0]
        for t in range(1, x.shape[1]):
            torch.addcmul(x[:, t], a[:, t], states[:, t - 1], out=states[:, t])
        ctx.save_for_backward(a, states)
        return states

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Of `a` and of `x`: the same recurrence from the end."""
        a, states = ctx.saved_tensors
        of_x = torch.empty_like(grad)
        of_x[:, -1] = grad[:, -1]
        for t in range(grad.shape[1] - 2, -1, -1):
            torch.addcmul(grad[:, t], a[:, t + 1], of_x[:, t + 1], out=of_x[:, t])
        of_a = torch.zeros_like(a)
        torch.mul(of_x[:, 1:], states[:, :-1], out=of_a[:, 1:])
        return of_a, of_x


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
    """Have Mamba train by :func:`selective_scan` where its kernels are not installed; passes without a gradient, and
    every other model, stay as they are.

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
        return (selective_scan if torch.is_grad_enabled() else theirs)(*args, **kwargs)

    scan.is_light = True  # type: ignore[attr-defined]
    modeling_mamba.mamba_selective_scan = scan
