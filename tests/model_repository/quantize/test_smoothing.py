"""Smoothed layers compute what they did, and int8 keys and values have one scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_repository.checkpoint.folder import Checkpoint
from model_repository.checkpoint.geometry import AGENT_CODEBOOKS
from model_repository.errors import CheckpointError
from model_repository.graph.attention import CacheScales
from model_repository.graphs import HEADROOM, graphs_of
from model_repository.quantize.calibration import calibrate, calibration_voices, layer_statistics
from model_repository.quantize.depth_smoothing import smooth_depth
from model_repository.quantize.smoothing_scales import scaled
from model_repository.quantize.temporal_smoothing import smooth_temporal
from model_repository.serving.session import StatefulSession
from model_repository.synthetic.tiny import write_tiny_checkpoint
from model_repository.synthetic.tokenizer import train_tiny_tokenizer
from model_repository.temporal import graph as temporal
from model_repository.variants import CachePrecision, Precision, Variant
from tests.conftest import GOLDEN

LAYER = "transformer.layers.1"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("smoothing") / "checkpoint"
    write_tiny_checkpoint(folder, config={"lm": {"dim": 128, "num_layers": 3}})
    return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def statistics(checkpoint):
    return list(calibrate(checkpoint))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_smoothed_layer_is_the_same_function(checkpoint, statistics, bits):
    """Its four maps, with the norms before them: x -> q k^T, v -> out, gate and up -> out."""
    smoothed = scaled(
        checkpoint.lm, smooth_temporal(checkpoint.lm, checkpoint.geometry.lm.temporal, statistics, bits).scalings
    )
    x = np.random.default_rng(0).standard_normal((6, 128)).astype(np.float32)

    def parts(source):
        def read(name):
            return source.read(f"{LAYER}.{name}").astype(np.float64)

        query, key, value = np.split((x * read("norm1.alpha")[0]) @ read("self_attn.in_proj_weight").T, 3, axis=1)
        pairs = [(part.reshape(6, -1, 2)[..., 0], part.reshape(6, -1, 2)[..., 1]) for part in (query, key)]
        scores = [pairs[0][i] * pairs[1][j] for i in (0, 1) for j in (0, 1)]
        gate, up = np.split((x * read("norm2.alpha")[0]) @ read("gating.linear_in.weight").T, 2, axis=1)
        return [
            *scores,
            value @ read("self_attn.out_proj.weight").T,
            (np.tanh(gate) * up) @ read("gating.linear_out.weight").T,
        ]

    for before, after in zip(parts(checkpoint.lm), parts(smoothed), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5 * np.abs(before).max())
    changed = [name for name in smoothed.names() if not np.array_equal(smoothed.read(name), checkpoint.lm.read(name))]
    assert {name.partition(".layers.")[0] for name in changed} == {"transformer"}


def test_smoothed_depth_steps_are_the_same_functions(checkpoint):
    """Each step's maps, and values of any step in the output map of any later one."""
    lm = checkpoint.geometry.lm
    smoothed = scaled(checkpoint.lm, smooth_depth(checkpoint.lm, lm))
    dim, layer = lm.depformer.dim, "depformer.layers.1"
    x = np.random.default_rng(0).standard_normal((6, dim)).astype(np.float32)

    def parts(source):
        def read(name, rows=None):
            return source.read(f"{layer}.{name}", rows).astype(np.float64)

        made = []
        normed = x * read("norm1.alpha").reshape(-1)
        for step in range(AGENT_CODEBOOKS):
            query, key, value = np.split(
                normed @ read("self_attn.in_proj_weight", slice(3 * dim * step, 3 * dim * (step + 1))).T, 3, axis=1
            )
            made += [query, key]
            for later in range(step, AGENT_CODEBOOKS):
                made.append(value @ read("self_attn.out_proj.weight", slice(dim * later, dim * (later + 1))).T)
            gate, up = np.split(
                (x * read("norm2.alpha").reshape(-1)) @ read(f"gating.{step}.linear_in.weight").T, 2, axis=1
            )
            made.append((np.tanh(gate) * up) @ read(f"gating.{step}.linear_out.weight").T)
        return made

    for before, after in zip(parts(checkpoint.lm), parts(smoothed), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5 * np.abs(before).max())
    changed = [name for name in smoothed.names() if not np.array_equal(smoothed.read(name), checkpoint.lm.read(name))]
    assert {name.partition(".layers.")[0] for name in changed} == {"depformer"}


def test_rows_read_alone_are_the_rows_of_the_whole(checkpoint, statistics):
    smoothed = scaled(
        checkpoint.lm, smooth_temporal(checkpoint.lm, checkpoint.geometry.lm.temporal, statistics, 4).scalings
    )
    for part in ("self_attn.in_proj_weight", "gating.linear_in.weight", "self_attn.out_proj.weight"):
        rows = slice(5, 90)
        np.testing.assert_array_equal(smoothed.read(f"{LAYER}.{part}", rows), smoothed.read(f"{LAYER}.{part}")[rows])


