"""The fused backends as one differentiable operator: inputs as the model has them in, digital sums out, next to nothing
else kept.

Saved for the backward pass are the inputs, by the Triton kernels the output, a bit per counter and what divides, and by
the blocked operator the charges of small calls; pulses, stored voltages, noise and other charges are computed again.
For `torch.compile` it is a registered operator, which is opaque and therefore neither unfolded nor reordered; outside
of it the same functions are called without the operator, whose way through the dispatcher costs a third of a
millisecond.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from aimc.ops.blocked import engine as blocked
from aimc.ops.call import Call
from aimc.ops.effects.noise import Chip
from aimc.ops.heads import Heads
from aimc.ops.packing import pack, unpack
from aimc.ops.scaling import Affine, Scaling
from aimc.ops.triton.residuals import Residuals

_AFFINES = ("query", "key", "value", "memory_key", "memory_value")
"""What of :class:`aimc.ops.scaling.Scaling` is two tensors, scale and offset. The first three have a gradient."""
_OF_HEADS = (
    *("score", "pulse_threshold", "full_scale_qk", "full_scale_av", "full_scale_of_sum", "threshold"),
    *("query_norm", "key_norm", "value_norm"),
)
"""And what is one."""
_N_TRAINED = 2
"""How many of them, from the first, have a gradient."""
_SCALING = [f"{name}_{part}" for name in _AFFINES[:3] for part in Affine._fields] + [
    *_OF_HEADS,
    *(f"{name}_{part}" for name in _AFFINES[3:] for part in Affine._fields),
]
"""In the operator's order: what has a gradient comes first."""
_INPUTS = (
    "Tensor query, Tensor key, Tensor value, "
    + "".join(f"Tensor? {name}, " for name in _SCALING)
    + "Tensor? key_padding, Tensor draws, int chip_seed, int layer, float[] hardware, str engine, bool keep"
)
_N_TENSORS = 3 + len(_SCALING) + 2
Grads = tuple[Tensor | None, ...]
"""Of every input, None where there is none."""


def fused_attention(call: Call, *, engine: str) -> Tensor:
    """:func:`aimc.ops.attention.gain_cell_attention` by one of the fused engines, `blocked` or `triton`; arguments are
    checked there."""
    affines = [getattr(call.scaling, name) or (None, None) for name in _AFFINES]
    of_heads = [getattr(call.scaling, name) for name in _OF_HEADS]
    scaling = *itertools.chain(*affines[:3]), *of_heads, *itertools.chain(*affines[3:])
    draws, chip, hardware = call.heads.draws, call.heads.chip, pack(call.heads.hardware)
    inputs = (*call[:3], *scaling)
    keep = wants_gradient(inputs) and call.differentiated is call and (engine == "triton" or blocked.keeps(call))
    given = *inputs, call.key_padding, draws, chip.seed, chip.layer, hardware, engine, keep
    out = _forward(*given)[0] if _is_traced(call.query) else _Direct.apply(*given)
    return out.transpose(1, 2)  # from [B, T, H, D]


def _is_traced(x: Tensor) -> bool:
    """Whether a graph is being made, or shapes alone are asked for."""
    return torch.compiler.is_compiling() or isinstance(x, FakeTensor)


