"""Exact freedoms of attention: centre, balance and rotate the features of each head before the arrays, and undo it
behind them. Digital softmax attention is the same with any of it; few levels are used better."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aimc.hardware import ConfigError, Features

ROTATION_SEED = 1
"""Of the fixed random rotation."""


class FeatureMap(nn.Module):
    """What :class:`aimc.hardware.Features` asks for, for the heads of one layer.

    `k' = (k − c_k)·s·R`, `q' = q/s·R`, `v' = (v − c_v)·R_v`, and behind the arrays `out = out'·R_vᵀ + c_v`. Scores
    change by a number that is the same for all keys of a query, which a softmax does not see.

    Args:
        n_kv_heads: K/V heads.
        head_size: D.
        features: which freedoms are taken.

    Raises:
        ConfigError: a rotation that this head size does not have.
    """

    key_centre: Tensor
    value_centre: Tensor
    key_scale: Tensor
    rotation_qk: Tensor | None
    rotation_av: Tensor | None

    def __init__(self, n_kv_heads: int, head_size: int, features: Features) -> None:
        super().__init__()
        self.features = features
        sizes = (n_kv_heads, head_size)
        self.register_buffer("key_centre", torch.zeros(sizes))  # [H_kv, D]
        self.register_buffer("value_centre", torch.zeros(sizes))  # [H_kv, D]
        self.register_buffer("key_scale", torch.ones(sizes))  # [H_kv, D]
        for name in ("rotation_qk", "rotation_av"):
            self.register_buffer(name, rotation(getattr(features, name), head_size, name), persistent=False)

    def before(
        self, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor | None, Tensor | None, Tensor | None]]:
        """Query `[B, H, T, D]`, key and value `[B, H_kv, T, D]` as the scalers get them, in float32 (float64 for
        float64); and by what each token was divided, `[B, H, T]` or `[B, H_kv, T]`, None: by one."""
        dtype = torch.promote_types(query.dtype, torch.float32)
        query, key, value = (x.to(dtype) for x in (query, key, value))
        features = self.features
        if features.centre_keys:
            key = key - _of_heads(self.key_centre, key)
        if features.balance:
            scale = _of_heads(self.key_scale, key)
            key, query = key * scale, query / scale.repeat_interleave(query.shape[1] // key.shape[1], dim=0)
        if features.centre_values:
            value = value - _of_heads(self.value_centre, value)
        parts = rotated(query, self.rotation_qk), rotated(key, self.rotation_qk), rotated(value, self.rotation_av)
        wanted = features.normalise_queries, features.normalise_keys, features.normalise_values
        (q, q_norm), (k, k_norm), (v, v_norm) = map(_normalised, parts, wanted)
        return (q, k, v), (q_norm, k_norm, v_norm)

    def after(self, out: Tensor) -> Tensor:
        """The layer's output `[B, H, T, D]`."""
        out = rotated(out, None if self.rotation_av is None else self.rotation_av.mT)
        return out + self._centre_of(out) if self.features.centre_values else out

    def undone(self, out: Tensor) -> Tensor:
        """What the arrays would have to put out, `[B, H, T, D]`, for the layer to put out `out`."""
        return rotated(out - self._centre_of(out) if self.features.centre_values else out, self.rotation_av)

    def _centre_of(self, out: Tensor) -> Tensor:
        """Centre of the values that each query head reads, `[H, 1, D]`."""
        return _of_heads(self.value_centre, out).repeat_interleave(out.shape[1] // len(self.value_centre), dim=0)

    @property
    def lacks_vectors(self) -> bool:
        """Whether centres and scales that it needs were never measured: they are what they were made as."""
        wanted = self.features.centre_keys or self.features.centre_values or self.features.balance
        is_new = not (self.key_centre.any() or self.value_centre.any() or (self.key_scale != 1).any())
        return bool(wanted and is_new)

    def extra_repr(self) -> str:
        return f"{self.features}"


def rotation(kind: str, head_size: int, name: str) -> Tensor | None:
    """The orthogonal matrix `[D, D]` of a kind; None for `none`.

    Raises:
        ConfigError: a Hadamard matrix of a size that is no power of two.
    """
    if kind == "none":
        return None
    if kind == "orthogonal":
        generator = torch.Generator().manual_seed(ROTATION_SEED)
        drawn = torch.randn(head_size, head_size, generator=generator, dtype=torch.float64, device="cpu")
        return torch.linalg.qr(drawn)[0].float()
    if head_size & (head_size - 1):
        raise ConfigError(
            f"features.{name}='hadamard': this model's heads have {head_size} features, and a Hadamard matrix needs a"
            " power of two; use 'orthogonal'"
        )
    matrix = torch.ones(1, 1)
    while len(matrix) < head_size:  # Sylvester's construction
        matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
    return matrix / head_size**0.5


def rotated(x: Tensor, matrix: Tensor | None) -> Tensor:
    """`[..., D]` through an orthogonal matrix; None: unchanged."""
    if matrix is None:
        return x
    with torch.autocast(x.device.type, enabled=False):  # its converters were calibrated on what is not rounded
        return x @ matrix.to(x.dtype)


def _normalised(x: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """Each token over its root mean square, which takes no part in the gradient: what comes back behind the arrays
    undoes it."""
    if not wanted:
        return x, None
    norm = x.detach().square().mean(dim=-1).sqrt().clamp(min=1e-12)
    return x / norm[..., None], norm


def _of_heads(x: Tensor, like: Tensor) -> Tensor:
    """`[H, D]` shaped to meet `[B, H, T, D]`."""
    return x.to(like.dtype)[:, None]
