"""The one exception that the command line turns into a one-line message."""

from __future__ import annotations


class RunError(Exception):
    """A run cannot start or go on; the message says what, why it matters and what to do."""
