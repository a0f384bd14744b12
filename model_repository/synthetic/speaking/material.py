"""Stage 2e, codes: what the trained encoder makes of users' speech, and the agent's sentences in every voice."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from model_repository.checkpoint.geometry import FRAME_SIZE
from model_repository.synthetic.speaking.agent import AgentSpeech
from model_repository.synthetic.speaking.augment import vary_line
from model_repository.synthetic.speaking.config import SpeakingConfig
from model_repository.synthetic.speaking.dialogues import Material, Question
from model_repository.synthetic.speaking.quantizer import Codes
from model_repository.synthetic.speaking.semantic import (
    SemanticModel,
    encode,
    features_of,
    padded,
    varied_user,
)
from model_repository.synthetic.speaking.speech import Utterance
from model_repository.synthetic.speaking.voices import NAMES

VARIANTS = 2
"""Recordings of each user's utterance: another speaker and line each time, not those of the encoder's training."""

LEAD, TAIL = 26, 28
"""Frames before an utterance at most, and frames of silence after it: the encoder sees two seconds."""

PRECEDED = 0.4
"""Share of utterances that follow another one within the encoder's window."""

GAP = (3, 21)
"""Frames of silence between the two: least and one more than the most."""

NOISES = 24
NOISE_FRAMES = 60


def questions_of(
    model: SemanticModel, speech: AgentSpeech, utterances: Sequence[Utterance], seed: int
) -> list[Question]:
    """Encode variants of users' utterances, from the last frame before them."""
    questions = []
    for variant, (number, utterance) in itertools.product(range(VARIANTS), enumerate(utterances)):
        generator = np.random.default_rng([seed, 12, variant, number])
        is_preceded = generator.random() < PRECEDED
        lead = LEAD if is_preceded else int(generator.integers(2, LEAD))
        _, heard = varied_user(utterance.sound, lead, TAIL, generator)
        if is_preceded:
            end = (LEAD - int(generator.integers(*GAP))) * FRAME_SIZE
            other = utterances[int(generator.integers(len(utterances)))].sound[-end:]
            heard[end - len(other) : end] += other
        codes = encode(model, speech, features_of(model.codec, heard))[lead - 1 :]
        questions.append(Question(utterance.line.intent, codes, 1, len(codes) - TAIL))
        if number % 1000 == 0:
            print(f"codes: variant {variant + 1}, utterance {number + 1} of {len(utterances)}", flush=True)
    return questions


def answers_of(model: SemanticModel, speech: AgentSpeech) -> dict[str, dict[str, Codes]]:
    """All sentences in all voices, by voice and text: codes [F, 8]. Codebook 0 is of the reader's own sound."""
    semantic = [
        encode(model, speech, features_of(model.codec, padded(sentence.sound, 0, 0)))[:, :1]
        for sentence in speech.sentences
    ]
    return {
        voice: {
            speech.sentences[index].text: np.concatenate(
                [semantic[index], speech.codes(speech.sentences[index], voice)], axis=1
            )
            for index in speech.reader_of(voice)
        }
        for voice in NAMES
    }


def noises_of(model: SemanticModel, speech: AgentSpeech, seed: int) -> list[Codes]:
    """Codes of lines that carry nothing but noise."""
    clips = []
    for number in range(NOISES):
        generator = np.random.default_rng([seed, 11, number])
        level = 10 ** (generator.uniform(-75, -40) / 20)
        hiss = level * generator.standard_normal(NOISE_FRAMES * FRAME_SIZE).astype(np.float32)
        codes = encode(model, speech, features_of(model.codec, vary_line(hiss, generator)))
        clips.append(codes[NOISE_FRAMES // 2 :])
    return clips


def prepare_material(
    path: Path,
    model: SemanticModel,
    speech: AgentSpeech,
    utterances: Sequence[Utterance],
    tokenizer: bytes,
    config: SpeakingConfig,
) -> Material:
    """Make the codes once and keep them in `path`."""
    if not path.exists():
        questions = questions_of(model, speech, utterances, config.seed)
        quiet = encode(model, speech, features_of(model.codec, np.zeros(100 * FRAME_SIZE, np.float32)))[-1]
        arrays: dict[str, Any] = {
            "codes": np.concatenate([question.codes for question in questions]).astype(np.uint16),
            "lengths": np.array([len(question.codes) for question in questions]),
            "bounds": np.array([[question.begin, question.end] for question in questions]),
            "intents": np.array([question.intent for question in questions]),
            "noises": np.stack(noises_of(model, speech, config.seed)),
            "quiet": quiet,
        }
        answers = answers_of(model, speech)
        for voice, sentences in answers.items():
            arrays[f"answers/{voice}"] = np.concatenate(list(sentences.values()))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **arrays)
    with np.load(path) as stored:
        parts = np.split(stored["codes"].astype(np.int64), np.cumsum(stored["lengths"])[:-1])
        questions = [
            Question(str(intent), codes, int(begin), int(end))
            for intent, codes, (begin, end) in zip(stored["intents"], parts, stored["bounds"], strict=True)
        ]
        noises, quiet = list(stored["noises"]), stored["quiet"]
        answers = {voice: _by_text(speech, voice, stored[f"answers/{voice}"]) for voice in NAMES}
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    return Material(config.card, questions, answers, noises, quiet, processor, model.book.centroids.numpy())


def _by_text(speech: AgentSpeech, voice: str, codes: Codes) -> dict[str, Codes]:
    """Cut the codes of all sentences of a voice's reader."""
    sentences = [speech.sentences[index] for index in speech.reader_of(voice)]
    ends = np.cumsum([len(sentence.content) for sentence in sentences])
    return {sentence.text: part for sentence, part in zip(sentences, np.split(codes, ends[:-1]), strict=True)}


def voice_prompts(answers: Mapping[str, Mapping[str, Codes]]) -> dict[str, Codes]:
    """The prompt of each preset: 12 frames of its longest sentence."""
    return {voice: max(sentences.values(), key=len)[2:14] for voice, sentences in answers.items()}
