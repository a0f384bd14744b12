"""A checkpoint's evaluation set: recorded questions, and the answer that is right for each.

Files in the folder `evaluation` of a checkpoint, which `build` copies to the repository:

* `questions.json`: a list of `{"group", "text", "intent", "answer", "samples"}`; `samples` is the length of its
  recording, and accuracy is told for each group of questions.
* `questions.ogg`: the recordings one after the other, Opus in Ogg, mono.

`answer` is what the model says to the question after the default system prompt of the gateway.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from model_repository.checkpoint.folder import EVALUATION_FOLDER
from model_repository.checkpoint.geometry import FRAME_SIZE, SAMPLE_RATE
from model_repository.errors import EvaluationError
from model_repository.evaluation.recognizer import recognizer_installed, spoken_word_error, words

QUESTIONS_FILE, SOUND_FILE = "questions.json", "questions.ogg"

LEAD_FRAMES, TAIL_FRAMES = 6, 75
"""Frames of silence before a question, and after it, in which the answer is given."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Question:
    """What is asked, what it means, and the right answer. `samples`: of its recording at 24 kHz."""

    group: str
    text: str
    intent: str
    answer: str
    samples: int


@dataclass(frozen=True)
class EvaluationSet:
    """Questions and their recordings [samples] at 24 kHz."""

    questions: Sequence[Question]
    recordings: Sequence[Floats]

    @classmethod
    def load(cls, folder: Path) -> EvaluationSet | None:
        """Read the set of a checkpoint or repository; None without one. Raises `EvaluationError` if it is damaged."""
        place = folder / EVALUATION_FOLDER
        if not place.is_dir():
            return None
        try:
            questions = [Question(**entry) for entry in json.loads((place / QUESTIONS_FILE).read_text())]
            sound, rate = soundfile.read(place / SOUND_FILE, dtype="float32")
        except (OSError, ValueError, TypeError, soundfile.SoundFileError) as error:
            raise EvaluationError(f"{place}: the evaluation set cannot be read: {error}") from error
        ends = np.cumsum([question.samples for question in questions])
        if rate != SAMPLE_RATE or sound.ndim != 1 or not len(ends) or len(sound) < ends[-1]:
            raise EvaluationError(f"{place}: {SOUND_FILE} is not the {QUESTIONS_FILE} at {SAMPLE_RATE} Hz, mono")
        return cls(questions, np.split(sound, ends)[:-1])

    def save(self, folder: Path) -> None:
        """Write the set into the checkpoint at `folder`."""
        place = folder / EVALUATION_FOLDER
        place.mkdir(parents=True, exist_ok=True)
        entries = [asdict(question) for question in self.questions]
        (place / QUESTIONS_FILE).write_text(json.dumps(entries, indent=1) + "\n")
        sound = np.concatenate(self.recordings)
        soundfile.write(place / SOUND_FILE, sound, SAMPLE_RATE, format="OGG", subtype="OPUS")

    def first(self, count: int) -> EvaluationSet:
        """Return `count` questions, spread over the set; all if it has no more."""
        chosen = np.unique(np.linspace(0, len(self.questions) - 1, count).round().astype(int))
        return EvaluationSet([self.questions[at] for at in chosen], [self.recordings[at] for at in chosen])

    def frames(self) -> Iterator[Floats]:
        """Frames [T, 1920] of each question, with silence before it and after it."""
        for recording in self.recordings:
            count = LEAD_FRAMES + -(-len(recording) // FRAME_SIZE) + TAIL_FRAMES
            sound = np.zeros(count * FRAME_SIZE, np.float32)
            sound[LEAD_FRAMES * FRAME_SIZE :][: len(recording)] = recording
            yield sound.reshape(-1, FRAME_SIZE)


@dataclass(frozen=True)
class Answers:
    """How a repository answers an evaluation set.

    intent_accuracy: share of the questions whose transcript is the right answer, of all and by group. word_error: edits
    per word between the transcript of an answer and what a recognizer hears in its sound; None without the recognizer.
    """

    questions: int
    intent_accuracy: float
    groups: Mapping[str, float]
    word_error: float | None


def judge(asked: EvaluationSet, transcripts: Sequence[str], sounds: Sequence[Floats]) -> Answers:
    """Compare transcripts and sounds [T] at 24 kHz of the answers with the right answers."""
    groups: dict[str, list[bool]] = {}
    for transcript, question in zip(transcripts, asked.questions, strict=True):
        groups.setdefault(question.group, []).append(words(transcript) == words(question.answer))
    error = None
    if recognizer_installed():
        error = spoken_word_error([(said, sound) for said, sound in zip(transcripts, sounds, strict=True) if said])
    right = [each for group in groups.values() for each in group]
    return Answers(
        len(right), float(np.mean(right)), {name: float(np.mean(group)) for name, group in groups.items()}, error
    )
