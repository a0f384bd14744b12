from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from loadtest.bench.models.outlier_weights import outlier_weights
from model_repository.checkpoint.geometry import Geometry
from model_repository.checkpoint.layout import lm_shapes
from model_repository.synthetic.tiny import TINY_CONFIG

DIM, LAYERS = 512, 4
CONFIG = {**TINY_CONFIG, "lm": {**TINY_CONFIG["lm"], "dim": DIM, "num_layers": LAYERS, "text_card": 600}}
LAYER = "transformer.layers.2"


@pytest.fixture(scope="module")
def weights() -> Mapping[str, NDArray[np.float32]]:
    shapes = lm_shapes(Geometry.from_config(CONFIG).lm)
    made = outlier_weights(shapes, seed=0)
    assert {name: weight.shape for name, weight in made.items()} == shapes
    assert {weight.dtype for weight in made.values()} == {np.dtype(np.float32)}
    return made


def test_the_seed_decides(weights: Mapping[str, NDArray[np.float32]]) -> None:
    names = (f"{LAYER}.norm2.alpha", f"{LAYER}.gating.linear_in.weight")
    shapes = {name: weights[name].shape for name in names}
    again, other = outlier_weights(shapes, 0), outlier_weights(shapes, 1)
    for name in names:
        np.testing.assert_array_equal(again[name], weights[name])
        assert not np.array_equal(other[name], weights[name])


@pytest.mark.parametrize(
    ("matrix", "norm"),
    [
        (f"{LAYER}.self_attn.in_proj_weight", f"{LAYER}.norm1.alpha"),
        (f"{LAYER}.gating.linear_in.weight", f"{LAYER}.norm2.alpha"),
        ("text_linear.weight", "out_norm.alpha"),
    ],
)
def test_one_channel_in_a_hundred_sticks_out(
    weights: Mapping[str, NDArray[np.float32]], matrix: str, norm: str
) -> None:
    """5 of 512, both of the norm's scales and of the matrix's columns, and never both at once."""
    scales = np.abs(weights[norm].reshape(-1))
    columns = np.sqrt(np.mean(weights[matrix] ** 2, axis=0))
    columns /= np.median(columns)
    assert np.sum(scales > 5) == np.sum(columns > 5) == 5
    assert scales.max() < 30
    assert columns.max() < 30
    assert not ((scales > 5) & (columns > 5)).any()


def test_tails_are_heavy(weights: Mapping[str, NDArray[np.float32]]) -> None:
    """An excess kurtosis of 6 / (8 - 4), where a normal distribution has none."""
    table = weights["text_emb.weight"].astype(np.float64)
    kurtosis = np.mean(table**4) / np.mean(table**2) ** 2 - 3
    assert kurtosis == pytest.approx(1.5, abs=0.5)


def test_a_sublayer_adds_its_share_of_power(weights: Mapping[str, NDArray[np.float32]]) -> None:
    """A feed-forward layer of a normalized stream, computed here: 1 / (2 * layers) of the power of the embeddings."""
    random = np.random.default_rng(0)
    x = random.standard_normal((200, DIM))
    inner = (x * weights[f"{LAYER}.norm2.alpha"].reshape(-1)) @ weights[f"{LAYER}.gating.linear_in.weight"].T
    gate, up = np.split(inner, 2, axis=-1)
    out = (gate / (1 + np.exp(-gate)) * up) @ weights[f"{LAYER}.gating.linear_out.weight"].T
    assert np.mean(inner**2) == pytest.approx(1, rel=0.2)
    assert np.mean(out**2) == pytest.approx(1 / (2 * LAYERS), rel=0.5)


def test_seventeen_embeddings_have_power_one(weights: Mapping[str, NDArray[np.float32]]) -> None:
    embedded = weights["text_emb.weight"][3] + sum(weights[f"emb.{stream}.weight"][7] for stream in range(16))
    assert np.mean(embedded**2) == pytest.approx(1, rel=0.3)
