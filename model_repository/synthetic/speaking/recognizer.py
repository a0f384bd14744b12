"""Word error by pocketsphinx, the judge of intelligibility."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import soxr

from model_repository.synthetic.speaking.engines import SAMPLE_RATE, Sound

_RATE = 16_000


@functools.cache
def _decoder() -> Any:
    import pocketsphinx

    return pocketsphinx.Decoder(samprate=_RATE, loglevel="FATAL")


def recognize(sound: Sound) -> str:
    """Return the words that the recognizer finds in sound [T] at 24 kHz."""
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


def word_error(pairs: Sequence[tuple[str, str]]) -> float:
    """Return the edits per reference word of (reference, hypothesis) pairs."""
    total = sum(len(words(reference)) for reference, _ in pairs)
    return sum(edits(words(reference), words(hypothesis)) for reference, hypothesis in pairs) / max(1, total)
