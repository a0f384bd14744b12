"""What reads the hidden state computes what it did, with less error where a few channels stick out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from model_repository.checkpoint.weights.tensors import TensorSource
from model_repository.graphs import smoothed
from model_repository.quantize.blocks import BLOCK, symmetric
from model_repository.quantize.config import smoothing_of
from tests.model_repository.arrays import tensors_of

DIM = 512
READERS = [f"depformer_in.{step}.weight" for step in range(8)]
Array = NDArray[np.float32]


def norm_and_matrices(outlier: float) -> TensorSource:
    """A norm's scale with channels that stick out, and matrices behind it, one of them not to be touched."""
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal((96, DIM)).astype(np.float32) for name in [*READERS, "other"]}
    alpha = np.ones((1, 1, DIM), np.float32)
    alpha[..., random.permutation(DIM)[:8]] = outlier
    arrays["out_norm.alpha"] = alpha
    return tensors_of(arrays)


def hidden(tensors: TensorSource) -> Array:
    normed: Array = np.random.default_rng(1).standard_normal((64, DIM)).astype(np.float32)
    return normed * tensors.read("out_norm.alpha").reshape(-1)


@pytest.mark.parametrize("outlier", [1.0, 15.0])
def test_the_products_are_the_same(outlier: float):
    tensors = norm_and_matrices(outlier)
    smooth = smoothed(tensors, {}, READERS)
    x = hidden(tensors)
    smoothing = smooth.read(smoothing_of(READERS[0]))
    assert smoothing.shape == smooth.shape(smoothing_of(READERS[0])) == (DIM,)
    for name in READERS:
        np.testing.assert_allclose(
            (x * smoothing) @ smooth.read(name).T, x @ tensors.read(name).T, rtol=1e-3, atol=1e-3
        )
    np.testing.assert_array_equal(smooth.read("other"), tensors.read("other"))
    np.testing.assert_array_equal(smooth.read(READERS[3], slice(5, 9)), smooth.read(READERS[3])[5:9])


def test_there_is_one_tensor_more():
    tensors = norm_and_matrices(1.0)
    smooth = smoothed(tensors, {}, READERS)
    assert set(smooth.names()) - set(tensors.names()) == {smoothing_of(READERS[0])}
    assert smoothing_of(READERS[0]) in smooth
    assert smoothing_of("other") not in smooth


def rounded(x: Array) -> Array:
    """To 8 bits by blocks, as matrices are, and what they are multiplied with."""
    return symmetric(x.reshape(len(x), -1, BLOCK)).values().reshape(x.shape)


def test_rounded_products_are_several_times_nearer_where_channels_stick_out():
    tensors = norm_and_matrices(15.0)
    smooth = smoothed(tensors, {}, READERS)
    x, smoothing = hidden(tensors), smooth.read(smoothing_of(READERS[0]))
    exact = x @ tensors.read(READERS[5]).T
    plain = rounded(x) @ rounded(tensors.read(READERS[5])).T
    nearer = rounded(x * smoothing) @ rounded(smooth.read(READERS[5])).T
    assert np.linalg.norm(nearer - exact) < 0.5 * np.linalg.norm(plain - exact)
