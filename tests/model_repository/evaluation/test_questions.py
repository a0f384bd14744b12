"""Evaluation sets: kept with a checkpoint, copied by `build`, asked by `evaluate`, and judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from model_repository.build import build_repository
from model_repository.checkpoint.folder import EVALUATION_FOLDER
from model_repository.errors import EvaluationError
from model_repository.evaluation.conversation import Prompt
from model_repository.evaluation.evaluate import evaluate
from model_repository.evaluation.questions import (
    LEAD_FRAMES,
    QUESTIONS_FILE,
    SOUND_FILE,
    TAIL_FRAMES,
    EvaluationSet,
    Question,
    judge,
)
from model_repository.evaluation.repository import Repository
from model_repository.synthetic.tiny import write_tiny_checkpoint

RATE = 24_000


def tone(hertz: float, seconds: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def sample_set() -> EvaluationSet:
    sounds = [tone(300, 0.5), tone(600, 0.81), tone(900, 0.3)]
    groups = ("known", "known", "other")
    questions = [
        Question(group, f"question {index}", "hello", f"Answer {index}.", len(sound))
        for index, (group, sound) in enumerate(zip(groups, sounds, strict=True))
    ]
    return EvaluationSet(questions, sounds)


def strongest(sound: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(sound)).argmax() * RATE / len(sound))


def test_a_set_is_read_as_it_was_saved(tmp_path: Path) -> None:
    saved = sample_set()
    saved.save(tmp_path)
    read = EvaluationSet.load(tmp_path)
    assert read is not None
    assert list(read.questions) == list(saved.questions)
    assert [len(sound) for sound in read.recordings] == [12_000, 19_440, 7_200]
    assert [strongest(sound) for sound in read.recordings] == pytest.approx([300, 600, 900], rel=0.01)


def test_a_folder_without_a_set_has_none(tmp_path: Path) -> None:
    assert EvaluationSet.load(tmp_path) is None


@pytest.mark.parametrize("file", [QUESTIONS_FILE, SOUND_FILE])
@pytest.mark.parametrize("content", [None, b"", b"[]", b'[{"text": 1}]'])
def test_a_damaged_set_is_named(tmp_path: Path, file: str, content: bytes | None) -> None:
    sample_set().save(tmp_path)
    damaged = tmp_path / EVALUATION_FOLDER / file
    damaged.unlink() if content is None else damaged.write_bytes(content)
    with pytest.raises(EvaluationError, match=f"{EVALUATION_FOLDER}.*"):
        EvaluationSet.load(tmp_path)


def test_a_recording_that_is_too_short_is_refused(tmp_path: Path) -> None:
    sample_set().save(tmp_path)
    place = tmp_path / EVALUATION_FOLDER / QUESTIONS_FILE
    entries = json.loads(place.read_text())
    entries[-1]["samples"] += 48_000
    place.write_text(json.dumps(entries))
    with pytest.raises(EvaluationError, match="24000 Hz"):
        EvaluationSet.load(tmp_path)


def test_frames_have_silence_around_the_question() -> None:
    frames = list(sample_set().frames())
    assert [len(each) for each in frames] == [LEAD_FRAMES + count + TAIL_FRAMES for count in (7, 11, 4)]
    assert not frames[0][:LEAD_FRAMES].any()
    assert np.array_equal(frames[0].ravel()[LEAD_FRAMES * 1920 :][:12_000], tone(300, 0.5))
    assert not frames[0][-TAIL_FRAMES:].any()


def test_the_first_of_a_set_are_spread_over_it() -> None:
    assert [question.text for question in sample_set().first(2).questions] == ["question 0", "question 2"]
    assert len(sample_set().first(50).questions) == 3


def test_an_answer_is_right_if_its_words_are() -> None:
    found = judge(sample_set(), ["answer", "Answer 1", ""], [np.zeros(RATE, np.float32)] * 3)
    assert found.questions == 3
    # Words are letters: the figures are not among them.
    assert found.intent_accuracy == pytest.approx(2 / 3)
    assert found.groups == {"known": 1.0, "other": 0.0}
    # Silence has none of the words.
    assert found.word_error == pytest.approx(1.0)


@pytest.mark.long
def test_evaluation_asks_the_questions_of_the_reference(tmp_path: Path, prompt: Prompt, frames: np.ndarray) -> None:
    write_tiny_checkpoint(tmp_path / "checkpoint")
    sample_set().save(tmp_path / "checkpoint")
    build_repository(tmp_path / "checkpoint", tmp_path / "models", slots=1)
    built = Repository.open(tmp_path / "models")
    assert f"{EVALUATION_FOLDER}/{SOUND_FILE}" in built.manifest["files"]
    report = evaluate([built], built, prompt, frames[:2], layers=0, questions=2)
    answers = [repository.answers for repository in report.repositories]
    assert answers[0] == answers[1]
    assert answers[0] is not None
    assert (answers[0].questions, answers[0].intent_accuracy) == (2, 0.0)
    assert set(answers[0].groups) == {"known", "other"}
