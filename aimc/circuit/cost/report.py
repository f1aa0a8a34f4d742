"""Numbers and tables that are pleasant to read: SI prefixes, three digits, aligned columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

_PREFIXES = {-18: "a", -15: "f", -12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}


def si(value: float | None, unit: str) -> str:
    """Three digits and an SI prefix: `si(6.15e-9, "J")` is `6.15 nJ`. Squares take the prefix of their side: `si(5e-7,
    "m²")` is `0.5 mm²`.

    Args:
        value: in `unit`; None is written `–`.
        unit: without a prefix; `m²` is the only power that is understood.
    """
    if value is None:
        return "–"
    if unit == "m²":
        scale, prefix = (1e6, "m") if abs(value) >= 1e-8 else (1e12, "µ")
        return f"{float(f'{value * scale:.3g}'):.10g} {prefix}m²"
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}".rstrip()
    rounded = float(f"{value:.3g}")  # 999.9 n is 1 µ
    exponent = min(12, max(-18, 3 * math.floor(math.log10(abs(rounded)) / 3 + 1e-12)))
    digits = f"{rounded / 10.0**exponent:.6g}"
    return f"{digits} {_PREFIXES[exponent]}{unit}".rstrip()


def times(ratio: float | None) -> str:
    """A gain: `1.18 ×`, `97,300 ×`; `–` where it is unknown."""
    if ratio is None:
        return "–"
    return f"{float(f'{ratio:.3g}'):,.10g} ×"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain text in columns, the first to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def written(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    rule = "  ".join("─" * width for width in widths)
    return "\n".join([written(lines[0]), rule, *map(written, lines[1:])])
