"""SamplingParams inside a graph: greedy, top-k and temperature, and draws that belong to one conversation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from model_repository.graph.builder import ROWS, Graph
from model_repository.graph.sampling import GUESSES, sample, sample_by_rejection
from model_repository.serving.sampler import Noise, Samplers, Stream
from tests.effort import effort

VOCABULARY = 50
Sampler = tuple[int, int, int, float]
"""Seed, column, top_k and temperature of a row."""
IDLE: Sampler = (0, 0, 1, 0.0)
DRAWS = {"sorting": 1, "sorting all": 1, "guessing": GUESSES + 1}


@pytest.fixture(scope="module", params=DRAWS)
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ort.InferenceSession:
    graph = Graph("sampling")
    logits = graph.input("logits", ir.DataType.FLOAT, [ROWS, VOCABULARY])
    noise = graph.input("noise", ir.DataType.FLOAT, [ROWS, DRAWS[request.param]])
    top_k = graph.input("top_k", ir.DataType.INT64, [ROWS])
    temperature = graph.input("temperature", ir.DataType.FLOAT, [ROWS])
    match request.param:
        case "sorting":
            token = sample(graph, logits, noise, top_k, temperature)
        case "sorting all":
            token = sample(graph, logits, noise, top_k, temperature, VOCABULARY)
        case _:
            token = sample_by_rejection(graph, logits, VOCABULARY, noise, top_k, temperature)
    graph.output("token", token)
    path: Path = tmp_path_factory.mktemp("sampling") / "model.onnx"
    graph.save(path)
    return ort.InferenceSession(str(path))


def tokens(session: ort.InferenceSession, logits: np.ndarray, samplers: list[Sampler]) -> np.ndarray:
    (draws,) = (node.shape[1] for node in session.get_inputs() if node.name == "noise")
    values = np.array([sampler[:3] for sampler in samplers])
    given = Samplers(values, np.array([sampler[3] for sampler in samplers], np.float32))
    feeds = {
        "logits": logits,
        "noise": given.noise(Stream.TEXT, (draws,)),
        "top_k": given.ranks(VOCABULARY),
        "temperature": given.temperature,
    }
    return session.run(None, feeds)[0]


def test_temperature_zero_is_the_first_maximum(session):
    logits = np.zeros((2, VOCABULARY), np.float32)
    logits[0, [7, 30]] = 1.5
    samplers = [(1, 0, 25, 0.0)] * 2
    assert tokens(session, logits, samplers).tolist() == [7, 0]


@pytest.mark.effort
@pytest.mark.parametrize(("top_k", "temperature"), [(5, 0.8), (0, 1.4), (50, 0.7), (1, 2.0)])
def test_frequencies_are_those_of_the_softmax_over_the_top_k(session, top_k, temperature):
    logits = np.random.default_rng(3).normal(0, 1.5, VOCABULARY).astype(np.float32)
    kept = np.argsort(-logits)[: top_k or VOCABULARY]
    expected = np.zeros(VOCABULARY)
    expected[kept] = np.exp(logits[kept] / temperature)
    expected /= expected.sum()
    count = effort(10_000, 40_000)
    samplers = [(9, column, top_k, temperature) for column in range(count)]
    drawn = tokens(session, np.tile(logits, (count, 1)), samplers)
    frequencies = np.bincount(drawn, minlength=VOCABULARY) / count
    # Five standard deviations of a binomial frequency, and a little for the rare ones, which are far from normal.
    bound = 5 * np.sqrt(expected * (1 - expected) / count) + np.where(expected > 0, 4 / count, 1e-9)
    np.testing.assert_array_less(np.abs(frequencies - expected), bound)


def test_a_row_does_not_depend_on_a_neighbours_top_k(session):
    logits = np.random.default_rng(4).normal(size=(3, VOCABULARY)).astype(np.float32)
    mine = (5, 12, 8, 0.9)
    alone = tokens(session, logits[:1], [mine])[0]
    for neighbour in (IDLE, (6, 3, 0, 1.0), (7, 3, 30, 0.0)):
        assert tokens(session, logits, [mine, neighbour, neighbour])[0] == alone


def test_a_row_does_not_depend_on_whether_a_neighbour_guessed_wrong(session):
    """A flat row with top_k 1 hardly ever guesses right and makes the batch sort; a peaked one never does."""
    peaked = np.zeros(VOCABULARY, np.float32)
    peaked[11], peaked[12] = 20, 19.5
    flat = np.random.default_rng(8).normal(0, 0.01, VOCABULARY).astype(np.float32)
    for column in range(20):
        mine = (5, column, 8, 0.9)
        alone = tokens(session, peaked[None], [mine])[0]
        together = tokens(session, np.stack([peaked, flat, flat]), [mine, (1, column, 1, 1.0), IDLE])
        assert together[0] == alone
        assert together[1] == flat.argmax()
        assert together[2] == flat.argmax()


@pytest.mark.parametrize("uniform", [2.0**-25, 1 - 2.0**-24])
def test_the_outermost_draws_stay_within_the_top_k(session, uniform):
    (draws,) = (node.shape[1] for node in session.get_inputs() if node.name == "noise")
    logits = np.random.default_rng(2).normal(0, 3, (4, VOCABULARY)).astype(np.float32)
    feeds = {
        "logits": logits,
        "noise": np.full((4, draws), uniform, np.float32),
        "top_k": np.array([1, 3, 20, VOCABULARY], np.int64),
        "temperature": np.full(4, 0.8, np.float32),
    }
    drawn = session.run(None, feeds)[0]
    for row, (token, top_k) in enumerate(zip(drawn, feeds["top_k"], strict=True)):
        assert token in np.argsort(-logits[row])[:top_k]


def test_noise_is_a_function_of_seed_stream_and_column():
    def uniform(seed: int, stream: Stream, column: int, count: int) -> np.ndarray:
        return noise.uniform([seed], stream, [column], (count,))[0]

    noise = Noise()
    first = uniform(2**63 - 1, Stream.AUDIO, 10, 500)
    for other in ((1, Stream.AUDIO, 10), (2**63 - 1, Stream.TEXT, 10), (2**63 - 1, Stream.AUDIO, 11)):
        assert not np.intersect1d(first, uniform(*other, 500)).size > 5
    np.testing.assert_array_equal(first, uniform(2**63 - 1, Stream.AUDIO, 10, 500))
    np.testing.assert_array_equal(first, Noise().uniform([1, 2**63 - 1], Stream.AUDIO, [3, 10], (500,))[1])
    assert first.dtype == np.float32
    assert 0 < uniform(-1, Stream.TEXT, 0, 100_000).min() < 1e-4
    assert uniform(-1, Stream.TEXT, 0, 100_000).max() < 1
