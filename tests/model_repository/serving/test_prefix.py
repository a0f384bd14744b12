"""A prefix that was fed once is copied for the next conversation, and only if it is the same to the last bit."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from model_repository.serving.row_request import BadInputError
from tests.conftest import GoldenVariant
from tests.model_repository.serving.conftest import Array, Models, one, sampler

COLUMNS = 40


class Persona:
    """A prefix of embeddings and columns, and the column behind it."""

    def __init__(self, models: Models, seed: int, columns: int = COLUMNS, embeddings: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.embeddings = random.standard_normal((embeddings, models.dim)).astype(np.float32)
        tokens = random.integers(0, models.card, (columns - embeddings + 1, 17))
        tokens[:, 0] = random.integers(0, models.text_card, len(tokens))
        self.columns, self.last = tokens[:-1], tokens[-1:]
        content = self.embeddings.tobytes() + self.columns.tobytes() + np.int64(embeddings).tobytes()
        self.digest = hashlib.sha256(content).digest()
        self.length = columns

    def prefix(self, at: int) -> dict[str, Array]:
        return {"prefix": np.array([at, self.length, *np.frombuffer(self.digest, np.int64)], np.int64)}

    def piece(self, start: int, stop: int) -> dict[str, Array]:
        """Columns start..stop-1 as a request."""
        given = len(self.embeddings)
        inputs = {"columns": self.columns[max(start - given, 0) : max(stop - given, 0)], **self.prefix(start)}
        return {**inputs, "embeddings": self.embeddings[start:stop], **sampler(stop)}

    def ask(self) -> dict[str, Array]:
        """The column behind the prefix, which needs it to be there."""
        return {"columns": self.last, **self.prefix(self.length), **sampler(self.length + 1)}

    def step(self) -> dict[str, Array]:
        return {"columns": self.last, **sampler(self.length + 1)}


def feed(models: Models, row: int, persona: Persona, piece: int = COLUMNS) -> None:
    """The whole prefix into a row with a new tenant, in pieces of so many columns."""
    assert "hidden" not in one(models.temporal, row, persona.ask(), start=True)
    for start in range(0, persona.length, piece):
        one(models.temporal, row, persona.piece(start, min(start + piece, persona.length)))


def is_kept(models: Models, persona: Persona, row: int = 7) -> bool:
    return "hidden" in one(models.temporal, row, persona.ask(), start=True)


@pytest.fixture
def models(golden_models: Path) -> Models:
    return Models(golden_models)


@pytest.fixture(scope="module", params=["fp16", "int8", "int4"])
def rounded(request: pytest.FixtureRequest, golden_variant: GoldenVariant) -> Path:
    """Repositories whose weights, keys and values are not float32."""
    return golden_variant(request.param)


@pytest.mark.parametrize("embeddings", [0, 12, COLUMNS])
def test_the_second_conversation_needs_no_column_of_the_prefix(models, embeddings):
    """Whatever it says afterwards is what the first one says, to the last bit."""
    persona = Persona(models, seed=0, embeddings=embeddings)
    feed(models, 1, persona)
    first = one(models.temporal, 1, persona.step())
    second = one(models.temporal, 6, persona.ask(), start=True)
    for column in range(COLUMNS + 1, COLUMNS + 40):
        np.testing.assert_array_equal(first["hidden"], second["hidden"])
        assert first["text_token"] == second["text_token"]
        step = {"columns": np.full((1, 17), column), **sampler(column + 1)}
        first, second = (one(models.temporal, row, step) for row in (1, 6))


@pytest.mark.parametrize("piece", [2, 7, 20])
def test_pieces_of_any_size_but_one_are_the_whole_to_the_last_bit(models, piece):
    persona = Persona(models, seed=1)
    feed(models, 0, persona)
    whole = one(models.temporal, 0, persona.step())
    cuts = [*range(0, COLUMNS - piece, piece), COLUMNS]
    assert COLUMNS - 1 not in cuts
    one(models.temporal, 1, persona.ask() | {"prefix": np.zeros(6, np.int64)}, start=True)
    for start, stop in pairwise(cuts):
        one(models.temporal, 1, persona.piece(start, stop))
    pieces = one(models.temporal, 1, persona.step())
    np.testing.assert_array_equal(whole["hidden"], pieces["hidden"])


def test_a_prefix_in_any_precision_is_the_same_copied_or_in_pieces_that_begin_at_multiples_of_eight(rounded):
    """Quantized matrices are multiplied with tiles of rows; those of a piece must be those of the whole."""
    models = Models(rounded)
    persona = Persona(models, seed=9, columns=39)
    feed(models, 0, persona)
    whole = one(models.temporal, 0, persona.step())
    copied = one(models.temporal, 1, persona.ask(), start=True)
    np.testing.assert_array_equal(whole["hidden"], copied["hidden"])
    for cuts in ([0, 8, 16, 24, 39], [0, 16, 32, 39], [0, 8, 39]):
        one(models.temporal, 2, persona.ask() | {"prefix": np.zeros(6, np.int64)}, start=True)
        for start, stop in pairwise(cuts):
            one(models.temporal, 2, persona.piece(start, stop))
        np.testing.assert_array_equal(whole["hidden"], one(models.temporal, 2, persona.step())["hidden"])


def test_progress_is_what_is_in_place_and_the_time_it_took(models):
    persona = Persona(models, seed=2)
    assert one(models.temporal, 3, persona.ask(), start=True)["progress"][0] == 0
    for start, stop in ((0, 10), (10, 30)):
        answer = one(models.temporal, 3, persona.piece(start, stop))
        assert answer.keys() == {"progress"}
        assert answer["progress"][0] == stop
        assert 0 < answer["progress"][1] < 10_000_000


def test_a_prefix_that_differs_in_one_token_is_another(models):
    feed(models, 0, Persona(models, seed=3))
    other = Persona(models, seed=3)
    other.columns[5, 3] ^= 1
    content = other.columns.tobytes() + np.int64(0).tobytes()
    other.digest = hashlib.sha256(content).digest()
    assert not is_kept(models, other)
    assert is_kept(models, Persona(models, seed=3))


def test_an_incomplete_prefix_is_not_kept(models):
    persona = Persona(models, seed=4)
    one(models.temporal, 0, persona.ask(), start=True)
    one(models.temporal, 0, persona.piece(0, COLUMNS - 1))
    assert not is_kept(models, persona)


def test_a_digest_that_is_not_the_contents_harms_only_who_sent_it(models):
    honest, liar = Persona(models, seed=5), Persona(models, seed=6)
    liar.digest = honest.digest
    one(models.temporal, 0, liar.ask(), start=True)
    with pytest.raises(BadInputError, match="are not those of its digest"):
        one(models.temporal, 0, liar.piece(0, COLUMNS))
    assert not is_kept(models, honest)


@pytest.mark.parametrize("first", [0, 16])
def test_a_wrong_digest_is_refused_with_nothing_done(models, first):
    persona = Persona(models, seed=14)
    right, persona.digest = persona.digest, hashlib.sha256(b"another").digest()
    one(models.temporal, 0, persona.ask(), start=True)
    if first:
        one(models.temporal, 0, persona.piece(0, first))
    position = models.temporal.slots.position[0].copy()
    with pytest.raises(BadInputError, match="are not those of its digest"):
        one(models.temporal, 0, persona.piece(first, COLUMNS))
    assert models.temporal.slots.position[0] == position == first
    persona.digest = right
    assert one(models.temporal, 0, persona.piece(first, COLUMNS))["progress"][0] == COLUMNS
    assert is_kept(models, persona)


@pytest.mark.parametrize(
    ("start", "stop", "message"),
    [(5, 10, "expected column 0 of this conversation, got 5"), (0, 41, "expected 40 columns in all, got 41")],
)
def test_pieces_out_of_place_are_refused(models, start, stop, message):
    persona, longer = Persona(models, seed=7), Persona(models, seed=7, columns=41)
    one(models.temporal, 0, persona.ask(), start=True)
    with pytest.raises(BadInputError, match=message):
        one(models.temporal, 0, {**longer.piece(start, stop), **persona.prefix(start)})


def test_a_prefix_cannot_begin_behind_columns_that_were_not_its_own(models):
    persona = Persona(models, seed=8)
    one(models.temporal, 0, {"columns": persona.columns[:5], **sampler(5)}, start=True)
    with pytest.raises(BadInputError, match="expected a conversation that began with it"):
        one(models.temporal, 0, persona.piece(5, COLUMNS))


def test_the_one_not_asked_for_longest_makes_room(golden_models: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERSONAPLEX_PREFIX_COLUMNS", str(2 * COLUMNS))
    models = Models(golden_models)
    personas = [Persona(models, seed) for seed in range(10, 13)]
    for persona in personas[:2]:
        feed(models, 0, persona)
    assert is_kept(models, personas[0])
    feed(models, 0, personas[2])
    assert [is_kept(models, persona) for persona in personas] == [True, False, True]
    assert models.temporal._prefixes.columns == 2 * COLUMNS


def test_none_are_kept_where_there_is_no_room(golden_models: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERSONAPLEX_PREFIX_COLUMNS", str(COLUMNS - 1))
    models = Models(golden_models)
    persona = Persona(models, seed=20)
    feed(models, 0, persona)
    assert not is_kept(models, persona)
    assert models.temporal._prefixes.columns == 0


def test_a_prefix_longer_than_the_window_is_not_kept(models):
    persona = Persona(models, seed=21, columns=models.window + 5)
    feed(models, 0, persona, piece=16)
    assert one(models.temporal, 0, persona.step())["hidden"].any()
    assert not is_kept(models, persona)


def test_a_prefix_as_long_as_the_window_is_kept(models):
    persona = Persona(models, seed=22, columns=models.window)
    feed(models, 0, persona)
    first = one(models.temporal, 0, persona.step())
    second = one(models.temporal, 1, persona.ask(), start=True)
    np.testing.assert_array_equal(first["hidden"], second["hidden"])
