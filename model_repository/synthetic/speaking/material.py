"""Stage 2e, codes: what the trained encoder makes of users' speech, and the agent's sentences in every voice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch

from model_repository.checkpoint.geometry import FRAME_SIZE
from model_repository.synthetic.speaking.agent import AgentSpeech
from model_repository.synthetic.speaking.augment import FeatureSpectra, vary_line
from model_repository.synthetic.speaking.config import SpeakingConfig
from model_repository.synthetic.speaking.dialogues import Material, Question
from model_repository.synthetic.speaking.quantizer import Codes
from model_repository.synthetic.speaking.semantic import (
    Example,
    SemanticModel,
    encode,
    features_of,
    joined,
    padded,
    shown_intent,
)
from model_repository.synthetic.speaking.voices import NAMES

VARIANTS = 3
"""Questions of each example: another speaker and line each time."""

TAIL = 28
"""Frames of silence after a question: more than those in which the encoder shows the intent."""

PRECEDED = 0.4
"""Share of utterances that follow another one."""

NOISES = 24
NOISE_FRAMES = 60


def questions_of(
    model: SemanticModel,
    speech: AgentSpeech,
    asked: Sequence[Example],
    intents: Sequence[str],
    spectra: FeatureSpectra,
    seed: int,
) -> list[Question]:
    """Encode variants of users' examples from the last frame before the speech.

    The intent of a question is the one that its codes show, right or wrong: the language model cannot know better.
    `intents`: their names, by number.
    """
    questions = []
    for variant, (number, example) in itertools.product(range(VARIANTS), enumerate(asked)):
        generator = np.random.default_rng([seed, 12, variant, number])
        heard = example
        if generator.random() < PRECEDED:
            heard = joined(asked[int(generator.integers(len(asked)))], example, generator)
        features = np.pad(heard.features, ((0, 2 * (heard.end + TAIL) - len(heard.features)), (0, 0)), mode="edge")
        varied = spectra.varied(torch.from_numpy(features.astype(np.float32))[None], generator)[0]
        codes = encode(model, speech, varied.numpy())[max(0, heard.begin - 1) :]
        end = len(codes) - TAIL
        intent = intents[shown_intent(model, codes[end:, 0])]
        questions.append(Question(intent, codes, min(1, heard.begin), end))
        if number % 1000 == 0:
            print(f"codes: variant {variant + 1}, utterance {number + 1} of {len(asked)}", flush=True)
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
    questions: Callable[[], list[Question]],
    tokenizer: bytes,
    config: SpeakingConfig,
) -> Material:
    """Make the codes once and keep them in `path`. `questions` makes those of users."""
    if not path.exists():
        asked = questions()
        quiet = encode(model, speech, features_of(model.codec, np.zeros(100 * FRAME_SIZE, np.float32)))[-1]
        arrays: dict[str, Any] = {
            "codes": np.concatenate([question.codes for question in asked]).astype(np.uint16),
            "lengths": np.array([len(question.codes) for question in asked]),
            "bounds": np.array([[question.begin, question.end] for question in asked]),
            "intents": np.array([question.intent for question in asked]),
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
        stored_questions = [
            Question(str(intent), codes, int(begin), int(end))
            for intent, codes, (begin, end) in zip(stored["intents"], parts, stored["bounds"], strict=True)
        ]
        noises, quiet = list(stored["noises"]), stored["quiet"]
        answers = {voice: _by_text(speech, voice, stored[f"answers/{voice}"]) for voice in NAMES}
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    return Material(config.card, stored_questions, answers, noises, quiet, processor, model.book.centroids.numpy())


def _by_text(speech: AgentSpeech, voice: str, codes: Codes) -> dict[str, Codes]:
    """Cut the codes of all sentences of a voice's reader."""
    sentences = [speech.sentences[index] for index in speech.reader_of(voice)]
    ends = np.cumsum([len(sentence.content) for sentence in sentences])
    return {sentence.text: part for sentence, part in zip(sentences, np.split(codes, ends[:-1]), strict=True)}


def voice_prompts(answers: Mapping[str, Mapping[str, Codes]]) -> dict[str, Codes]:
    """The prompt of each preset: 12 frames of its longest sentence."""
    return {voice: max(sentences.values(), key=len)[2:14] for voice, sentences in answers.items()}
