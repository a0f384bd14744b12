"""Word error by pocketsphinx, a small recognizer: how much of spoken sentences can be understood."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from model_repository.checkpoint.geometry import SAMPLE_RATE

_RATE = 16_000

SAMPLE = 40
"""Answers that are recognized at most, spread over all."""

_SILENT = 0.003
"""Samples up to this are silence: recognizing it takes as long as recognizing speech."""


def recognizer_installed() -> bool:
    """Whether pocketsphinx is installed: the extra `evaluate`."""
    return importlib.util.find_spec("pocketsphinx") is not None


@functools.cache
def _decoder() -> Any:
    import pocketsphinx

    return pocketsphinx.Decoder(samprate=_RATE, loglevel="FATAL")


def recognize(sound: npt.NDArray[np.float32]) -> str:
    """Return the words that the recognizer finds in sound [T] at 24 kHz, without the silence around it."""
    heard = np.flatnonzero(np.abs(sound) > _SILENT)
    if not len(heard):
        return ""
    sound = sound[heard[0] : heard[-1] + 1]
    margin = np.zeros(SAMPLE_RATE // 4, np.float32)
    resampled = soxr.resample(np.concatenate([margin, sound, margin]), SAMPLE_RATE, _RATE)
    noise = 1e-4 * np.random.default_rng(0).standard_normal(len(resampled))
    decoder = _decoder()
    decoder.start_utt()
    decoder.process_raw((np.clip(resampled + noise, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return "" if hypothesis is None else str(hypothesis.hypstr)


def words(text: str) -> list[str]:
    """Return the words of a sentence in lower case."""
    return re.findall(r"[a-z']+", text.lower())


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Return the least number of insertions, deletions and substitutions."""
    row = list(range(len(hypothesis) + 1))
    for index, word in enumerate(reference):
        previous, row[0] = row[0], index + 1
        for column, other in enumerate(hypothesis):
            previous, row[column + 1] = (
                row[column + 1],
                min(row[column + 1] + 1, row[column] + 1, previous + (word != other)),
            )
    return row[-1]


def spoken_word_error(spoken: Sequence[tuple[str, npt.NDArray[np.float32]]]) -> float:
    """Return the word error of (transcript, sound [T] at 24 kHz) pairs: of a sample, for recognition takes long."""
    chosen = np.unique(np.linspace(0, len(spoken) - 1, min(SAMPLE, len(spoken))).round().astype(int))
    return word_error([(spoken[index][0], recognize(spoken[index][1])) for index in chosen])


def word_error(pairs: Sequence[tuple[str, str]]) -> float:
    """Return the edits per reference word of (reference, hypothesis) pairs."""
    total = sum(len(words(reference)) for reference, _ in pairs)
    return sum(edits(words(reference), words(hypothesis)) for reference, hypothesis in pairs) / max(1, total)
