"""Read sweeps from a CSV: simulated or measured, long or wide, with the unit of every column said."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aimc.circuit.errors import CircuitError
from aimc.circuit.typing import FloatArray

PREFIXES = {"": 1.0, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9, "p": 1e-12, "f": 1e-15, "a": 1e-18, "k": 1e3}
Column = str | int
"""A column by its name in the header, or by its number from 0."""


@dataclass(slots=True, kw_only=True)
class Sweep:
    """Points of one or several sweeps of the stored voltage, in SI units."""

    stored_v: FloatArray
    """Stored voltages in volt, `[N]`."""
    read: FloatArray
    """Read voltage in volt, or pulse width in second, of each point, `[N]`; NaN where the file does not say."""
    output: FloatArray
    """Current in ampere, or charge in coulomb, `[N]`."""

    def at(self, read: float) -> Sweep:
        """The points at one read.

        Raises:
            CircuitError: there are none.
        """
        here = np.isclose(self.read, read, rtol=1e-9, atol=0.0)
        if not here.any():
            raise CircuitError(
                f"read={read:g}: the sweep has {', '.join(f'{r:g}' for r in np.unique(self.read))}; choose one of these"
            )
        return Sweep(stored_v=self.stored_v[here], read=self.read[here], output=self.output[here])

    def between(self, lowest_v: float, highest_v: float) -> Sweep:
        """The points whose stored voltage lies between two, in volt."""
        here = (self.stored_v >= lowest_v - 1e-12) & (self.stored_v <= highest_v + 1e-12)
        return Sweep(stored_v=self.stored_v[here], read=self.read[here], output=self.output[here])


def read_sweep(
    path: str | Path,
    *,
    stored: Column,
    output: Column | Mapping[Column, float],
    read: Column | None = None,
    units: Mapping[str, str] | None = None,
    sign: float = 1.0,
) -> Sweep:
    """Read a sweep.

    Args:
        path: a CSV; lines that begin with `#` and blank lines are passed over; a first line that is not numbers is a
            header.
        stored: the column of stored voltages.
        output: the column of currents or charges of a long table; or of a wide one, which column was taken at which
            read (in SI units).
        read: the column of read voltages or pulse widths of a long table; None: the file does not say, or `output`
            does.
        units: of `stored`, `read` and `output`, with SI prefix, e.g. `{"output": "uA"}`; without an entry: volt, volt,
            ampere.
        sign: multiplies the output; −1 for a simulator that counts currents into a source as negative.

    Raises:
        CircuitError: columns that are not there, units that are none, numbers that are none or not finite, or a sweep
            that does not rise or fall all the way; the message says the line.
    """
    path = Path(path)
    header, rows = _table(path)
    factors = _factors(units or {})
    wide = output if isinstance(output, Mapping) else {output: np.nan}
    at_stored = _column(header, rows, stored, path)
    at_read = None if read is None else _column(header, rows, read, path)
    stored_v, reads, outputs = [], [], []
    for name, read_value in wide.items():
        at_output = _column(header, rows, name, path)
        last: dict[float, list[float]] = {}
        for line, row in rows:
            v = _number(row, at_stored, line, path) * factors["stored"]
            x = read_value if at_read is None else _number(row, at_read, line, path) * factors["read"]
            _check_axis(last.setdefault(-1.0 if np.isnan(x) else x, []), v, line, path)
            stored_v.append(v)
            reads.append(x)
            outputs.append(_number(row, at_output, line, path) * factors["output"] * sign)
    return Sweep(stored_v=np.array(stored_v), read=np.array(reads, dtype=np.float64), output=np.array(outputs))


def _table(path: Path) -> tuple[list[str] | None, list[tuple[int, list[str]]]]:
    """The header, if there is one, and the rows with their line numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CircuitError(f"{path.name} cannot be read ({error}); give the path of a CSV in UTF-8") from error
    lines = [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    rows = [(number, [field.strip() for field in next(csv.reader([line]))]) for number, line in lines]
    if not rows:
        raise CircuitError(f"{path.name} has no rows; export the sweep again")
    header = rows.pop(0)[1] if not _is_number(rows[0][1][0]) else None
    width = len(header) if header is not None else len(rows[0][1])
    for number, row in rows:
        if len(row) != width:
            raise CircuitError(
                f"{path.name}, line {number}: {len(row)} columns where there should be {width}; mend or drop this line"
            )
    if not rows:
        raise CircuitError(f"{path.name} has a header and no rows; export the sweep again")
    return header, rows


def _column(header: list[str] | None, rows: Sequence[tuple[int, list[str]]], column: Column, path: Path) -> int:
    width = len(rows[0][1])
    if isinstance(column, int):
        if not 0 <= column < width:
            raise CircuitError(f"{path.name} has columns 0 to {width - 1}, not {column}")
        return column
    if header is None:
        raise CircuitError(
            f"{path.name} has no header, so no column is named {column!r}; give its number, 0 to {width - 1}"
        )
    if header.count(column) != 1:
        raise CircuitError(
            f"{path.name} has {header.count(column)} columns named {column!r}; they are {', '.join(header)}"
        )
    return header.index(column)


def _number(row: list[str], at: int, line: int, path: Path) -> float:
    if not _is_number(row[at]) or not np.isfinite(float(row[at])):
        raise CircuitError(
            f"{path.name}, line {line}, column {at}: {row[at]!r} is no finite number; mend or drop this line"
        )
    return float(row[at])


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _factors(units: Mapping[str, str]) -> dict[str, float]:
    """What each column is multiplied by to be in SI units."""
    allowed = {"stored": "V", "read": "Vs", "output": "AC"}
    factors = dict.fromkeys(allowed, 1.0)
    for name, unit in units.items():
        if name not in allowed:
            raise CircuitError(f"units: {name!r} is none of {', '.join(allowed)}")
        match = re.fullmatch(rf"([{''.join(PREFIXES)}]?)([{allowed[name]}])", unit)
        if match is None:
            raise CircuitError(
                f"units: {name}={unit!r} is not {' or '.join(allowed[name])} with one of the prefixes"
                f" {' '.join(filter(None, PREFIXES))}"
            )
        factors[name] = PREFIXES[match[1]]
    return factors


def _check_axis(seen: list[float], v: float, line: int, path: Path) -> None:
    """A sweep goes one way; what turns back is two sweeps in one, or a mistyped voltage."""
    if len(seen) >= 1 and (v == seen[-1] or (len(seen) >= 2 and (v > seen[-1]) != (seen[-1] > seen[-2]))):
        raise CircuitError(
            f"{path.name}, line {line}: stored voltage {v:g} V after {seen[-1]:g} V: the sweep turns back; mend the"
            " line, or name the column of reads if the file holds several sweeps"
        )
    seen.append(v)
