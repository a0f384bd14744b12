"""Voices to try out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gateway.manifest import Manifest
from gateway.session.persona import preset_of_codes
from gateway.voices.preset import VoicePreset


@pytest.fixture
def make_preset(manifest: Manifest) -> Callable[..., VoicePreset]:
    """Makes a voice of tokens, as from a recording of that many frames."""

    def make(frames: int = 40, seed: int = 0) -> VoicePreset:
        return preset_of_codes(np.random.default_rng(seed).integers(0, 2048, (frames, 8)), manifest)

    return make
