"""A vocoder whose output follows from per-frame parameters alone, phase and noise included.

A decoder that maps codes to sound can learn such a target with plain losses: the same codes always mean the same
samples. The phase of a TTS engine's speech is arbitrary, and a small decoder that has to guess it buzzes.

* The number of pitch cycles in a frame of 80 ms is an integer, so that every frame begins at phase 0.
* The noise is one fixed frame of noise, repeated.
* The spectral envelope is WORLD's, filtered with minimum phase.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_repository.checkpoint.geometry import FRAME_SIZE, SAMPLE_RATE

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

HOP = 120
"""Samples between two envelopes: 5 ms, 16 a frame."""

HOPS = FRAME_SIZE // HOP
_FFT = 1024
_FLOOR, _CEILING = 71.0, 400.0
"""Range of the pitch in Hz."""

MIN_CYCLES, MAX_CYCLES = 5, 30
"""Pitch cycles in a frame: 62.5 to 375 Hz."""


COLOUR_FREQUENCIES = (250.0, 700.0, 1500.0, 3000.0, 6000.0)
"""Hz at which the timbre of a voice is set; between them it is interpolated over octaves."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """WORLD's parameters of an utterance of F frames: K = 16 F envelopes.

    `pitch` [K] Hz, 0 where unvoiced; `envelope` [K, 513] power; `aperiodicity` [K, 513] from 0 (periodic) to 1 (noise).
    """

    pitch: Doubles
    envelope: Doubles
    aperiodicity: Doubles


@dataclass(frozen=True)
class Voice:
    """How a preset differs from the reader of its family.

    `pitch`: factor of the fundamental; `range`: of its deviation from the mean; `formants`: of the frequency axis;
    `tilt`: dB per octave; `breath`: least share of noise; `colour`: dB at each of `COLOUR_FREQUENCIES`.
    """

    pitch: float = 1.0
    range: float = 1.0
    formants: float = 1.0
    tilt: float = 0.0
    breath: float = 0.0
    colour: tuple[float, ...] = (0.0,) * len(COLOUR_FREQUENCIES)


def analyse(sound: Floats) -> Analysis:
    """Analyse an utterance [T], padded to whole frames."""
    import pyworld

    frames = -(-len(sound) // FRAME_SIZE)
    padded = np.zeros(frames * FRAME_SIZE, np.float64)
    padded[: len(sound)] = sound
    # Without a little noise, digital silence gives envelopes of any shape.
    padded += 1e-5 * np.random.default_rng(0).standard_normal(len(padded))
    period = 1000 * HOP / SAMPLE_RATE
    raw, times = pyworld.dio(padded, SAMPLE_RATE, f0_floor=_FLOOR, f0_ceil=_CEILING, frame_period=period)
    pitch = pyworld.stonemask(padded, raw, times, SAMPLE_RATE)
    envelope = pyworld.cheaptrick(padded, pitch, times, SAMPLE_RATE, fft_size=_FFT)
    aperiodicity = pyworld.d4c(padded, pitch, times, SAMPLE_RATE, fft_size=_FFT)
    count = frames * HOPS
    return Analysis(pitch[:count], envelope[:count], aperiodicity[:count])


def pitch_of(analysis: Analysis, voice: Voice) -> Doubles:
    """Return the pitch [K] of an utterance in another voice."""
    voiced = analysis.pitch > 0
    pitch = np.zeros_like(analysis.pitch)
    if voiced.any():
        logs = np.log(analysis.pitch[voiced])
        pitch[voiced] = np.exp(logs.mean() + (logs - logs.mean()) * voice.range) * voice.pitch
    return pitch


def as_voice(analysis: Analysis, voice: Voice) -> Analysis:
    """Return the same utterance in another voice."""
    bins = np.arange(analysis.envelope.shape[1])
    source = np.minimum(bins / voice.formants, bins[-1])
    low = source.astype(int)
    high = np.minimum(low + 1, bins[-1])
    share = source - low
    warped = np.exp(np.log(analysis.envelope[:, low]) * (1 - share) + np.log(analysis.envelope[:, high]) * share)
    octaves = np.log2(np.maximum(bins, 1) * SAMPLE_RATE / _FFT / 500)
    colour = np.interp(octaves, np.log2(np.array(COLOUR_FREQUENCIES) / 500), voice.colour)
    warped = warped * 10 ** ((voice.tilt * octaves + colour) / 10)
    # The level stays that of the reader.
    warped *= (analysis.envelope.sum(1) / warped.sum(1))[:, None]
    noise = analysis.aperiodicity[:, low] * (1 - share) + analysis.aperiodicity[:, high] * share
    return Analysis(pitch_of(analysis, voice), warped, np.maximum(noise, voice.breath))


def cycles_of(pitch: Doubles) -> npt.NDArray[np.int64]:
    """Return the pitch cycles of every frame [F]; where a frame is unvoiced, those of the nearest voiced frames."""
    frames = pitch.reshape(-1, HOPS)
    voiced = frames > 0
    counts = voiced.sum(1)
    known = np.flatnonzero(counts >= 3)
    if not len(known):
        return np.full(len(frames), 10, np.int64)
    means = np.array([frames[index][voiced[index]].mean() for index in known])
    smooth = np.interp(np.arange(len(frames)), known, means)
    cycles = np.rint(smooth * FRAME_SIZE / SAMPLE_RATE).astype(np.int64)
    return np.clip(cycles, MIN_CYCLES, MAX_CYCLES)


def pulses(cycles: npt.NDArray[np.int64]) -> Doubles:
    """Return band-limited pulses [F * 1920] of unit power and no DC: `cycles` per frame, gliding from the frame before.

    The glide leaves the number of cycles of every frame whole: its factor (1 - t)(1 - 3t) has the integral 0.
    """
    before = np.concatenate([cycles[:1], cycles[:-1]])
    time = (np.arange(FRAME_SIZE) + 0.5) / FRAME_SIZE
    glide = (1 - time) * (1 - 3 * time)
    rate = cycles[:, None] + (before - cycles)[:, None] * glide
    phase = np.cumsum(rate, axis=1) / FRAME_SIZE
    output = np.zeros(cycles.size * FRAME_SIZE + 1)
    for frame, count in enumerate(cycles):
        ends = phase[frame]
        for cycle in range(count):
            # The pulse stands in the middle of its cycle, so that rounding never moves it to another frame.
            position = np.interp(cycle + 0.5, ends, np.arange(1, FRAME_SIZE + 1)) + frame * FRAME_SIZE
            low = int(position)
            share = position - low
            amplitude = np.sqrt(FRAME_SIZE / count)
            output[low] += (1 - share) * amplitude
            output[low + 1] += share * amplitude
    return output[:-1] - np.repeat(np.sqrt(cycles / FRAME_SIZE), FRAME_SIZE)


def synthesize(analysis: Analysis, cycles: npt.NDArray[np.int64]) -> Floats:
    """Return the sound [F * 1920] of an utterance, with `cycles` [F] in place of its pitch."""
    noise = np.tile(np.random.default_rng(42).standard_normal(FRAME_SIZE), len(cycles))
    periodic = np.clip(1 - np.square(analysis.aperiodicity), 0, 1)
    periodic[analysis.pitch == 0] = 0
    voiced = _filtered(pulses(cycles), analysis.envelope * periodic)
    unvoiced = _filtered(noise, analysis.envelope * (1 - periodic))
    return (voiced + unvoiced).astype(np.float32)


def _filtered(excitation: Doubles, power: Doubles) -> Doubles:
    """Filter with one minimum-phase response for every hop, cross-faded between hops."""
    window = np.hanning(2 * HOP + 1)[:-1]
    padded = np.concatenate([np.zeros(HOP), excitation, np.zeros(HOP)])
    starts = np.arange(len(power)) * HOP
    segments = padded[starts[:, None] + np.arange(2 * HOP)] * window
    responses = np.fft.irfft(np.fft.rfft(segments, _FFT) * _minimum_phase(power))
    output = np.zeros(len(excitation) + _FFT + HOP)
    for start, response in zip(starts, responses, strict=True):
        output[start : start + _FFT] += response
    return output[HOP : HOP + len(excitation)]


def _minimum_phase(power: Doubles) -> npt.NDArray[np.complex128]:
    """Spectra [K, 513] of minimum phase with the given power [K, 513]."""
    cepstrum = np.fft.irfft(0.5 * np.log(np.maximum(power, 1e-12)))
    cepstrum[:, 1 : _FFT // 2] *= 2
    cepstrum[:, _FFT // 2 + 1 :] = 0
    return np.exp(np.fft.rfft(cepstrum))
