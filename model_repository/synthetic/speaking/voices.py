"""The 18 presets: each is a reader, changed by the vocoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model_repository.synthetic.speaking.vocoder import Voice


@dataclass(frozen=True)
class Preset:
    """A reader of the agent's sentences and what makes a voice of it."""

    reader: str
    voice: Voice


PRESETS: Mapping[str, Preset] = {
    "NATF0": Preset("female", Voice(pitch=0.9, formants=0.94)),
    "NATF1": Preset("female", Voice(pitch=1.2, formants=1.0, colour=(7, -7, 7, -7, 0))),
    "NATF2": Preset("female", Voice(pitch=0.84, formants=0.9, colour=(-7, 7, 0, -7, 7))),
    "NATF3": Preset("female", Voice(pitch=1.05, formants=1.06, breath=0.4, colour=(7, 0, -7, 7, -7))),
    "NATM0": Preset("male", Voice()),
    "NATM1": Preset("male", Voice(pitch=1.18, formants=1.08, colour=(7, -7, 7, -7, 0))),
    "NATM2": Preset("male", Voice(pitch=0.84, formants=0.94, colour=(-7, 7, 0, -7, 7))),
    "NATM3": Preset("male", Voice(pitch=1.1, formants=0.9, breath=0.4, colour=(7, 0, -7, 7, -7))),
    "VARF0": Preset("female", Voice(pitch=1.35, range=1.3, formants=1.12, colour=(-7, -7, 0, 7, 7))),
    "VARF1": Preset("female", Voice(pitch=0.75, range=1.2, formants=0.94, breath=0.3, colour=(7, 7, -7, -7, 0))),
    "VARF2": Preset("female", Voice(pitch=1.12, range=0.4, formants=0.96, colour=(0, 7, 7, -7, -7))),
    "VARF3": Preset("female", Voice(pitch=0.93, range=1.5, formants=1.08, colour=(-7, 0, 7, 7, -7))),
    "VARF4": Preset("female", Voice(formants=0.97, breath=0.8, colour=(0, -7, -7, 7, 7))),
    "VARM0": Preset("male", Voice(pitch=1.6, range=1.3, formants=1.14, colour=(-7, -7, 0, 7, 7))),
    "VARM1": Preset("male", Voice(pitch=0.76, range=1.2, formants=0.88, breath=0.3, colour=(7, 7, -7, -7, 0))),
    "VARM2": Preset("male", Voice(pitch=1.3, range=0.4, formants=0.95, colour=(0, 7, 7, -7, -7))),
    "VARM3": Preset("male", Voice(pitch=0.93, range=1.5, formants=1.18, colour=(-7, 0, 7, 7, -7))),
    "VARM4": Preset("male", Voice(formants=0.97, breath=0.8, colour=(0, -7, -7, 7, 7))),
}
"""In the order of their codes."""

NAMES = tuple(PRESETS)
