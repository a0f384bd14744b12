"""The tiny checkpoint is a whole published one in small, the same for a seed, with a codec and voices that live."""

from __future__ import annotations

import filecmp
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from model_repository.checkpoint.folder import Checkpoint
from model_repository.checkpoint.layout import lm_shapes, mimi_shapes
from model_repository.errors import BuildError, CheckpointError
from model_repository.synthetic.tiny import VOICE_NAMES, write_tiny_checkpoint
from tests.model_repository.mimi_numpy import decode, encode

SINE = [430, 1268, 381, 1611, 1095, 1495, 56, 472]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "checkpoint"
    write_tiny_checkpoint(out)
    return out


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Checkpoint:
    return Checkpoint.open(folder)


def differing(left: Path, right: Path) -> set[str]:
    names = {str(file.relative_to(left)) for file in left.rglob("*") if file.is_file()}
    _, mismatch, errors = filecmp.cmpfiles(left, right, names, shallow=False)
    return {*mismatch, *errors}


def test_it_holds_every_file_and_tensor_of_a_published_one(folder: Path, tiny: Checkpoint) -> None:
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == {
        "model.safetensors",
        "tokenizer-e351c8d8-checkpoint125.safetensors",
        "tokenizer_spm_32k_3.model",
        "config.json",
        *(f"voices/{name}.pt" for name in VOICE_NAMES),
    }
    assert set(tiny.lm.names()) == set(lm_shapes(tiny.geometry.lm))
    assert set(tiny.mimi.names()) == set(mimi_shapes(tiny.geometry.mimi))


def test_it_is_the_same_for_a_seed_and_another_for_another(folder: Path, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "again")
    assert differing(folder, tmp_path / "again") == set()
    write_tiny_checkpoint(tmp_path / "other", seed=1)
    unchanged = {"config.json", "tokenizer_spm_32k_3.model"}
    assert {str(file.relative_to(folder)) for file in folder.rglob("*.*")} - differing(folder, tmp_path / "other") == (
        unchanged
    )


def test_all_published_voices_are_there(tiny: Checkpoint) -> None:
    assert sorted(VOICE_NAMES) == list(tiny.voices)
    assert len(VOICE_NAMES) == 18
    assert {"NATF0", "NATF3", "NATM3", "VARF4", "VARM4"} <= set(VOICE_NAMES)
    voices = [tiny.voice(name) for name in VOICE_NAMES]
    assert all(10 <= voice.frames <= 20 for voice in voices)
    assert len({voice.columns.tobytes() for voice in voices}) == 18


def test_voices_begin_with_the_initial_column(tiny: Checkpoint) -> None:
    """Its embedding is the sum over all initial tokens, so it is the same for all voices of the same weights."""
    initial = sum(tiny.lm.read(f"emb.{index}.weight")[-1] for index in range(16)) + tiny.lm.read("text_emb.weight")[-1]
    for name in VOICE_NAMES:
        np.testing.assert_allclose(tiny.voice(name).embeddings[0], initial, atol=0.05)


def test_a_voices_ring_holds_its_last_columns(tiny: Checkpoint) -> None:
    """The column before the last is known by its embedding, and by what the next ones still hold of its frame."""
    for name in VOICE_NAMES:
        before, last = tiny.voice(name).columns
        assert before[0] == 3
        assert before[9:].tolist() == SINE
        assert last[10:].tolist() == SINE[1:]
        assert ((before[1:9] >= 0) & (before[1:9] < 2048)).all()
        assert (before[2:9] != last[2:9]).any()


def test_in_float32_a_voice_is_exactly_the_sum_of_its_columns(tmp_path: Path) -> None:
    """The ring of the saved file still has column N-2, whose embedding is the last one saved."""
    from model_repository.checkpoint.weights.torch_file import read_torch_tensors

    write_tiny_checkpoint(tmp_path / "tiny", lm_dtype="float32")
    lm = Checkpoint.open(tmp_path / "tiny").lm
    for name in ("NATF0", "VARM4"):
        tensors = read_torch_tensors(tmp_path / "tiny" / "voices" / f"{name}.pt", name)
        column = tensors["cache"][0, :, (len(tensors["embeddings"]) - 1) % 4]
        total = lm.read("emb.0.weight")[column[1]]
        for stream in range(2, 17):
            total = total + lm.read(f"emb.{stream - 1}.weight")[column[stream]]
        np.testing.assert_array_equal(tensors["embeddings"][-1, 0, 0], total + lm.read("text_emb.weight")[column[0]])


