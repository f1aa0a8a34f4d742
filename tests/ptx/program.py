"""PTX as text, read into instructions."""

from __future__ import annotations

import re
from typing import NamedTuple

_LABEL = re.compile(r"\$L__BB\w+:")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
_OTHER = re.compile(r"\$L__\w+:|\.\w|[{}]$")
"""Labels that nobody jumps to, directives, and the braces around lines that stood in the source."""


class Instruction(NamedTuple):
    """One line."""

    opcode: str
    """As `mul.lo` and its types are written: `mul.lo.s32`."""
    operands: tuple[str, ...]
    """As they are written: `%r1`, `0f3F800000`, `{%r1, %r2}`, `[%rd1+16]`, `$L__BB0_1`."""
    guard: str | None
    """The predicate that it depends on, `%p1`; None: none."""
    negated: bool
    """It is done where the predicate does not hold."""

    @property
    def types(self) -> list[str]:
        """The parts of the opcode."""
        return self.opcode.split(".")


class Program(NamedTuple):
    """One kernel."""

    name: str
    parameters: list[str]
    """`u64`, `u32`, `f32`, …"""
    n_threads: int
    instructions: list[Instruction]
    labels: dict[str, int]
    """The instruction behind each."""


def read(text: str) -> Program:
    """The kernel in a file that Triton has compiled: there is one.

    Raises:
        AttributeError: there is none.
    """
    text = re.sub(r"//.*", "", text)
    header = re.search(r"\.visible \.entry (\w+)\((.*?)\)\s*\.reqntid (\d+)[^{]*\{(.*?)\n\}", text, re.DOTALL)
    name, parameters, n_threads, body = header.groups()  # type: ignore[union-attr]
    instructions: list[Instruction] = []
    labels = {}
    for line in re.split(r"[;\n]", body):
        line = line.strip()
        if _LABEL.match(line):
            labels[line[:-1]] = len(instructions)
        elif line and not _OTHER.match(line):
            instructions.append(_instruction(line))
    return Program(name, re.findall(r"\.param \.(\w+)", parameters), int(n_threads), instructions, labels)


def _instruction(line: str) -> Instruction:
    guard, negated = None, False
    if line.startswith("@"):
        guard, line = line.split(maxsplit=1)
        negated, guard = guard[1] == "!", guard.lstrip("@!")
    opcode, *rest = line.split(maxsplit=1)
    return Instruction(opcode, tuple(x.strip() for x in _OPERAND.findall("".join(rest))), guard, negated)
