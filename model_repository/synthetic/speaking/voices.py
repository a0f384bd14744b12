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
    "NATF0": Preset("female", Voice()),
    "NATF1": Preset("female", Voice(pitch=1.15, formants=1.06, tilt=0.5)),
    "NATF2": Preset("female", Voice(pitch=0.86, formants=0.95, tilt=-1.0)),
    "NATF3": Preset("female", Voice(pitch=1.05, formants=1.12, breath=0.3)),
    "NATM0": Preset("male", Voice()),
    "NATM1": Preset("male", Voice(pitch=1.2, formants=1.06, tilt=0.5)),
    "NATM2": Preset("male", Voice(pitch=0.86, formants=0.94, tilt=-1.0)),
    "NATM3": Preset("male", Voice(pitch=1.05, formants=0.9, breath=0.3)),
    "VARF0": Preset("female", Voice(pitch=1.3, range=1.3, formants=1.2, tilt=1.0)),
    "VARF1": Preset("female", Voice(pitch=0.75, range=1.2, formants=0.98, breath=0.2)),
    "VARF2": Preset("female", Voice(pitch=1.2, range=0.4, formants=1.0, tilt=-1.5)),
    "VARF3": Preset("female", Voice(pitch=0.95, range=1.5, formants=1.17, tilt=-0.5)),
    "VARF4": Preset("female", Voice(pitch=1.0, range=1.0, formants=1.02, breath=0.75, tilt=-1.0)),
    "VARM0": Preset("male", Voice(pitch=1.45, range=1.3, formants=1.12)),
    "VARM1": Preset("male", Voice(pitch=0.78, range=1.2, formants=0.88, tilt=0.5)),
    "VARM2": Preset("male", Voice(pitch=1.1, range=0.4, formants=1.0, tilt=-1.5)),
    "VARM3": Preset("male", Voice(pitch=0.95, range=1.5, formants=1.18, tilt=1.0)),
    "VARM4": Preset("male", Voice(pitch=1.0, range=1.0, formants=0.97, breath=0.75, tilt=-1.0)),
}
"""In the order of their codes."""

NAMES = tuple(PRESETS)
