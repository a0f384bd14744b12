"""Stage 2b, agent: the agent's sentences as codes, and as the sound that the decoder is to make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_repository.checkpoint.geometry import FRAME_SIZE
from model_repository.synthetic.speaking.config import SpeakingConfig
from model_repository.synthetic.speaking.features import SPECTRA, Basis, patches
from model_repository.synthetic.speaking.quantizer import (
    CONTENT,
    CONTENT_BOOKS,
    Codes,
    Floats,
    Quantizer,
    cycles_codes,
    fit_quantizer,
    silence_codes,
)
from model_repository.synthetic.speaking.speech import Utterance
from model_repository.synthetic.speaking.vocoder import Analysis, analyse, as_voice, cycles_of, pitch_of, synthesize
from model_repository.synthetic.speaking.voices import PRESETS

LEAD, TAIL = 480, 2400
"""Samples of silence before and after a sentence; it ends with the end of a frame."""


@dataclass(frozen=True, eq=False)
class Sentence:
    """A sentence by one reader: F frames."""

    reader: str
    text: str
    sound: Floats
    analysis: Analysis
    content: Floats
    """[F, 40], by the content basis."""


@dataclass(frozen=True, eq=False)
class AgentSpeech:
    """All sentences, the basis of their content and the codebooks."""

    sentences: Sequence[Sentence]
    basis: Basis
    quantizer: Quantizer

    def codes(self, sentence: Sentence, voice: str) -> Codes:
        """Codes 1 to 7 of a sentence in a preset's voice: [F, 7]."""
        latents = np.zeros((len(sentence.content), self.quantizer.books.shape[2]), np.float32)
        latents[:, CONTENT] = sentence.content
        codes = self.quantizer.encode(latents)
        codes[:, 0] = list(PRESETS).index(voice)
        codes[:, -1] = cycles_codes(cycles_of(pitch_of(sentence.analysis, PRESETS[voice].voice)))
        return codes

    def sound(self, sentence: Sentence, voice: str) -> Floats:
        """The sentence in a preset's voice as the decoder is to make it: [1920 F]."""
        changed = as_voice(sentence.analysis, PRESETS[voice].voice)
        return synthesize(changed, cycles_of(changed.pitch))

    def reader_of(self, voice: str) -> list[int]:
        """Indices of the sentences that the voice's reader has read."""
        reader = PRESETS[voice].reader
        return [index for index, sentence in enumerate(self.sentences) if sentence.reader == reader]

    def silence(self, frames: int) -> Codes:
        """Codes 1 to 7 of silence: [frames, 7]."""
        return np.tile(silence_codes(self.quantizer.card)[1:], (frames, 1))


def prepare_agent(
    path: Path, utterances: Sequence[Utterance], users: Sequence[Floats], config: SpeakingConfig
) -> AgentSpeech:
    """Analyse the agent's utterances. Basis and codebooks are made once, of agent and users, and kept in `path`."""
    padded = [(utterance.line, _padded(utterance.sound)) for utterance in utterances]
    if not path.exists():
        own = np.concatenate([patches(sound, SPECTRA) for _, sound in padded])
        others = np.concatenate([patches(_padded(sound), SPECTRA) for sound in users])
        basis = Basis.fit(np.concatenate([own, others]), CONTENT.stop)
        silent = basis.project(patches(np.zeros(2 * FRAME_SIZE, np.float32), SPECTRA))[1]
        # The agent's sentences are few: they count four times.
        samples = basis.project(np.concatenate([own] * 4 + [others[: 4 * len(own)]]))
        quantizer = fit_quantizer(samples, silent, config.card, config.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, mean=basis.mean, components=basis.components, books=quantizer.books)
    with np.load(path) as stored:
        basis, quantizer = Basis(stored["mean"], stored["components"]), Quantizer(stored["books"])
    analyses = _analyses(path.with_name("analyses.npz"), [sound for _, sound in padded])
    sentences = [
        Sentence(line.speaker, line.text, sound, analysis, basis.project(patches(sound, SPECTRA)))
        for (line, sound), analysis in zip(padded, analyses, strict=True)
    ]
    return AgentSpeech(sentences, basis, quantizer)


def content_error(speech: AgentSpeech) -> float:
    """Share of the content's variance that its five codebooks lose."""
    content = np.concatenate([sentence.content for sentence in speech.sentences])
    latents = np.zeros((len(content), speech.quantizer.books.shape[2]), np.float32)
    latents[:, CONTENT] = content
    codes = speech.quantizer.encode(latents)
    books = [speech.quantizer.books[book - 1] for book in CONTENT_BOOKS]
    restored = sum(book[codes[:, index + 1]] for index, book in enumerate(books))
    return float(np.square(latents - restored)[:, CONTENT].mean() / content.var(0).mean())


def _analyses(path: Path, sounds: Sequence[Floats]) -> list[Analysis]:
    """Analyse the sounds once, and keep the result in `path`: it takes minutes."""
    if not path.exists():
        made = [analyse(sound) for sound in sounds]
        np.savez(
            path,
            lengths=np.array([len(analysis.pitch) for analysis in made]),
            pitch=np.concatenate([analysis.pitch for analysis in made]),
            envelope=np.concatenate([np.log(analysis.envelope) for analysis in made]).astype(np.float16),
            aperiodicity=np.concatenate([analysis.aperiodicity for analysis in made]).astype(np.float16),
        )
    with np.load(path) as stored:
        ends = np.cumsum(stored["lengths"])[:-1]
        envelope = np.exp(stored["envelope"].astype(np.float64))
        parts = (stored["pitch"], envelope, stored["aperiodicity"].astype(np.float64))
        return [Analysis(*part) for part in zip(*(np.split(whole, ends) for whole in parts), strict=True)]


def _padded(sound: Floats) -> Floats:
    """Add silence so that the whole is a number of frames."""
    frames = -(-(LEAD + len(sound) + TAIL) // FRAME_SIZE)
    output = np.zeros(frames * FRAME_SIZE, np.float32)
    output[LEAD : LEAD + len(sound)] = sound
    return output
