"""Who reads what: queries in short runs against the slots that any of them sees, nothing above the diagonal but in
their own sub-tiles, nothing outside the window."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from aimc.hardware import Array
from aimc.ops.ring import visible


@dataclass(frozen=True)
class Run:
    """Queries that read together.

    They read a line of whole sub-tiles, which ends with those that the queries themselves are written to. Once the
    window has passed, the latter still hold the tokens of one window ago that are not yet overwritten. What does not
    depend on the heads is computed once for all of them.
    """

    start: int
    """First query."""
    stop: int
    """One past the last query."""
    first: int
    """First token of the line, where a sub-tile begins."""
    own: int
    """First token of the sub-tiles that the queries are written to."""
    behind: int
    """One past the last slot of the line, where a sub-tile ends; there may be no token for the last slots."""
    oldest: int | None
    """First of the tokens of one window ago in those sub-tiles; None: the slots were empty."""
    window: int
    """Tokens that a query sees."""
    device: torch.device
    """Where its tensors are."""

    @property
    def n_line(self) -> int:
        """Slots in the line."""
        return self.behind - self.first

    @property
    def n_columns(self) -> int:
        """Columns of the first array that are read, the oldest tokens as columns of their own."""
        return self.n_line + (0 if self.oldest is None else self.behind - self.own)

    @property
    def n_oldest(self) -> int:
        """Slots in which a token of one window ago may be."""
        return self.n_columns - self.n_line

    @functools.cached_property
    def rows(self) -> Tensor:
        """The queries, `[T']`."""
        return torch.arange(self.start, self.stop, device=self.device)

    @functools.cached_property
    def tokens(self) -> Tensor:
        """Those of the columns, `[S]`."""
        line = torch.arange(self.first, self.behind, device=self.device)
        if self.oldest is None:
            return line
        return torch.cat([line, torch.arange(self.oldest, self.oldest + self.n_oldest, device=self.device)])

    @property
    def partly(self) -> slice:
        """Columns that not every query sees: those of its own sub-tiles. Padding and protection are beside this."""
        return slice(self.own - self.first, self.n_columns)

    @functools.cached_property
    def unseen(self) -> Tensor:
        """Which of the columns `partly` a query does not see, `[T', S']`."""
        return ~visible(self.rows, self.tokens[self.partly], self.window)


@dataclass(slots=True, frozen=True)
class Span:
    """Neighbouring runs whose tokens are prepared together."""

    runs: list[Run]

    @property
    def start(self) -> int:
        """First query."""
        return self.runs[0].start

    @property
    def stop(self) -> int:
        """One past the last query."""
        return self.runs[-1].stop

    @property
    def first(self) -> int:
        """First token that any of the runs reads."""
        return self.runs[0].first if self.runs[0].oldest is None else self.runs[0].oldest

    @property
    def behind(self) -> int:
        """One past the last slot."""
        return self.runs[-1].behind


def runs(n_tokens: int, length: int, array: Array, device: torch.device) -> Iterator[Run]:
    """All queries in runs of at most `length`: whole sub-tiles, or within one."""
    rows, window = array.rows, array.window
    length = length if length < rows else min(length, window) // rows * rows
    start = 0
    while start < n_tokens:
        own = start // rows * rows
        stop = min(start + length, max(own + rows, start + length // rows * rows), n_tokens)
        if start < window:  # slots are first written, or overwritten: not both in one run
            stop = min(stop, window)
        behind = -(-stop // rows) * rows
        oldest = own - window if own >= window else None
        yield Run(start, stop, max(behind - window, 0), own, behind, oldest, window, device)
        start = stop


def spans(runs: Iterator[Run], length: int) -> Iterator[Span]:
    """Runs together that span at most `length` queries; at least one run each."""
    members: list[Run] = []
    for run in runs:
        if members and run.stop - members[0].start > length:
            yield Span(members)
            members = []
        members.append(run)
    yield Span(members)
