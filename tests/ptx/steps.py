"""What one instruction of PTX does to the threads of a block."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from tests.ptx.arithmetic import (
    ARITHMETIC,
    TYPES,
    WIDE,
    Array,
    bits_of,
    comparison,
    converted,
    numbers_of,
)
from tests.ptx.memory import Memory, Shared, require_aligned
from tests.ptx.program import Instruction
from tests.ptx.warps import fragments, product, put, seen, wide_product

Registers = dict[str, Array]
Step = Callable[["Block"], "str | None"]
"""What one instruction does; the label to go on at, or None."""
END = ""
"""In place of a label: there is nothing more to do."""
PLACES = ("%tid.x", *(f"%{of}.{axis}" for of in ("ctaid", "nctaid") for axis in "xyz"))
"""Registers that hold where a thread is."""
_REGISTER = re.compile(r"%(?:r|rs|rd|f|p)\d+")
_WIDTHS = {"%rs": "u2", "%rd": "u8", "%r": "u4", "%f": "u4", "%p": "?"}
_MODIFIERS = {"rn", "rna", "rni", "rzi", "rmi", "rpi", "approx", "full", "ftz", "lo", "hi", "wide"}
"""Of what is computed, that are minded or change nothing here."""
_NOTHING = (
    *("bar", "fence", "griddepcontrol", "cp.async.commit_group", "cp.async.wait_group", "cp.async.wait_all"),
    *("wgmma.fence", "wgmma.commit_group", "wgmma.wait_group"),
)
"""Instructions for threads that do not keep step."""


class Block(NamedTuple):
    """The threads of one place in the grid."""

    registers: Registers
    arguments: dict[str, int]
    memory: Memory
    shared: Shared


class Steps:
    """Instructions of a program, each as what it does.

    Args:
        n_threads: of a block.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self.constants: Registers = {}
        """What stands in the instructions themselves, as registers that hold it."""

    def of(self, line: Instruction) -> Step:
        """One of them.

        Raises:
            NotImplementedError: it is not known here.
        """
        if line.opcode.startswith(_NOTHING):
            return lambda block: None
        if line.types[0] in ("bra", "ret"):
            return self._jump(line)
        together = line.types[0] in ("mma", "wgmma", "ldmatrix", "stmatrix", "shfl")
        if together and line.guard is not None:
            raise _unknown(line)
        makers = {"ld": self._load, "st": self._store, "cp": self._copy, "mov": self._move, "selp": self._select,
                  "setp": self._compare, "cvt": self._convert, "mma": self._product, "wgmma": self._wide_product,
                  "ldmatrix": self._fragments, "stmatrix": self._put, "shfl": self._look}  # fmt: skip
        return makers.get(line.types[0], self._compute)(line)

    # --- Operands

    def _key(self, text: str, kind: str) -> str:
        """Under which an operand is found among the registers."""
        if text.startswith("%"):
            if text not in PLACES and not _REGISTER.fullmatch(text):
                raise NotImplementedError(f"the register {text}: tests/ptx does not know it")
            return text
        key = f"{text}:{kind}"
        if key not in self.constants:
            self.constants[key] = np.full(self.n_threads, *_constant(text, kind))
        return key

    def _unwritten(self, dtype: np.dtype[Any]) -> Array:
        """What a register holds that nobody has written: a NaN, or true."""
        if dtype.kind == "b":
            return np.ones(self.n_threads, dtype)
        return np.full(self.n_threads, 2 ** (8 * dtype.itemsize) - 1, dtype=f"u{dtype.itemsize}").view(dtype)

    def _reader(self, text: str, kind: str) -> Callable[[Block], Array]:
        """What an operand holds; compilers leave a half that they do not need unwritten."""
        key, dtype = self._key(text, kind), TYPES[kind]
        unwritten = self._unwritten(dtype)

        def read(block: Block) -> Array:
            x = block.registers.get(key, unwritten)
            if x.dtype.itemsize == dtype.itemsize:
                return x.view(dtype)
            return x.astype(f"u{dtype.itemsize}").view(dtype)

        return read

    def _writer(self, text: str, line: Instruction) -> Callable[[Block, Array], None]:
        """Into a register, where the guard lets."""
        if text == "_":
            return lambda block, x: None
        width = np.dtype(next(w for prefix, w in _WIDTHS.items() if text.startswith(prefix)))
        active, unwritten = self._guard(line), self._unwritten(width)

        def write(block: Block, x: Array) -> None:
            if x.dtype.itemsize != width.itemsize:
                x = x.astype(f"{x.dtype.kind if x.dtype.kind == 'i' else 'u'}{width.itemsize}")
            x = x.view(width)
            if active is not None:
                x = np.where(active(block), x, block.registers.get(text, unwritten))
            block.registers[text] = x

        return write

    def _writer_of_all(self, texts: list[str], line: Instruction) -> Callable[[Block, Iterable[Array]], None]:
        """Into several."""
        writers = [self._writer(x, line) for x in texts]

        def write(block: Block, found: Iterable[Array]) -> None:
            for write_one, x in zip(writers, found, strict=True):
                write_one(block, x)

        return write

    def _guard(self, line: Instruction) -> Callable[[Block], Array] | None:
        if line.guard is None:
            return None
        guard, negated = line.guard, line.negated
        return lambda block: ~block.registers[guard] if negated else block.registers[guard]

    def _address(self, text: str) -> Callable[[Block], Array]:
        """Of `[%rd1+16]`."""
        base, _, more = text.strip("[] ").partition("+")
        key, offset = self._key(base.strip(), "u32"), int(more or "0", 0)

        def read(block: Block) -> Array:
            x = block.registers[key]
            return x + x.dtype.type(offset) if offset else x

        return read

    # --- Instructions

    def _jump(self, line: Instruction) -> Step:
        active, target = self._guard(line), line.operands[0] if line.operands else END

        def step(block: Block) -> str | None:
            if active is None:
                return target
            taken = active(block)
            if taken.all() != taken.any():
                raise RuntimeError("threads of a block part here")
            return target if taken[0] else None

        return step

    def _compute(self, line: Instruction) -> Step:
        parts, kind = line.types, line.types[-1]
        two = ".".join(parts[:2])
        wide = WIDE.get(two)
        found = wide or ARITHMETIC.get(two) or ARITHMETIC.get(parts[0])
        if found is None or kind not in TYPES or set(parts[1:-1]) - _MODIFIERS or (wide and "32" not in kind):
            raise _unknown(line)
        function: Callable[..., Array] = found
        kinds = [kind] * (len(line.operands) - 1)
        if parts[0] in ("shl", "shr", "bfe"):
            kinds[1:] = ["u32"] * (len(kinds) - 1)
        if wide:
            kinds[2:] = [kind.replace("32", "64")] * (len(kinds) - 2)
        readers = [self._reader(x, k) for x, k in zip(line.operands[1:], kinds, strict=True)]
        write = self._writer(line.operands[0], line)

        def step(block: Block) -> None:
            values = [read(block) for read in readers]
            if wide:
                values[:2] = [x.astype(f"{x.dtype.kind}8") for x in values[:2]]
            write(block, bits_of(function(*(numbers_of(x, kind) for x in values)), kind))

        return step

    def _select(self, line: Instruction) -> Step:
        kind = line.types[-1]
        a, b = (self._reader(x, kind) for x in line.operands[1:3])
        which, write = self._reader(line.operands[3], "pred"), self._writer(line.operands[0], line)
        return lambda block: write(block, np.where(which(block), a(block), b(block)))

    def _compare(self, line: Instruction) -> Step:
        _, name, kind = line.types
        if ("|" in line.operands[0]) != kind.endswith("x2"):
            raise _unknown(line)
        compare = comparison(name)
        a, b = (self._reader(x, kind) for x in line.operands[1:])
        to = line.operands[0].split("|")
        write = self._writer_of_all(to, line)

        def step(block: Block) -> None:
            found = compare(*(numbers_of(read(block), kind) for read in (a, b)))
            write(block, np.ascontiguousarray(found.reshape(-1, len(to)).T))

        return step

    def _convert(self, line: Instruction) -> Step:
        *how, to, of = line.types[1:]
        if set(how) - _MODIFIERS or "f64" in (to, of):
            raise _unknown(line)
        rounding = next((x for x in how if x != "ftz"), None)
        write, readers = self._writer(line.operands[0], line), [self._reader(x, of) for x in line.operands[1:]]
        if to == "tf32":  # the nearest, of two as near the one further from zero
            return lambda block: write(
                block, (readers[0](block).view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
            )
        single = to.removesuffix("x2")

        def step(block: Block) -> None:
            values = [converted(read(block), single, of, rounding) for read in readers]
            if len(values) == 2:  # the second one is in the lower bits
                values = [np.stack(values[::-1], axis=-1).view(np.uint32)[:, 0]]
            write(block, values[0])

        return step

    def _move(self, line: Instruction) -> Step:
        to, of, kind = *line.operands, line.types[-1]
        if to.startswith("{"):
            write_all, read = self._writer_of_all(_listed(to), line), self._reader(of, kind)
            part = f"u{TYPES[kind].itemsize // len(_listed(to))}"
            return lambda block: write_all(block, np.ascontiguousarray(read(block)[:, None].view(part).T))
        write = self._writer(to, line)
        if of.startswith("{"):
            part = f"b{8 * TYPES[kind].itemsize // len(_listed(of))}"
            readers = [self._reader(x, part) for x in _listed(of)]
            return lambda block: write(
                block, np.stack([read(block) for read in readers], axis=-1).view(TYPES[kind])[:, 0]
            )
        read = self._reader(of, kind)
        return lambda block: write(block, read(block))

    def _load(self, line: Instruction) -> Step:
        kind = TYPES[line.types[-1]]
        writers = [self._writer(x, line) for x in _listed(line.operands[0])]
        if line.types[1] == "param":
            name = line.operands[1].strip("[] ")
            if "+" in name:
                raise _unknown(line)
            n, like = self.n_threads, np.dtype(f"u{kind.itemsize}")
            return lambda block: writers[0](block, np.full(n, block.arguments[name], dtype=like).view(kind))
        reached = self._reached(line, line.operands[1], len(writers) * kind.itemsize)

        def step(block: Block) -> None:
            memory, at, which = reached(block)
            for i, write in enumerate(writers):
                x = np.zeros(self.n_threads, dtype=f"u{kind.itemsize}")
                if len(at):
                    x[which] = memory.load(at + at.dtype.type(i * kind.itemsize), kind.itemsize)
                write(block, x.view(kind))

        return step

    def _reached(self, line: Instruction, address: str, n_bytes: int) -> Callable[[Block], tuple[Any, Array, Any]]:
        """Which memory, the addresses of so many bytes in it, and which threads' they are."""
        if line.types[1] not in ("global", "shared"):
            raise _unknown(line)
        is_global, everywhere, active = line.types[1] == "global", self._address(address), self._guard(line)

        def reached(block: Block) -> tuple[Any, Array, Any]:
            which = slice(None) if active is None else np.flatnonzero(active(block))
            at = everywhere(block)[which]
            require_aligned(at, n_bytes)
            return block.memory if is_global else block.shared, at, which

        return reached

    def _store(self, line: Instruction) -> Step:
        kind = line.types[-1]
        readers = [self._reader(x, kind) for x in _listed(line.operands[1])]
        size = TYPES[kind].itemsize
        reached = self._reached(line, line.operands[0], len(readers) * size)

        def step(block: Block) -> None:
            memory, at, which = reached(block)
            for i, read in enumerate(readers if len(at) else ()):
                memory.store(at + at.dtype.type(i * size), read(block).view(f"u{size}")[which])

        return step

    def _copy(self, line: Instruction) -> Step:
        """From tensors to what is shared: at once, though it might take until it is waited for."""
        if not line.opcode.startswith("cp.async.c"):
            raise _unknown(line)
        to, of = (self._address(x) for x in line.operands[:2])
        n_words = int(line.operands[2], 0) // 4
        given = self._reader(line.operands[3], "u32") if len(line.operands) > 3 else None
        active = self._guard(line)

        def step(block: Block) -> None:
            here = np.ones(self.n_threads, dtype=bool) if active is None else active(block)
            for address in (to, of):
                require_aligned(address(block)[here], 4 * n_words)
            for i in range(n_words):  # what is not given is zero
                there = here if given is None else here & (given(block) > 4 * i)
                word = np.zeros(len(here), dtype=np.uint32)
                if there.any():
                    word[there] = block.memory.load(of(block)[there] + np.uint64(4 * i), 4)
                block.shared.store(to(block)[here] + np.uint32(4 * i), word[here])

        return step

    def _product(self, line: Instruction) -> Step:
        d, *given = [_listed(x) for x in line.operands]
        write, kind = self._writer_of_all(d, line), line.types[-2]
        if line.types[-1] != "f32" or kind not in ("bf16", "f16", "tf32"):
            raise _unknown(line)
        a, b, c = [[self._reader(x, "b32") for x in part] for part in given]

        def step(block: Block) -> None:
            write(block, product(kind, *[[read(block) for read in part] for part in (a, b, c)]))

        return step

    def _wide_product(self, line: Instruction) -> Step:
        d, a, b, keeps, *signs = line.operands
        transposed = signs[2:]
        write, kind = self._writer_of_all(_listed(d), line), line.types[-2]
        if line.types[-3] != "f32" or kind not in ("bf16", "f16", "tf32") or signs[:2] != ["1", "1"]:
            raise _unknown(line)
        given = [self._reader(x, "b32") for x in _listed(d)]
        left = [self._reader(x, "b32" if a.startswith("{") else "b64") for x in _listed(a)]
        right, added = self._reader(b, "b64"), self._reader(keeps, "pred")
        flags = ([False, False] + [x != "0" for x in transposed])[-2:]

        def step(block: Block) -> None:
            is_added = added(block).any()  # or else nothing need be in the registers yet
            before = [read(block) if is_added else np.zeros(self.n_threads, np.uint32) for read in given]
            a = [read(block) for read in left]
            write(block, wide_product(kind, block.shared, a, right(block), before, flags))

        return step

    def _fragments(self, line: Instruction) -> Step:
        to, address, transposed = _listed(line.operands[0]), self._address(line.operands[1]), "trans" in line.types
        write = self._writer_of_all(to, line)
        return lambda block: write(block, fragments(block.shared, address(block), len(to), transposed))

    def _put(self, line: Instruction) -> Step:
        address, transposed = self._address(line.operands[0]), "trans" in line.types
        readers = [self._reader(x, "b32") for x in _listed(line.operands[1])]
        return lambda block: put(block.shared, address(block), [read(block) for read in readers], transposed)

    def _look(self, line: Instruction) -> Step:
        if line.operands[3] not in ("31", "0x1f"):  # the whole warp looks
            raise _unknown(line)
        write, how = self._writer(line.operands[0].partition("|")[0], line), line.types[2]
        x, by = (self._reader(operand, "u32") for operand in line.operands[1:3])
        return lambda block: write(block, seen(x(block), how, by(block)))


def _unknown(line: Instruction) -> NotImplementedError:
    return NotImplementedError(f"{line.opcode} {line.operands}: tests/ptx does not know it; add it")


def _listed(text: str) -> list[str]:
    """Of `{%r1, %r2}`, or of one alone."""
    return [x.strip() for x in text.strip("{}").split(",")]


def _constant(text: str, kind: str) -> tuple[Any, Any]:
    """Number and dtype, by its bits."""
    if kind == "pred":
        return int(text) != 0, np.dtype("?")
    dtype = np.dtype(f"u{TYPES[kind].itemsize}")
    if text[:2] in ("0f", "0d"):
        return int(text[2:], 16), dtype
    number = 0 if text == "global_smem" else int(text.removesuffix("U"), 0)
    return number % 2 ** (8 * dtype.itemsize), dtype