def test_int8_caches_use_their_range_and_cut_off_little(checkpoint, tmp_path: Path):
    graphs = graphs_of(checkpoint, Variant("fp32", Precision.FP32, Precision.FP32, CachePrecision.INT8))
    graphs["temporal"].save(tmp_path / "model.onnx")
    session = StatefulSession(tmp_path / "model.onnx", 1)
    session.feeds["top_k"][:] = session.feeds["filled"][:] = 1
    lm, steps = checkpoint.geometry.lm, 60
    generator = np.random.default_rng(1)
    for position in range(steps):
        column = generator.integers(0, lm.card, (1, 1, 17))
        column[..., 0] %= lm.text_card
        session.feeds["position"][:] = position
        session.feeds["filled"][:] = min(position + 1, lm.temporal.window)
        session.feeds["columns"][:] = column
        session.run(0, 1)
    for name, cache in session.save(0, steps).items():
        assert cache.dtype == np.int8, name
        assert (np.abs(cache.astype(int)) >= 127).mean() < 1e-3, name
        # The size of values is also chosen for the matrix that they meet.
        least = 12 if name.endswith(".key") else 40
        assert 127 / HEADROOM / least < np.sqrt((cache.astype(float) ** 2).mean()) < 127 / 2, name


def test_calibration_sees_what_the_graph_computes(statistics, checkpoint, tmp_path: Path):
    """Keys and values that the graph caches for the same columns have the power that calibration saw."""
    lm = checkpoint.geometry.lm
    voice = checkpoint.voice(next(iter(checkpoint.voices)))
    graph = temporal.build(lm, checkpoint.lm, None, [CacheScales()] * lm.temporal.num_layers)
    graph.save(tmp_path / "model.onnx")
    session = StatefulSession(tmp_path / "model.onnx", 1)
    session.feeds["top_k"][:] = 1
    count = len(voice.embeddings)
    session.prefill(0, np.full((count, 17), -1), voice.embeddings)
    alone = layer_statistics(lm.temporal, checkpoint.lm, [voice.embeddings])
    for index, layer in enumerate(alone):
        keys = session.save(0, count)[f"cache.layers.{index}.key"]
        values = session.save(0, count)[f"cache.layers.{index}.value"]
        pairs = np.square(keys).reshape(keys.shape[0], count, -1, 2).mean(axis=(1, 3)).reshape(-1)
        np.testing.assert_allclose(pairs, layer.key, rtol=1e-3)
        np.testing.assert_allclose(np.square(values).mean(axis=1).reshape(-1), layer.value, rtol=1e-3)


def test_calibration_sees_what_a_conversation_has(statistics, checkpoint):
    """Another conversation's keys and values: their power, and values that int8 does not cut off."""
    lm, source = checkpoint.geometry.lm, checkpoint.lm
    tokens = np.random.default_rng(7).integers(0, lm.card, (120, lm.num_streams))
    tokens[:, 0] = lm.text_padding_id
    tables = ["text_emb.weight", *(f"emb.{stream}.weight" for stream in range(lm.num_streams - 1))]
    embedded = sum(source.read(table)[column] for table, column in zip(tables, tokens.T, strict=True))
    for ours, theirs in zip(statistics, layer_statistics(lm.temporal, source, [embedded]), strict=True):
        for ratio in (theirs.key / ours.key, theirs.value / ours.value):
            assert np.quantile(ratio, 0.99) < 3
        assert (theirs.value_peaks < HEADROOM * ours.value_peaks.max()).all()


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["NATF0", "NATF1", "NATF2", "NATM0", "VARF0", "VARF1", "VARM0"], ["NATF0", "NATM0", "VARF0", "VARM0"]),
        (["a1", "a2", "b1", "b2", "b3"], ["a1", "b1", "a2", "b2"]),
        (["only"], ["only"]),
    ],
)
def test_calibration_hears_every_family_of_voices(names, chosen):
    assert calibration_voices(names) == chosen


def test_calibration_needs_a_tokenizer_that_fits(tmp_path: Path):
    write_tiny_checkpoint(tmp_path / "checkpoint")
    opened = Checkpoint.open(tmp_path / "checkpoint")
    opened.tokenizer.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        calibrate(opened)
    opened.tokenizer.write_bytes(train_tiny_tokenizer(opened.geometry.lm.text_card + 8))
    with pytest.raises(CheckpointError, match="pieces, but the model has"):
        calibrate(opened)


def test_golden_checkpoint_has_all_that_calibration_needs():
    assert (
        len(list(calibrate(Checkpoint.open(GOLDEN / "checkpoint"))))
        == Checkpoint.open(GOLDEN / "checkpoint").geometry.lm.temporal.num_layers
    )
