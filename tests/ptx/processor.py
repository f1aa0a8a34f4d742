"""A processor for programs of PTX: all threads of a block go on together, an instruction at a time.

So nothing is said of threads that do not wait for one another where they should, and approximate functions are exact
here. A branch that not all threads of a block take is refused: Triton makes none.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Sequence

import numpy as np

from tests.ptx.memory import Memory, Shared
from tests.ptx.program import Program
from tests.ptx.steps import END, Block, Registers, Steps


class Processor:
    """One program, ready to run.

    Args:
        program: which.

    Raises:
        NotImplementedError: an instruction is not known here.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        steps = Steps(program.n_threads)
        self._steps = [steps.of(x) for x in program.instructions]
        self._constants = steps.constants

    def run(self, grid: Sequence[int], arguments: Sequence[float], memory: Memory, n_shared: int) -> None:
        """All blocks of a grid `[x, y, z]`, one after the other, with numbers or addresses as arguments and so many
        bytes to share.

        Raises:
            tests.ptx.memory.AccessError: a thread reads or writes where nothing is.
            RuntimeError: threads of a block part.
        """
        named = {f"{self.program.name}_param_{i}": _bits(x, kind)
                 for i, (x, kind) in enumerate(zip(arguments, self.program.parameters, strict=True))}  # fmt: skip
        with np.errstate(all="ignore"):
            for z, y, x in itertools.product(*map(range, reversed(grid))):
                block = Block({**self._constants, **self._places(grid, (x, y, z))}, named, memory, Shared(n_shared))
                self._run(block)

    def _places(self, grid: Sequence[int], at: Sequence[int]) -> Registers:
        """Where the threads of a block are."""
        threads = np.arange(self.program.n_threads, dtype=np.uint32)
        found = {"%tid.x": threads}
        for axis, place, n in zip("xyz", at, grid, strict=True):
            found |= {f"%ctaid.{axis}": np.full_like(threads, place), f"%nctaid.{axis}": np.full_like(threads, n)}
        return found

    def _run(self, block: Block) -> None:
        at, steps = 0, self._steps
        while at < len(steps):
            try:
                label = steps[at](block)
            except Exception as error:
                error.add_note(f"at instruction {at} of {self.program.name}: {self.program.instructions[at]}")
                raise
            if label is None:
                at += 1
            elif label == END:
                return
            else:
                at = self.program.labels[label]


def _bits(x: float, kind: str) -> int:
    """Of an argument."""
    if kind.startswith("f"):
        return int.from_bytes(struct.pack({"f32": "<f", "f64": "<d"}[kind], x), "little")
    return int(x) % 2 ** int(re.sub(r"\D", "", kind))
