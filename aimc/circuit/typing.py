"""One word for what numpy calls an array: an array of this package is a grid of cells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
"""Numbers in double precision, of the shape that the place says."""
