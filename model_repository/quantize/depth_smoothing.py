"""Smoothing of the depth transformer and of what reads the hidden state, as `temporal_smoothing` does it.

It needs no calibration: what a matrix is multiplied with is estimated from the weights before it. A norm's output has
the power of its scale.

Depth steps share their norms, and a step attends to the values of earlier steps. So the factors of a norm's output and
of values belong to a layer, and only gated channels have factors of their own in each step.

The hidden state leaves the temporal model as the reference has it, so the norm before it cannot be divided. Instead the
graph multiplies by the reciprocals of the factors in front of the matrix: a vector beside a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from model_repository.checkpoint.geometry import AGENT_CODEBOOKS, LmGeometry
from model_repository.checkpoint.weights.tensors import TensorSource
from model_repository.quantize.blocks import Float32
from model_repository.quantize.smoothing_scales import Scaling, floored, search_smoothing_scales

_BITS = 8
_SAMPLE_ROWS, _READER_ROWS = 24, 192
"""Of each step's matrix, and of all matrices together that read the hidden state."""


def smooth_depth(source: TensorSource, lm: LmGeometry) -> Mapping[str, Scaling]:
    """Factors of the depth transformer's tensors. The user's steps, which are never run, keep their gating."""
    scalings: dict[str, Scaling] = {}
    for index in range(lm.depformer.num_layers):
        scalings |= _smooth_layer(source, f"depformer.layers.{index}", lm.depformer.dim)
    return scalings


def reader_factors(source: TensorSource, matrices: Sequence[str]) -> Float32:
    """Factors [dim] for the columns of `matrices`, which all read the hidden state."""
    samples = []
    for name in matrices:
        total = source.shape(name)[0]
        wanted = min(_READER_ROWS // len(matrices), total)
        middle = (total - wanted) // 2
        samples.append(source.read(name, slice(middle, middle + wanted)))
    power = np.square(source.read("out_norm.alpha").reshape(-1))
    return search_smoothing_scales(np.concatenate(samples), floored(power), _BITS)


def _smooth_layer(source: TensorSource, layer: str, dim: int) -> Mapping[str, Scaling]:
    read, steps = source.read, range(AGENT_CODEBOOKS)
    in_proj, out_proj = f"{layer}.self_attn.in_proj_weight", f"{layer}.self_attn.out_proj.weight"
    power = np.square(read(f"{layer}.norm1.alpha").reshape(-1))
    projections = [read(in_proj, slice(3 * dim * step, 3 * dim * (step + 1))) for step in steps]
    values_power = np.mean([np.square(projection[2 * dim :]) @ power for projection in projections], axis=0)
    out = np.concatenate([read(out_proj, slice(dim * step, dim * step + _SAMPLE_ROWS)) for step in steps])
    attention_in = search_smoothing_scales(_sample(projections), floored(power), _BITS)
    values = search_smoothing_scales(out, floored(values_power), _BITS)

    gating_power = np.square(read(f"{layer}.norm2.alpha").reshape(-1))
    inputs = [read(f"{layer}.gating.{step}.linear_in.weight") for step in steps]
    gating_in = search_smoothing_scales(_sample(inputs), floored(gating_power), _BITS)

    of_a_step = np.concatenate([np.ones(2 * dim, np.float32), 1 / values])
    packed = source.shape(in_proj)[0] // (3 * dim)
    scalings = {
        f"{layer}.norm1.alpha": Scaling(columns=np.reciprocal(attention_in)),
        in_proj: Scaling(np.tile(of_a_step, packed), attention_in),
        out_proj: Scaling(columns=values),
        f"{layer}.norm2.alpha": Scaling(columns=np.reciprocal(gating_in)),
    }
    for step, matrix in zip(steps, inputs, strict=True):
        gate, up = np.split(np.square(matrix) @ gating_power, 2)
        linear_out = f"{layer}.gating.{step}.linear_out.weight"
        sample = read(linear_out, slice(AGENT_CODEBOOKS * _SAMPLE_ROWS))
        gated = search_smoothing_scales(sample, floored(gate * up), _BITS)
        scalings[f"{layer}.gating.{step}.linear_in.weight"] = Scaling(
            np.concatenate([np.ones_like(gated), 1 / gated]), gating_in
        )
        scalings[linear_out] = Scaling(columns=gated)
    return scalings


def _sample(matrices: list[Float32]) -> Float32:
    """Some rows of each, spread over it."""
    return np.concatenate([matrix[:: max(1, len(matrix) // _SAMPLE_ROWS)] for matrix in matrices])
