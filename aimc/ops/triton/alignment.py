"""What Triton compiles for besides kinds: multiples of 16, among addresses and among integers."""

from torch import Tensor

ALIGNED = 16
"""Bytes of which the address of each tensor is a multiple that a kernel is given; it then loads more at once."""


def aligned(x: Tensor) -> Tensor:
    """As it is where it may be given to a kernel, or else a copy."""
    return x if x.data_ptr() % ALIGNED == 0 else x.clone()
