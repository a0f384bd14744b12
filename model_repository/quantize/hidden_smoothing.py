"""Smoothing of matrices that read the hidden state, as `temporal_smoothing` does it.

The hidden state leaves the temporal model as the reference has it, so the norm before it cannot be divided. Instead the
graph multiplies by the reciprocals of the factors in front of the matrix: a vector beside a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model_repository.checkpoint.weights.tensors import TensorSource
from model_repository.quantize.blocks import Float32
from model_repository.quantize.scaling import floored
from model_repository.quantize.smoothing_scales import search_smoothing_scales

_BITS = 8
_SAMPLE_ROWS = 192
"""Of all matrices together."""


def reader_factors(source: TensorSource, matrices: Sequence[str]) -> Float32:
    """Factors [dim] for the columns of `matrices`, which all read the hidden state.

    A norm's output has the power of its scale, so no calibration is needed.
    """
    samples = []
    for name in matrices:
        total = source.shape(name)[0]
        wanted = min(_SAMPLE_ROWS // len(matrices), total)
        middle = (total - wanted) // 2
        samples.append(source.read(name, slice(middle, middle + wanted)))
    power = np.square(source.read("out_norm.alpha").reshape(-1))
    return search_smoothing_scales(np.concatenate(samples), floored(power), _BITS)