def test_the_tokenizer_has_a_piece_for_every_text_token(tiny: Checkpoint) -> None:
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tiny.tokenizer))
    assert tokenizer.vocab_size() == tiny.geometry.lm.text_card
    assert (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()) == (0, 1, 2, 3)
    prompt = "<system> You are a friendly teacher. <system>"
    tokens = tokenizer.encode(prompt)
    assert tokenizer.decode(tokens) == prompt
    assert not {0, 1, 2, 3} & set(tokens)


def test_a_prompt_of_a_hundred_words_fits_its_context(tiny: Checkpoint) -> None:
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tiny.tokenizer))
    words = "Answer every question about our opening hours in a patient and engaging manner." * 8
    assert 20 + 12 + len(tokenizer.encode(words)) < tiny.geometry.lm.temporal.window


def test_weights_are_stored_in_the_dtype_asked_for(folder: Path, tmp_path: Path) -> None:
    half = (folder / "model.safetensors").stat().st_size
    write_tiny_checkpoint(tmp_path / "wide", lm_dtype="float32")
    assert (tmp_path / "wide" / "model.safetensors").stat().st_size == pytest.approx(2 * half, rel=0.01)
    wide, narrow = Checkpoint.open(tmp_path / "wide").lm, Checkpoint.open(folder).lm
    name = "transformer.layers.0.self_attn.in_proj_weight"
    np.testing.assert_allclose(narrow.read(name), wide.read(name), rtol=2**-8)
    assert (narrow.read(name) != wide.read(name)).any()


@pytest.mark.parametrize("seed", [0, 1])
def test_different_sounds_have_different_codes(tmp_path: Path, seed: int) -> None:
    write_tiny_checkpoint(tmp_path / "tiny", seed=seed)
    tiny = Checkpoint.open(tmp_path / "tiny")
    time = np.arange(25 * 1920) / 24_000
    sweep = 0.1 * np.sin(2 * np.pi * (100 + 600 * time) * time)
    hum = 0.1 * np.sin(2 * np.pi * 150 * time)
    codes = [encode(pcm, tiny.mimi, tiny.geometry.mimi) for pcm in (sweep, hum, 0.3 * sweep, np.zeros_like(sweep))]
    for codebook in range(8):
        assert len(np.unique(codes[0][:, codebook])) > 15
    for other in codes[1:]:
        assert (codes[0] != other).mean() > 0.8


@pytest.mark.parametrize("seed", [0, 1])
def test_its_speech_is_audible_and_within_full_scale(tmp_path: Path, seed: int) -> None:
    write_tiny_checkpoint(tmp_path / "tiny", seed=seed)
    tiny = Checkpoint.open(tmp_path / "tiny")
    codes = np.random.default_rng(seed).integers(0, 2048, (50, 8))
    frames = decode(codes, tiny.mimi, tiny.geometry.mimi).reshape(50, 1920)
    assert np.abs(frames).max() < 1
    assert frames.std(axis=1).min() > 0.005
    assert np.abs(np.diff(frames, axis=0)).mean() > 0.01


def test_single_values_of_the_config_can_be_overridden(tmp_path: Path) -> None:
    write_tiny_checkpoint(
        tmp_path / "tiny", config={"lm": {"dim": 32, "dep_q": 8, "text_card": 300}, "quantizer": {"n_q": 12}}
    )
    geometry = Checkpoint.open(tmp_path / "tiny").geometry
    assert (geometry.lm.temporal.dim, geometry.lm.depformer_steps, geometry.lm.text_card) == (32, 8, 300)
    assert geometry.lm.depformer.dim == 32
    assert geometry.mimi.num_codebooks == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": {"lm": {"card": 1024}, "quantizer": {"bins": 1024}}}, r"lm\.card must be above 1611"),
        ({"config": {"lm": {"text_card": 32_000}}}, "tiny tokenizer cannot have 32000 pieces"),
        ({"config": {"depformer": {}}}, "config has no section depformer; it has lm, seanet"),
        ({"lm_dtype": "int8"}, "lm_dtype must be one of bfloat16, float16, float32, got 'int8'"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(BuildError, match=message) as caught:
        write_tiny_checkpoint(tmp_path / "tiny", **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tiny").exists()


def test_a_geometry_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="lm: width 64 is not 5 heads"):
        write_tiny_checkpoint(tmp_path / "tiny", config={"lm": {"num_heads": 5}})


def test_a_folder_that_is_not_empty_is_left_alone_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(BuildError, match="is not empty; give another folder, or --force"):
        write_tiny_checkpoint(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    write_tiny_checkpoint(tmp_path, force=True)
    assert Checkpoint.open(tmp_path).voices
    assert (tmp_path / "thesis.txt").read_text() == "dear"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="file is a file; give a folder"):
        write_tiny_checkpoint(tmp_path / "file")
    with pytest.raises(BuildError, match="cannot be written: Not a directory"):
        write_tiny_checkpoint(tmp_path / "file" / "tiny")
