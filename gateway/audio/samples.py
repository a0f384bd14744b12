"""The array type of audio samples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
"""Mono samples [T] float32, full scale 1."""
