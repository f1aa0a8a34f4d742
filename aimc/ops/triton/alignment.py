"""Where tensors begin that kernels are given."""

from torch import Tensor

ALIGNED = 16
"""Bytes of which the address of each is a multiple: Triton compiles for that, so that it loads more at once."""


def aligned(x: Tensor) -> Tensor:
    """As it is where it may be given to a kernel, or else a copy."""
    return x if x.data_ptr() % ALIGNED == 0 else x.clone()
