"""What may be done to the features of a head before the arrays without changing exact attention."""

from __future__ import annotations

from dataclasses import dataclass

from aimc.hardware.checks import check_fields, require_choice

ROTATIONS = ("none", "hadamard", "orthogonal")


@dataclass(slots=True, kw_only=True)
class Features:
    """Exact freedoms of softmax attention, taken in digital in front of the converters so that the cells' few levels
    are used better. Digital attention is the same with any of them; the vectors are found by
    :func:`aimc.calibrate_ranges`, before a hard sigmoid by :func:`aimc.initialise_scalers`."""

    centre_keys: bool = False
    """Take the mean of each feature out of the keys: every score of a query moves by the same, and softmax does not see
    it. False: off."""
    centre_values: bool = False
    """Take the mean of each feature out of the values and add it behind the arrays, because the weights add up to one.
    False: off."""
    balance: bool = False
    """Scale each feature of the keys, and of the queries inversely, so that it varies as much in both. False: off."""
    normalise_queries: bool = False
    """Divide each query by its own root mean square, and multiply its scores in digital, so that every query fills the
    input DAC. False: off."""
    normalise_keys: bool = False
    """The same for each key: one more number per token and head in digital. False: off."""
    normalise_values: bool = False
    """The same for each value, which comes back in the length of its token's pulses. False: off."""
    rotation_qk: str = "none"
    """Orthogonal matrix that queries and keys of a head pass, and which their product does not see: `none` (off),
    `hadamard` (head sizes that are powers of two), `orthogonal` (a fixed random one, any size)."""
    rotation_av: str = "none"
    """The same for values, undone behind the arrays."""

    def __post_init__(self) -> None:
        check_fields(self, "features")
        require_choice("features.rotation_qk", self.rotation_qk, ROTATIONS)
        require_choice("features.rotation_av", self.rotation_av, ROTATIONS)

    @property
    def normalises(self) -> bool:
        """Whether keys or values are divided by a number of their own."""
        return self.normalise_keys or self.normalise_values

    @property
    def is_on(self) -> bool:
        """Whether any freedom is taken."""
        return self != Features()
