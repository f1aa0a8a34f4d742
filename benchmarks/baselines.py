"""What attention of one decoding step costs digitally on this machine: what arrays are to be compared with.

One step is one token of every sequence in one layer: its key and value are written into the cache, and its query sees
all T keys. A single query needs no mask; `is_causal=True` would show it key 0 alone. Every sequence has its own keys
and values. Between two steps on the same cache others are used, until :attr:`Settings.swept_bytes` have passed, as in a
model whose layers follow one another: no cache of the machine still holds what is read, unless the machine has more
cache than that.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import CheckError, Point
from benchmarks.settings import Settings

TOLERANCE = {"float32": 1e-5, "bfloat16": 2.0**-6}
"""Largest error of an output relative to the largest output; inputs are rounded to the dtype before."""
FUSED, MATMUL = "scaled_dot_product_attention", "two matmuls"
DTYPES = ("float32", "bfloat16")
CONTENDERS = {f"{how}, {dtype}": (how, dtype) for dtype in DTYPES for how in (FUSED, MATMUL)}
"""Name to implementation and dtype. Two implementations, so that the faster one can be the baseline."""
STEP_SUBJECT = next(iter(CONTENDERS))


class Caches:
    """Keys and values of several layers `[B, H, T, D]`, and one step's query, key and value `[B, H, 1, D]`."""

    def __init__(self, settings: Settings, batch: int, dtype: str) -> None:
        generator = torch.Generator().manual_seed(batch)
        shape = (batch, settings.heads, settings.window, settings.head_size)

        def random(tokens: int) -> Tensor:
            drawn = torch.randn((*shape[:2], tokens, shape[3]), generator=generator)
            return drawn.to(settings.device, getattr(torch, dtype))

        key, value = random(settings.window), random(settings.window)
        layer_bytes = 2 * key.numel() * key.element_size()
        self.layers = [(key.clone(), value.clone()) for _ in range(max(2, -(-settings.swept_bytes // layer_bytes)))]
        self.query, self.key, self.value = random(1), random(1), random(1)
        self.slot = settings.window // 2
        """Where the token is written: somewhere in a full ring buffer."""


def attend(query: Tensor, keys: Tensor, values: Tensor, how: str) -> Tensor:
    """Attention of one query over all keys, `[B, H, 1, D]`."""
    if how == FUSED:
        return F.scaled_dot_product_attention(query, keys, values)
    scores = (query * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2)  # [B, H, 1, T]
    return scores.softmax(dim=-1) @ values


def step(caches: Caches, layer: int, how: str) -> Tensor:
    """Write the token, and read with its query."""
    keys, values = caches.layers[layer]
    keys[:, :, caches.slot] = caches.key[:, :, 0]
    values[:, :, caches.slot] = caches.value[:, :, 0]
    return attend(caches.query, keys, values, how)


@torch.no_grad()
def sweep(caches: Caches, how: str) -> None:
    """One step on every layer's cache in turn."""
    for layer in range(len(caches.layers)):
        step(caches, layer, how)


def step_points(settings: Settings) -> Iterator[partial[Point]]:
    """One step over the batch."""
    for batch in settings.step_batches:
        yield partial(_step_point, settings, batch)


def _step_point(settings: Settings, batch: int) -> Point:
    caches = {dtype: Caches(settings, batch, dtype) for dtype in DTYPES}
    return Point(
        tokens=settings.window,
        window=settings.window,
        shapes={
            "batch": batch,
            "heads": settings.heads,
            "head_size": settings.head_size,
            "caches": {dtype: len(held.layers) for dtype, held in caches.items()},
        },
        check=lambda: check_step(caches),
        contenders={name: partial(sweep, caches[dtype], how) for name, (how, dtype) in CONTENDERS.items()},
        steps={name: len(caches[dtype].layers) for name, (_, dtype) in CONTENDERS.items()},
        metered=True,
    )


@torch.no_grad()
def check_step(caches: dict[str, Caches]) -> str:
    """Every contender's output against softmax attention over all keys in double precision.

    Raises:
        CheckError: one is further off than :data:`TOLERANCE`, or no number.
    """
    found = []
    for name, (how, dtype) in CONTENDERS.items():
        held = caches[dtype]
        got = step(held, 0, how).double()
        query, keys, values = (x.double() for x in (held.query, *held.layers[0]))
        scores = (query @ keys.transpose(-1, -2)) * query.shape[-1] ** -0.5
        expected = scores.softmax(dim=-1) @ values
        error = ((got - expected).abs().max() / expected.abs().max()).item()
        found.append(f"{name} within {error:.1e}")
        if not error <= TOLERANCE[dtype]:  # a NaN is not within anything
            raise CheckError(
                f"{found[-1]} of attention over all {keys.shape[2]} keys; allowed is {TOLERANCE[dtype]:.1e}"
            )
    return "; ".join(found)
