"""What the attention operator refuses, and what to do instead."""

from __future__ import annotations

import torch
from torch import Tensor

from aimc.hardware import Hardware
from aimc.ops.effects.noise import Chip
from aimc.ops.scaling import Scaling


def check_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hardware: Hardware,
    key_padding: Tensor | None,
    chip: Chip | None,
    scaling: Scaling | None = None,
) -> None:
    """Raise if the arguments of :func:`aimc.ops.attention.gain_cell_attention` do not fit together.

    In PyTorch's debug mode (`torch.autograd.set_detect_anomaly(True)`) the numbers themselves are looked at too.

    Raises:
        TypeError: tensors that are not floating point, or a padding mask that is not boolean.
        ValueError: shapes, heads, scalers or devices that do not fit, frozen noise without a chip, or, in debug mode,
            numbers that are not finite.
    """
    _check_tensors(query, key, value)
    if scaling is not None:
        _check_scaling(scaling, query.shape[1], key.shape[1])
    if not torch.compiler.is_compiling() and torch.is_anomaly_enabled():
        _check_finite(query=query, key=key, value=value)
    if key_padding is not None:
        _check_padding(key_padding, query)
    _check_hardware(hardware, chip)


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not tensor.is_floating_point():
            raise TypeError(
                f"{name} has dtype {tensor.dtype}: voltages and pulse widths are real numbers; convert it with .float()"
            )
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}: four dimensions [B, H, T, D] are needed to tell heads from"
                " tokens; reshape it"
            )
        if tensor.device != query.device:
            raise ValueError(
                f"{name} is on {tensor.device} but query is on {query.device}: one device computes a head; move them"
                " together"
            )
    if key.shape != value.shape:
        raise ValueError(
            f"key has shape {tuple(key.shape)} and value {tuple(value.shape)}: every token writes both arrays, with the"
            " same head size; give both as [B, H_kv, T, D]"
        )
    batch, heads, tokens, size = query.shape
    if (batch, tokens, size) != (key.shape[0], key.shape[2], key.shape[3]):
        raise ValueError(
            f"query has shape {tuple(query.shape)} and key {tuple(key.shape)}: batch, tokens and head size must agree,"
            " because query t reads what tokens up to t have written; pass the whole sequence for all three"
        )
    if key.shape[1] == 0 or heads % key.shape[1] != 0:
        raise ValueError(
            f"query has {heads} heads and key {key.shape[1]}: each K/V head serves a group of the same number of query"
            " heads; make the query heads a multiple of the K/V heads"
        )


def _check_scaling(scaling: Scaling, n_heads: int, n_kv_heads: int) -> None:
    for name, affine, expected in zip(
        ("query", "key", "value"), scaling.affines, (n_heads, n_kv_heads, n_kv_heads), strict=True
    ):
        if affine is not None and (affine.scale.shape, affine.offset.shape) != ((expected,), (expected,)):
            raise ValueError(
                f"scaling.{name} has a scale of shape {tuple(affine.scale.shape)} and an offset of shape"
                f" {tuple(affine.offset.shape)}: each head has one of both; give two tensors of shape ({expected},)"
            )
    for name in ("score", "pulse_threshold", "full_scale_qk", "full_scale_av", "full_scale_of_sum", "threshold"):
        of_heads = getattr(scaling, name)
        if of_heads is not None and of_heads.shape != (n_heads,):
            raise ValueError(
                f"scaling.{name} has shape {tuple(of_heads.shape)}: each query head has one; give a tensor of shape"
                f" ({n_heads},)"
            )


def _check_finite(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        n_bad = int((~torch.isfinite(tensor)).sum())
        if n_bad:
            raise ValueError(
                f"{name} has {n_bad} of {tensor.numel()} numbers that are not finite: clips would turn them into"
                " plausible charges; look for the layer that made them (a smaller learning rate, float32 instead of"
                " float16)"
            )


def _check_padding(key_padding: Tensor, query: Tensor) -> None:
    if key_padding.dtype != torch.bool:
        raise TypeError(
            f"key_padding has dtype {key_padding.dtype}: it marks tokens, True where a token is padding; "
            "for a Hugging Face attention_mask pass `attention_mask == 0`"
        )
    expected = (query.shape[0], query.shape[2])
    if tuple(key_padding.shape) != expected:
        raise ValueError(
            f"key_padding has shape {tuple(key_padding.shape)}: one flag per token is needed; give it as [B, T] ="
            f" {expected}"
        )
    if key_padding.device != query.device:
        raise ValueError(
            f"key_padding is on {key_padding.device} but query is on {query.device}: they are combined; move it there"
        )


def _check_hardware(hardware: Hardware, chip: Chip | None) -> None:
    frozen = [f"noise.{name}" for name in hardware.noise.frozen() if name != "tau_spread" or hardware.leaks_apart]
    if chip is None and frozen:
        raise ValueError(
            f"{', '.join(frozen)} given but chip is None: what differs from cell to cell is frozen at fabrication, so"
            " it must be said which chip is meant; pass chip=Chip(seed=0), or set these fields to 0"
        )
