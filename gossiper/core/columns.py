"""The types of columns: one-dimensional arrays with one entry per endpoint."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.intp]
"""Rows of the endpoint table."""
Int64Column = NDArray[np.int64]
Symbols = NDArray[np.uint8]
Mask = NDArray[np.bool_]
