"""The geometry is the published one, overridden by the sections of `config.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model_repository.checkpoint.geometry import Geometry
from model_repository.errors import CheckpointError

GOLDEN = Path(__file__).parents[2] / "golden"


def test_without_a_config_it_is_the_published_one() -> None:
    geometry = Geometry.from_config({"model_type": "personaplex", "version": "7b-v1"})
    lm, mimi = geometry.lm, geometry.mimi
    assert (lm.temporal.dim, lm.temporal.num_layers, lm.temporal.head_dim, lm.temporal.hidden) == (4096, 32, 128, 11264)
    assert (lm.depformer.dim, lm.depformer.num_layers, lm.depformer.head_dim, lm.depformer.hidden) == (
        1024,
        6,
        64,
        2816,
    )
    assert (lm.depformer_steps, lm.num_streams, lm.card, lm.text_card, lm.text_padding_id) == (16, 17, 2048, 32000, 3)
    assert lm.temporal.window == 2999
    assert [stream for stream, delay in enumerate(lm.delays) if not delay] == [0, 1, 9]
    assert (mimi.frame_size, mimi.hop, mimi.num_codebooks, mimi.transformer.window) == (1920, 960, 32, 249)


def test_a_config_overrides_it() -> None:
    geometry = Geometry.from_config(json.loads((GOLDEN / "checkpoint" / "config.json").read_text()))
    assert (geometry.lm.temporal.dim, geometry.lm.temporal.hidden, geometry.lm.temporal.window) == (32, 88, 55)
    assert (geometry.lm.depformer.dim, geometry.lm.depformer.hidden) == (16, 44)
    assert (geometry.mimi.n_filters, geometry.mimi.codebook_dim, geometry.mimi.num_codebooks) == (4, 16, 8)
    assert geometry.lm.temporal.max_period == 10_000


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("lm", {"dim": 0}, "lm.dim must be a positive integer, got 0"),
        ("lm", {"dim": 64.0}, "lm.dim must be a positive integer, got 64.0"),
        ("lm", {"dim": True}, "lm.dim must be a positive integer"),
        ("lm", {"hidden_scale": "4"}, "lm.hidden_scale must be a positive number"),
        ("lm", {"max_period": float("nan")}, "lm.max_period must be a positive number, got nan"),
        ("lm", {"max_period": float("inf")}, "lm.max_period must be a positive number, got inf"),
        ("lm", {"num_heads": 3}, "lm: width 4096 is not 3 heads"),
        ("lm", {"dim": 96, "num_heads": 32}, "lm: width 96 is not 32 heads of an even width"),
        ("lm", {"context": 1}, "lm.context must be from 2 to 1048576, got 1"),
        ("lm", {"context": 10**12}, "lm.context must be from 2 to 1048576"),
        ("mimi_transformer", {"context": 2}, "mimi_transformer.context must be from 3 to"),
        ("lm", {"n_q": 8}, "lm.n_q must be 16"),
        ("lm", {"dep_q": 4}, "lm.dep_q must be from 8 to 1024, got 4"),
        ("lm", {"dep_q": 10**12}, "lm.dep_q must be from 8 to 1024"),
        ("lm", {"num_layers": 10**12}, "lm: 1000000000000 layers are more than 1024"),
        ("lm", {"delays": [0] * 16}, "lm.delays must be 17 values"),
        ("lm", {"delays": [0] * 16 + [2]}, "lm.delays must be 17 values of 0 or 1"),
        ("lm", {"delays": 1}, "lm.delays must be a list of integers"),
        ("lm", {"existing_text_padding_id": 32_000}, "must be below lm.text_card"),
        ("lm", {"norm": "layer_norm"}, "lm.norm must be 'rms_norm_f32', got 'layer_norm'"),
        ("lm", {"layer_scale": 0.01}, "lm.layer_scale must be None"),
        ("seanet", {"ratios": [8, 6, 5, 3]}, "seanet.ratios must multiply to 960, got 720"),
        ("seanet", {"n_residual_layers": 2}, "seanet.n_residual_layers must be 1"),
        ("quantizer", {"n_q": 7}, "quantizer.n_q must be from 8 to 1024, got 7"),
        ("quantizer", {"bins": 1024}, "must be equal"),
        ("mimi_transformer", {"d_model": 256}, "must equal seanet.dimension"),
        ("mimi_transformer", {"num_heads": 7}, "mimi_transformer: width 512 is not 7 heads"),
        ("mimi_transformer", {"gating": "silu"}, "mimi_transformer.gating must be 'none'"),
        ("mimi_transformer", [], "section 'mimi_transformer' must be an object, got list"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(section: str, values: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config.json: .*{message}"):
        Geometry.from_config({section: values})
