"""Who reads what: queries in short runs against keys in sub-tiles, nothing above the diagonal, nothing outside the
window."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from aimc.hardware import Array


@dataclass(slots=True, kw_only=True)
class Read:
    """A run of queries reading one sub-tile."""

    start: int
    """First query."""
    stop: int
    """One past the last query."""
    blocks: list[tuple[int, int]]
    """Runs of tokens (first, one past the last) that share the sub-tile: one, or while it is overwritten the newest and
    the oldest."""
    n_masked: int
    """How many of the first queries do not see all of it."""
    tile: int
    """Number of the sub-tile."""
    continued: bool = False
    """Whether earlier queries of the same run have read the sub-tile just before, as a part of their own."""

    @property
    def n_tokens(self) -> int:
        """Tokens that share the sub-tile."""
        return sum(behind - first for first, behind in self.blocks)


def reads(start: int, stop: int, n_tokens: int, array: Array) -> Iterator[Read]:
    """Every read of every sub-tile by the queries `start <= t < stop`; `start` begins a sub-tile."""
    rows, window = array.rows, array.window
    for first in range(max(start - window + rows, 0), stop, rows):
        behind = min(first + rows, n_tokens)
        own = (
            first >= start and first >= window
        )  # overwritten by queries of this run: they read it in a mixture, see below
        begin, end = max(behind if own else first, start), min(stop, first + window)
        if begin < end:
            n_masked = max(behind - begin, 0)  # its own tokens read it like all later ones, less the future
            yield Read(start=begin, stop=end, blocks=[(first, behind)], n_masked=n_masked, tile=first % window // rows)
    for first in range(
        max(start, window), stop, rows
    ):  # being overwritten: the newest tokens and those of one window ago
        behind, oldest = min(first + rows, n_tokens), first - window
        blocks = [(first, behind), (oldest, oldest + rows)]
        yield Read(start=first, stop=behind, blocks=blocks, n_masked=behind - first, tile=first % window // rows)


def parts(read: Read, length: int) -> Iterator[Read]:
    """The same read by at most `length` queries at a time."""
    for start in range(read.start, read.stop, length):
        stop = min(start + length, read.stop)
        n_masked = min(max(read.n_masked - (start - read.start), 0), stop - start)
        yield replace(read, start=start, stop=stop, n_masked=n_masked, continued=start > read.start)


def groups(
    reads: Iterable[Read], span: int, longest: int | None = None
) -> Iterator[tuple[list[tuple[int, int]], list[tuple[Read, int]]]]:
    """Reads whose tokens are prepared together: the runs of tokens they need, and each read with where its tokens begin
    among them.

    Preparing tokens sub-tile by sub-tile costs more calls than arithmetic; preparing all of them at once costs memory.
    So neighbours within `span` tokens go together; of overwritten sub-tiles fewer, because their tokens come from two
    places and have to be copied. With `longest`, a read is by at most that many queries, and by several in turn where
    it was by more.
    """

    def neighbourhood(read: Read) -> tuple[int, int]:
        n_blocks = len(read.blocks)
        return read.blocks[0][0] // (span if n_blocks == 1 else max(span // 4, 1)), n_blocks

    for (_, n_blocks), group in itertools.groupby(reads, key=neighbourhood):
        members = list(group)
        if n_blocks == 1:  # neighbours in the text
            ranges = [(members[0].blocks[0][0], members[-1].blocks[0][1])]
        else:
            ranges = [block for read in members for block in read.blocks]
        begins = itertools.accumulate((read.n_tokens for read in members[:-1]), initial=0)
        placed = zip(members, begins, strict=True)
        yield (
            ranges,
            list(placed) if longest is None else [(part, at) for read, at in placed for part in parts(read, longest)],
        )
