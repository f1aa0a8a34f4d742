"""The one exception that the command line turns into a one-line message."""

from __future__ import annotations

RESUME = 75
"""Exit status of a run that was stopped and goes on when the same command is given again (`EX_TEMPFAIL` of
sysexits.h); whoever restarts jobs restarts on this one."""


class RunError(Exception):
    """A run cannot start or go on; the message says what, why it matters and what to do."""

    status = 1
    """Of the command that ends with it."""
