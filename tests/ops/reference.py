"""The scalar oracle: the code of docs/physics.md, one token, one slot, one cell at a time, in Python floats.

Nothing of `aimc.ops` is in it. What is drawn by chance comes in as tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

PAGE = Path(__file__).parents[2] / "docs" / "physics.md"


def code_of_page() -> str:
    """Every block of Python on the page, in its order, on the line that it has there."""
    text = PAGE.read_text(encoding="utf-8")
    code = [""] * len(text.splitlines())
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        first = text[: block.start(1)].count("\n")
        lines = block[1].splitlines()
        code[first : first + len(lines)] = lines
    return "\n".join(code)


def load_page() -> SimpleNamespace:
    names: dict[str, Any] = {}
    exec(compile(code_of_page(), str(PAGE), "exec"), names)
    return SimpleNamespace(**names)


page = load_page()


@dataclass
class Draws:
    """What is drawn, times its standard deviation, by field of `aimc.Noise`; what is absent is zero."""

    frozen: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """By array: cells `[H_kv, W, D]`; columns `[H_kv, W]` ("qk") and `[H_kv, J, D + 1]` ("av", the normaliser last)."""
    written: dict[str, np.ndarray] = field(default_factory=dict)
    """By array, `[B, H_kv, T, D]`."""
    read: dict[str, np.ndarray] = field(default_factory=dict)
    """`read_qk` `[B, H, T, T]` and `read_av` `[B, H, T, J, D + 1]`."""

    def of_head(self, b: int, h: int, h_kv: int) -> Callable[..., float]:
        """The page's `drawn` for one head of one sequence."""
        tables: dict[str, Any] = {
            name: {array: np.asarray(table[h_kv]).tolist() for array, table in arrays.items()}
            for name, arrays in self.frozen.items()
        }
        tables["write_v"] = {array: np.asarray(table[b, h_kv]).tolist() for array, table in self.written.items()}
        tables |= {name: np.asarray(table[b, h]).tolist() for name, table in self.read.items()}

        def drawn(name: str, *place: str | int) -> float:
            found = tables.get(name)
            for index in place if found else ():
                found = found[index]
            return found or 0.0

        return drawn


def ring_buffer(
    q, k, v, hw, draws: Draws | None = None, padding=None, score_gain=None, scalers=None, norms=None, **of_heads
) -> np.ndarray:
    """All heads: q `[B, H, T, D]`, k and v `[B, H_kv, T, D]`, padding `[B, T]`, score_gain `[H]`; scalers: (a, b) of q,
    k and v, each `[H]` or `[H_kv]`; None: scaled already; of_heads: `scale_qk`, `scale_av`, `threshold`, `precharge`,
    each `[H]`; norms: of q `[B, H, T]`, of k and v `[B, H_kv, T]`. Returns `[B, H, T, D]`."""
    B, H, T, _ = q.shape
    group, draws = H // k.shape[1], draws or Draws()
    padding = [[False] * T] * B if padding is None else np.asarray(padding).tolist()

    def lists(x, b, h, affine):
        a, offset = (1.0, 0.0) if affine is None else (float(affine[0][h]), float(affine[1][h]))
        return [[page.scale(value, a, offset) for value in token] for token in np.asarray(x[b, h], float).tolist()]

    def head(b, h):
        at = (h, h // group, h // group)
        inputs = (lists(x, b, i, s) for x, i, s in zip((q, k, v), at, scalers or [None] * 3, strict=True))
        gain = 1.0 if score_gain is None else float(score_gain[h])
        more: dict[str, Any] = {name: float(numbers[h]) for name, numbers in of_heads.items()}
        if norms is not None:
            more["norms"] = [np.asarray(x[b, i], float).tolist() for x, i in zip(norms, at, strict=True)]
        return page.attention_head(*inputs, hw, draws.of_head(b, h, h // group), padding[b], gain, **more)

    return np.array([[head(b, h) for h in range(H)] for b in range(B)])
