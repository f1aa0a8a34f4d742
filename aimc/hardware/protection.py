"""Which tokens are kept in a digital memory beside the arrays."""

from __future__ import annotations

from dataclasses import dataclass

from aimc.hardware.checks import check_fields, require


@dataclass(slots=True, kw_only=True)
class Protection:
    """Tokens that are kept in a digital memory and take no part in the arrays' reads.

    The first tokens of a text draw much of the attention, and the newest carry most of its information: a few of each
        rescue noisy arrays.
    """

    n_sink: int = 0
    """First tokens of each sequence (padding not counted) kept digital for ever, also after the window has passed them;
    0: none."""
    n_recent: int = 0
    """Newest tokens kept digital, the reading token itself included; 0: none."""

    def __post_init__(self) -> None:
        check_fields(self, "protection")
        for name in ("n_sink", "n_recent"):
            value = getattr(self, name)
            require(value >= 0, f"protection.{name}", value, "a number of tokens is not negative", "0 switches it off")

    @property
    def is_on(self) -> bool:
        """Whether any token is protected."""
        return bool(self.n_sink or self.n_recent)
