"""Stage 1, speech: the agent's sentences and the users' questions as sound.

Files in `<work>/speech/`: one `.npz` per block of utterances, so that a run that stopped goes on with the next block.
Each has `sound` (int16, all utterances one after the other), `ends` (int64) and `lines` (JSON, one `Line` each).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_repository.synthetic.speaking.config import SpeakingConfig
from model_repository.synthetic.speaking.engines import (
    KOKORO_ENGLISH,
    KOKORO_FOREIGN,
    Blend,
    Espeak,
    Flite,
    Kokoro,
    Pico,
    RHVoice,
    Sound,
    Speaker,
)
from model_repository.synthetic.speaking.further import FURTHER_PATTERNS
from model_repository.synthetic.speaking.intents import FALLBACK, INTENTS, Intent, answers
from model_repository.synthetic.speaking.phrases import choose

BLOCK = 60
"""Utterances in a file."""

READERS: dict[str, Speaker] = {"female": Flite("slt"), "male": Flite("rms")}
"""The speakers that read the agent's sentences. The 18 voices are made of these two by the vocoder."""

HELD_OUT_BLEND: Blend = (("jf_tebukuro", 0.5), ("jm_kumo", 0.5))

_ACCENTS = ("en-us", "en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029")
_ESPEAK_VARIANTS = (
    *(f"m{number}" for number in (1, 2, 3, 4, 5, 6, 8)),
    *(f"f{number}" for number in (1, 2, 3, 4, 5)),
    *("Alex", "Andy", "Annie", "Denis", "Diogo", "Gene", "Jacky", "Lee", "Mario", "Michael", "Steph", "zac"),
    *("adam", "anika", "belinda", "benjamin", "boris", "caleb", "ed", "grandma", "linda", "max", "rob", "victor"),
)
_BLENDS = 200
_BLEND_ACCENTS = ("en-gb-scotland", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-029")


def _espeak_users() -> dict[str, Speaker]:
    """Every variant of espeak-ng's voice with an accent and a pitch."""
    return {
        f"espeak-{variant}": Espeak(f"{_ACCENTS[index % len(_ACCENTS)]}+{variant}", 25 + 37 * index % 55)
        for index, variant in enumerate(_ESPEAK_VARIANTS)
    }


def _kokoro_users() -> dict[str, Speaker]:
    """Kokoro's English styles by themselves, then blends of two styles, one of which at least is not held out.

    The first style of a blend is an English one, in every fourth blend a foreign one. Its share is 30 to 70 %.
    """
    generator = np.random.default_rng(5)
    held_out = {name for name, _ in HELD_OUT_BLEND}
    blends: list[Blend] = [((name, 1.0),) for name in KOKORO_ENGLISH]
    while len(blends) < _BLENDS:
        first = str(generator.choice(KOKORO_FOREIGN if len(blends) % 4 == 0 else KOKORO_ENGLISH))
        second = str(generator.choice(KOKORO_ENGLISH + KOKORO_FOREIGN))
        if first != second and not {first, second} <= held_out:
            share = round(float(generator.uniform(0.3, 0.7)), 3)
            blends.append(((first, share), (second, round(1 - share, 3))))
    return {f"kokoro-{number:03d}": Kokoro(blend, _accent(blend[0][0], number)) for number, blend in enumerate(blends)}


def _accent(style: str, number: int) -> str:
    """British for a British style, American for all others. Every third speaker has one of `_BLEND_ACCENTS` instead."""
    if number % 3 == 2:
        return _BLEND_ACCENTS[number // 3 % len(_BLEND_ACCENTS)]
    return "en-gb" if style.startswith("b") else "en-us"


USERS: dict[str, Speaker] = {
    "flite-slt": Flite("slt"),
    "flite-rms": Flite("rms"),
    "flite-kal": Flite("kal"),
    "other-pico-us": Pico("en-US"),
    "other-alan": RHVoice("alan"),
    "other-bdl": RHVoice("bdl"),
    "other-pico-gb": Pico("en-GB"),
    "other-clb": RHVoice("clb"),
    **_espeak_users(),
    **_kokoro_users(),
}
"""Speakers of the users' questions that are trained on."""

HELD_OUT_USERS: dict[str, Speaker] = {
    "flite-awb": Flite("awb"),
    "espeak-m7": Espeak("en-us+m7", 50),
    "kokoro-held": Kokoro(HELD_OUT_BLEND),
}
"""Speakers that are never trained on."""

AGENT = "agent"

READING_SPEED = 0.95


@dataclass(frozen=True)
class Line:
    """What one utterance says, by whom. `phrasing_held_out`: the phrasing is never trained on."""

    speaker: str
    intent: str
    text: str
    phrasing_held_out: bool = False


@dataclass(frozen=True, eq=False)
class Utterance:
    """A line and its sound [T] float32 at 24 kHz."""

    line: Line
    sound: Sound


def agent_lines() -> list[Line]:
    """The agent's sentences by every reader."""
    return [Line(reader, AGENT, text) for reader in READERS for text in answers()]


def user_lines(config: SpeakingConfig) -> list[Line]:
    """Every phrasing by seven speakers: one of flite's, two of espeak-ng's, two of Kokoro's, two of other engines'.

    Held-out phrasings come from one speaker of Kokoro's. They, and as many others, come from the held-out speakers too.
    Further phrasings come from one speaker of flite, one of espeak-ng and two of other engines: Kokoro takes longer
    than all of them together.
    """
    flite, espeak, kokoro, other = (
        [name for name in USERS if name.startswith(kind)] for kind in ("flite", "espeak", "kokoro", "other")
    )
    generator = np.random.default_rng(config.seed)
    lines = []
    number = 0
    for intent in INTENTS:
        count = config.fallback_phrasings if intent.name == FALLBACK else config.phrasings
        phrasings = choose(intent.patterns, count, config.seed)
        held_out = config.held_out_phrasings * (3 if intent.name == FALLBACK else 1)
        for index, text in enumerate(phrasings):
            is_held_out = index < held_out
            speakers = _turn(flite, number, 1) + _turn(espeak, number, 2) + _pair(other, number)
            speakers += _turn(kokoro, number, 2)[: 1 if is_held_out else 2]
            speakers += list(HELD_OUT_USERS) if is_held_out or index < 2 * held_out else []
            lines += [Line(speaker, intent.name, text, is_held_out) for speaker in speakers]
            number += 1
        for text in further_phrasings(intent, phrasings, config):
            speakers = _turn(flite, number, 1) + _turn(espeak, number, 1) + _pair(other, number)
            lines += [Line(speaker, intent.name, text) for speaker in speakers]
            number += 1
    return [lines[index] for index in generator.permutation(len(lines))]


def further_phrasings(intent: Intent, phrasings: Sequence[str], config: SpeakingConfig) -> list[str]:
    """Phrasings of an intent beyond those given."""
    patterns = (*intent.patterns, *FURTHER_PATTERNS.get(intent.name, ()))
    more = choose(patterns, len(phrasings) + config.further_phrasings, config.seed + 1)
    return [text for text in more if text not in set(phrasings)][: config.further_phrasings]


def _turn(names: Sequence[str], number: int, count: int) -> list[str]:
    """The next `count` names in turn."""
    return [names[(number * count + offset) % len(names)] for offset in range(count)]


def _pair(names: Sequence[str], number: int) -> list[str]:
    """Two of the names: in the course of the numbers, every pair."""
    count = len(names)
    return [names[number % count], names[(number + 1 + number // count % (count - 1)) % count]]


def plan(config: SpeakingConfig) -> list[tuple[str, list[Line]]]:
    """Blocks of lines by file name, the cheap engines first."""
    users = user_lines(config)
    slow = [line for line in users if line.speaker.startswith("kokoro")]
    fast = [line for line in users if not line.speaker.startswith("kokoro")]
    groups = (("agent", agent_lines()), ("program", fast), ("kokoro", slow))
    return [
        (f"{name}-{index:03d}.npz", list(block))
        for name, lines in groups
        for index, block in enumerate(_batched(lines))
    ]


def _batched(lines: Sequence[Line]) -> Iterator[Sequence[Line]]:
    return (lines[start : start + BLOCK] for start in range(0, len(lines), BLOCK))


def make_speech(folder: Path, config: SpeakingConfig, prefix: str = "", backwards: bool = False) -> None:
    """Speak every block whose file is missing and whose name begins with `prefix`.

    `backwards`: the last block first, so that two processes meet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    speakers: dict[str, Speaker] = {**READERS, **USERS, **HELD_OUT_USERS}
    blocks = plan(config)
    numbered = list(enumerate(blocks))
    for number, (name, lines) in reversed(numbered) if backwards else numbered:
        path = folder / name
        if not name.startswith(prefix) or path.exists():
            continue
        generator = np.random.default_rng([config.seed, number])
        sounds = []
        for line in lines:
            speed = READING_SPEED if line.intent == AGENT else float(generator.uniform(0.85, 1.15))
            sounds.append(speakers[line.speaker].speak(line.text, speed))
        write_block(path, lines, sounds)
        seconds = sum(map(len, sounds)) / 24_000
        print(f"speech: block {number + 1} of {len(blocks)}, {name}, {seconds:.0f} s", flush=True)


def write_block(path: Path, lines: Sequence[Line], sounds: Sequence[Sound]) -> None:
    """Write utterances to a file, which is there as a whole or not at all."""
    sound = np.concatenate(sounds)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(
            file,
            sound=np.clip(sound * 32767, -32768, 32767).astype(np.int16),
            ends=np.cumsum([len(sound) for sound in sounds]),
            lines=np.array([json.dumps(dataclasses.asdict(line)) for line in lines]),
        )
    temporary.replace(path)


def read_speech(folder: Path, prefix: str = "") -> list[Utterance]:
    """Read all utterances of the blocks whose names begin with `prefix`."""
    utterances = []
    for path in sorted(folder.glob(f"{prefix}*.npz")):
        with np.load(path) as block:
            sound = block["sound"].astype(np.float32) / 32767
            starts = [0, *block["ends"][:-1]]
            for start, end, line in zip(starts, block["ends"], block["lines"], strict=True):
                utterances.append(Utterance(Line(**json.loads(str(line))), sound[start:end]))
    return utterances
