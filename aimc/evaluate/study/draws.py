"""What a measurement gives: losses by stretch of the text and by chip, and the file that keeps them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(slots=True, kw_only=True)
class Draw:
    """One point on one chip."""

    loss: list[float]
    """Loss in nat, summed over each stretch of the text, `[K]`."""
    count: list[int]
    """Scored tokens of each, `[K]`."""
    kl: list[float] | None = None
    """Divergence from the reference in nat, summed likewise; None: not measured."""
    seconds: float = 0.0
    """How long it took."""


def stretches(values: Tensor, block: int) -> list[Tensor]:
    """Values `[N]`, one a token, cut into stretches of at least `block`: neighbours are easy or hard together, so a
    stretch is one draw of the text, as in :func:`aimc.evaluate.estimates.block_stderr`."""
    return list(values.tensor_split(max(1, len(values) // block)))


def draw_of(losses: Tensor, kl: Tensor | None, block: int, seconds: float) -> Draw:
    """Sums over stretches of at least `block` tokens of losses and divergences, `[N]` each."""
    parts = stretches(losses, block)
    return Draw(
        loss=[float(part.sum()) for part in parts],
        count=[len(part) for part in parts],
        kl=None if kl is None else [float(part.sum()) for part in stretches(kl, block)],
        seconds=seconds,
    )


@dataclass(slots=True, kw_only=True)
class Measured:
    """A point on all its chips."""

    chips: list[int]
    loss: NDArray[np.float64]
    """Sums of loss, `[chips, K]`."""
    count: NDArray[np.float64]
    """Scored tokens, `[K]`."""
    kl: NDArray[np.float64] | None = None
    """Sums of divergence, `[chips, K]`."""
    seconds: float = 0.0
    """Computed, over all chips, whenever that was."""

    @property
    def per_chip(self) -> list[float]:
        """Perplexity, one a chip."""
        return [float(value) for value in np.exp(self.loss.sum(1) / self.count.sum())]

    @property
    def perplexity(self) -> float:
        """Mean over the chips."""
        return float(np.mean(self.per_chip))

    @property
    def divergence(self) -> float:
        """KL(reference ‖ this machine), mean over tokens and chips, nat a token.

        Raises:
            ValueError: it was not measured.
        """
        if self.kl is None:
            raise ValueError("no divergence was measured; ask for a point with diverges=True")
        return float(self.kl.sum() / self.count.sum() / len(self.kl))


def measured(chips: Sequence[int], draws: Sequence[Draw]) -> Measured:
    """Draws of one point, one a chip, together."""
    with_kl = all(draw.kl is not None for draw in draws)
    return Measured(
        chips=list(chips),
        loss=np.array([draw.loss for draw in draws], dtype=np.float64),
        count=np.array(draws[0].count, dtype=np.float64),
        kl=np.array([draw.kl for draw in draws], dtype=np.float64) if with_kl else None,
        seconds=sum(draw.seconds for draw in draws),
    )


@dataclass(slots=True)
class Cache:
    """Draws by content hash, a small file each, in a folder that several jobs may share: a file is whole or not there.

    A file that cannot be read, or does not hold what its name says, counts as missing and is noted in `spoilt`.
    """

    folder: Path
    spoilt: list[str] = field(default_factory=list)
    """Files that were there and no use."""

    def get(self, key: str) -> Draw | None:
        """The draw, or None where it has to be measured."""
        path = self._path(key)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            data = None
        draw = _checked(data, key)
        if draw is None and path.name not in self.spoilt:
            self.spoilt.append(path.name)
        return draw

    def put(self, key: str, draw: Draw) -> None:
        """Keep a draw, in one step."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        data: dict[str, Any] = {"loss": draw.loss, "count": draw.count, "seconds": round(draw.seconds, 3)}
        data |= {} if draw.kl is None else {"kl": draw.kl}
        whole = {"key": key, "sum": _sum_of(data), "draw": data}
        temporary.write_text(json.dumps(whole, separators=(",", ":")), encoding="utf-8")
        os.replace(temporary, path)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"  # a folder of thousands of files is slow to list


def _checked(data: Any, key: str) -> Draw | None:
    """What a file holds, if it is a draw of that key, as it was written."""
    if not isinstance(data, dict) or data.get("key") != key or data.get("sum") != _sum_of(data.get("draw")):
        return None
    return Draw(**data["draw"])


def _sum_of(draw: Any) -> str:
    """A checksum of the numbers: of a file that a disk has spoilt, most can still be read."""
    return hashlib.sha256(json.dumps(draw, separators=(",", ":")).encode()).hexdigest()[:16]


def bytes_of_draw(n_tokens: int, block: int, *, diverges: bool = False) -> int:
    """About how large a file is: 19 characters a number, rounded up to the blocks of a disk."""
    k = max(1, n_tokens // block)
    return -(-(120 + k * (4 + 19 * (2 if diverges else 1))) // 4096) * 4096


def digest_of_tokens(tokens: Tensor) -> str:
    """Which text it is."""
    return hashlib.sha256(tokens.to(torch.int64).numpy().tobytes()).hexdigest()[:16]