def wants_gradient(inputs: Sequence[Tensor | None]) -> bool:
    """Whether anything that is done with these tensors will be differentiated."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def _sums(*inputs: Any) -> tuple[Tensor, list[Tensor]]:
    """Digital sums `[B, T, H, D]`, and what is kept."""
    engine, keep = _engine(inputs[-2]), inputs[-1]
    with torch.autocast(inputs[0].device.type, enabled=False):
        call = _call(*inputs)
        return engine.forward_keeping(call) if keep else (engine.forward(call), [])


_forward = torch.library.custom_op(
    "aimc::gain_cell_attention", _sums, mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor[])"
)


@_forward.register_fake
def _(query: Tensor, *rest: Any) -> tuple[Tensor, list[Tensor]]:
    n_batch, n_heads, n_tokens, head_size = query.shape
    hardware, _, keep = rest[-3:]
    kept = Residuals.room(query, unpack(hardware), keep=True).tensors if keep else []
    return query.new_empty(n_batch, n_tokens, n_heads, head_size), kept


def _gradients(grad: Tensor, out: Tensor | None, kept: list[Tensor], *inputs: Any) -> list[Tensor]:
    """Of query, key and value, then of what else is trained, from that of the sums `[B, T, H, D]`."""
    engine = _engine(inputs[-2])
    with torch.autocast(grad.device.type, enabled=False):
        forward = _call(*inputs)
        call = forward.differentiated
        if call is not forward:  # the same object each time, as :func:`_call` has it: what is kept by it is found again
            call.heads.hardware = unpack(pack(call.heads.hardware))
        given = (call, grad.transpose(1, 2), (out, kept)) if kept else (call, grad.transpose(1, 2))
        d_query, d_key, d_value, *of_scalers = engine.backward(*given)
    return [*(_by_token(x) for x in (d_query, d_key, d_value)), *of_scalers]


def _by_token(x: Tensor) -> Tensor:
    """`[B, H, T, D]` as `[B, T, H, D]` in memory, as the projections in front give and take it."""
    by_token = x.transpose(1, 2)
    return x if by_token.is_contiguous() else by_token.contiguous().transpose(1, 2)


def _gradients_apart(*given: Any) -> list[Tensor]:
    """Likewise; what is of the scalers without memory in common, which a registered operator may not give."""
    d_query, d_key, d_value, *of_scalers = _gradients(*given)
    return [d_query, d_key, d_value, *(x if x._base is None else x.clone() for x in of_scalers)]


_backward = torch.library.custom_op(
    "aimc::gain_cell_attention_backward",
    _gradients_apart,
    mutates_args=(),
    schema=f"(Tensor grad, Tensor? out, Tensor[] kept, {_INPUTS}) -> Tensor[]",
)


@_backward.register_fake
def _(grad: Tensor, out: Tensor | None, kept: list[Tensor], query: Tensor, key: Tensor, value: Tensor, *_: Any):  # type: ignore[no-untyped-def]
    inputs = [
        torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        for x in (query, key, value)
    ]
    dtype = torch.promote_types(query.dtype, torch.float32)
    of_scalers = [x.new_empty(2, x.shape[1], dtype=dtype) for x in (query, key, value)]
    return [*inputs, *of_scalers, *(query.new_empty(query.shape[1], dtype=dtype) for _ in range(_N_TRAINED))]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    out, kept = output
    # What is kept may be changed in place by nobody, so an output that the way back does not read is not kept.
    of_out = out if inputs[-2] == "triton" else None
    ctx.save_for_backward(*inputs[:_N_TENSORS], *((of_out, *kept) if kept else ()))
    ctx.plain = inputs[_N_TENSORS:]


def _autograd(ctx: Any, grad: Tensor, _: Any, gradients: Callable[..., list[Tensor]] = _backward) -> Grads:
    tensors = ctx.saved_tensors
    out, *kept = tensors[_N_TENSORS:] or (None,)
    tensors = tensors[:_N_TENSORS]
    grads = gradients(grad, out, kept, *tensors, *ctx.plain)
    of_inputs, of_scalers, of_heads = grads[:3], grads[3:6], grads[6:]
    found = [*(x for of_scaler in of_scalers for x in of_scaler.unbind()), *of_heads]
    trained = tensors[3 : 3 + len(found)]
    of_scaling = [None if x is None else g.to(x.dtype) for g, x in zip(found, trained, strict=True)]
    without = [None] * (_N_TENSORS - 3 - len(found) + len(ctx.plain))
    return (*of_inputs, *of_scaling, *without)


_forward.register_autograd(_autograd, setup_context=_setup_context)


class _Direct(torch.autograd.Function):
    """The operator outside of graphs. Gradients of gradients there are none, as of the registered one."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:  # type: ignore[override]
        out, kept = _sums(*inputs)
        _setup_context(ctx, inputs, (out, kept))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Grads:  # type: ignore[override]
        return _autograd(ctx, grad, None, _gradients)


def _call(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Call:
    of_scaling, others = rest[: len(_SCALING)], rest[len(_SCALING) :]
    given = dict(zip(_SCALING, of_scaling, strict=True))
    affines: dict[str, Any] = {
        name: None if given[f"{name}_scale"] is None else Affine(given[f"{name}_scale"], given[f"{name}_offset"])
        for name in _AFFINES
    }
    scaling = Scaling(**affines, **{name: given[name] for name in _OF_HEADS})
    key_padding, draws, chip_seed, layer, hardware, *_ = others
    chip = Chip(seed=chip_seed, layer=layer)
    heads = Heads(query, key, unpack(hardware), chip, draws[0], first_sequence=draws[1])
    heads.given_draws = draws
    return Call(query, key, value, scaling, key_padding, heads)


def _engine(name: str) -> Any:
    if name == "triton":
        from aimc.ops.triton import engine as triton_engine  # triton is imported only where it is used

        return triton_engine
    return blocked
