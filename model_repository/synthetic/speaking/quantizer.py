"""The codebooks: what the eight codes of a frame mean.

The latent of a frame has two halves. The first is the semantic one, quantized by codebook 0. The second has three
parts, each of which is quantized by codebooks whose centroids are 0 in the other two:

* `voice` (codebook 1): which of the 18 presets speaks,
* `content` (codebooks 2 to 6): the log-mel spectrum, a residual quantizer,
* `pitch` (codebook 7): cycles in a frame.

Codes of one part do not change with the others: a sentence has the same content codes in every voice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_repository.prompt_codes import SILENCE
from model_repository.synthetic.speaking.vocoder import MAX_CYCLES, MIN_CYCLES
from model_repository.synthetic.speaking.voices import NAMES

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]

CONTENT = slice(0, 40)
VOICE = slice(40, 50)
PITCH = slice(50, 64)
"""Dimensions of the second half of a latent."""

VOICE_BOOK, PITCH_BOOK = 1, 7
CONTENT_BOOKS = range(2, 7)
CODEBOOKS = 8


def silence_codes(card: int) -> Codes:
    """Codes [8] of digital silence: those of the published constant."""
    return np.array(SILENCE, np.int64) % card


def k_means(samples: Floats, count: int, generator: np.random.Generator, rounds: int = 25) -> Floats:
    """Return `count` centroids [count, D] of samples [n, D]; a centroid without samples moves to a random one."""
    centroids = samples[generator.choice(len(samples), count, replace=len(samples) < count)].copy()
    for _ in range(rounds):
        nearest = assign(samples, centroids)
        order = np.argsort(nearest, kind="stable")
        numbers, starts, counts = np.unique(nearest[order], return_index=True, return_counts=True)
        centroids[numbers] = np.add.reduceat(samples[order], starts) / counts[:, None]
        used = np.isin(np.arange(count), numbers)
        centroids[~used] = samples[generator.integers(len(samples), size=int((~used).sum()))]
    return centroids


def assign(samples: Floats, centroids: Floats) -> Codes:
    """Return the nearest centroid [n] of each sample."""
    codes: Codes = np.argmin(np.square(centroids).sum(1) - 2 * samples @ centroids.T, axis=1)
    return codes


@dataclass(frozen=True, eq=False)
class Quantizer:
    """Codebooks 1 to 7: `books` [7, card, 64]."""

    books: Floats

    @property
    def card(self) -> int:
        return self.books.shape[1]

    def encode(self, latents: Floats) -> Codes:
        """Quantize second halves of latents [n, 64] -> [n, 7], each codebook what the ones before it left."""
        rest = latents.copy()
        codes = np.empty((len(latents), len(self.books)), np.int64)
        for index, book in enumerate(self.books):
            codes[:, index] = assign(rest, book)
            rest -= book[codes[:, index]]
        return codes

    def decode(self, codes: Codes) -> Floats:
        """Sum the centroids of codes [n, 7] -> [n, 64]."""
        return np.asarray(sum(book[codes[:, index]] for index, book in enumerate(self.books)), np.float32)


def fit_quantizer(content: Floats, silent: Floats, card: int, seed: int) -> Quantizer:
    """Make the codebooks from content [n, 40] of speech, and that of digital silence [40]."""
    generator = np.random.default_rng(seed)
    silence = silence_codes(card)
    books = np.zeros((CODEBOOKS - 1, card, PITCH.stop), np.float32)
    rest = content.copy()
    for level, book in enumerate(CONTENT_BOOKS):
        centroids = k_means(rest, card - 1, generator)
        # Silence is quantized without error: by itself on the first level, by 0 on the others.
        centroids = np.insert(centroids, silence[book], silent if level == 0 else 0, axis=0)
        rest = rest - centroids[assign(rest, centroids)]
        books[book - 1, :, CONTENT] = centroids
    books[VOICE_BOOK - 1, :, VOICE] = _with_silence(voice_centroids(), card, int(silence[VOICE_BOOK]))
    books[PITCH_BOOK - 1, :, PITCH] = _with_silence(pitch_centroids(), card, int(silence[PITCH_BOOK]))
    return Quantizer(books)


def _with_silence(centroids: Floats, card: int, silence: int) -> Floats:
    """Fill a codebook up with copies of its first centroid, which are never the first minimum; `silence` is 0."""
    book = np.tile(centroids[:1], (card, 1))
    book[: len(centroids)] = centroids
    book[silence] = 0
    return book


def voice_centroids() -> Floats:
    """[18, 10]: corners of a cube, any two of which differ in at least three dimensions."""
    corners: list[npt.NDArray[np.float32]] = []
    for number in range(1 << 10):
        corner = np.array([1.0 if number >> bit & 1 else -1.0 for bit in range(10)], np.float32)
        if all(np.count_nonzero(corner != other) >= 3 for other in corners):
            corners.append(corner)
    return np.stack(corners[: len(NAMES)])


def pitch_centroids() -> Floats:
    """[cycles, 14]: waves over the range, so that near pitches are near and far ones are all equally far."""
    position = np.arange(MAX_CYCLES - MIN_CYCLES + 1) / (MAX_CYCLES - MIN_CYCLES + 8)
    angles = 2 * np.pi * position[:, None] * np.arange(1, 8)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def cycles_codes(cycles: Codes) -> Codes:
    """Codes of codebook 7."""
    return cycles - MIN_CYCLES
