"""Prefixes, against the reference's own columns and by their parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gateway.engine.grid import TokenGrid
from gateway.errors import PromptTooLong, UnknownSystemPrompt
from gateway.manifest import Manifest
from gateway.session.persona import (
    SILENCE,
    SINE,
    SYSTEM_PROMPTS,
    check_prompt,
    prefix_of_codes,
    prefix_of_preset,
    system_prompt,
)
from gateway.voices.preset import VoicePreset
from gateway.voices.registry import VoiceRegistry

UNDELAYED = [0, 1, 9]


def preset_of(golden: dict[str, Any]) -> VoicePreset:
    """The golden voice as the build converts it: its last column whole, of the next one the delayed tokens."""
    frames = len(golden["voice_codes"])
    columns = golden["model_input"][frames - 1 : frames + 1].copy()
    columns[1, UNDELAYED] = -1
    return VoicePreset(np.zeros((frames - 1, 32), np.float32), columns)


def test_a_voice_by_its_codes_gives_the_references_columns(golden: dict[str, Any], manifest: Manifest):
    prefix = prefix_of_codes(golden["voice_codes"], golden["text_prompt_tokens"], manifest)
    assert prefix.length == golden["offset_after_prompt"]
    assert np.array_equal(prefix.steps, golden["model_input"][: prefix.length])
    assert prefix.embeddings.shape == (0, 32)


def test_a_preset_voice_gives_the_references_columns(golden: dict[str, Any], manifest: Manifest):
    prefix = prefix_of_preset(preset_of(golden), golden["text_prompt_tokens"], manifest)
    assert prefix.length == golden["offset_after_prompt"]
    embedded = len(golden["voice_codes"]) - 1
    assert prefix.embeddings.shape == (embedded, 32)
    assert np.array_equal(prefix.steps, golden["model_input"][embedded : prefix.length])


def test_both_leave_silence_and_the_tone_in_the_first_free_column(golden: dict[str, Any], manifest: Manifest):
    expected = [-1, -1, *SILENCE[1:], -1, *SINE[1:]]
    for prefix in (
        prefix_of_codes(golden["voice_codes"], [5, 6], manifest),
        prefix_of_preset(preset_of(golden), [5, 6], manifest),
    ):
        assert prefix.fixed.tolist() == expected


def test_the_grid_replays_every_column_and_frame_of_the_reference(golden: dict[str, Any], manifest: Manifest):
    """The reference's draws and user codes in, its model inputs and output frames out, without a model."""
    prefix = prefix_of_codes(golden["voice_codes"], golden["text_prompt_tokens"], manifest)
    start = prefix.length
    out, fed = golden["out_tokens"], golden["model_input"]
    grid, slot = TokenGrid(1, manifest.delays), np.array([0])
    grid.start(0, prefix)
    for index in range(len(out)):
        following = fed[start + index] if start + index < len(fed) else None
        text, first = (following[0], following[1]) if following is not None else (0, 0)
        frames = grid.emit(slot, np.array([text]), np.array([[first, *out[index, 2:9]]]))
        assert np.array_equal(frames[0], out[index]), index
        steps = grid.advance(slot, golden["user_codes"][index][None])
        if following is not None:
            assert np.array_equal(steps[0], following), index


def test_without_text_there_is_no_text_phase(golden: dict[str, Any], manifest: Manifest):
    prefix = prefix_of_codes(golden["voice_codes"], [], manifest)
    assert prefix.length == 13 + 6 + 6
    assert set(prefix.steps[1:, 0].tolist()) == {3}


def test_the_text_stands_between_two_silences(manifest: Manifest):
    prefix = prefix_of_preset(VoiceRegistry(manifest).require("NATF0").preset, [7, 8, 9], manifest)
    text = prefix.steps[:, 0].tolist()
    assert text == [3] + [3] * 6 + [7, 8, 9] + [3] * 6


def test_a_prompt_may_be_as_long_as_the_context_but_not_longer(manifest: Manifest):
    check_prompt([5] * 300, manifest)
    with pytest.raises(PromptTooLong, match="301 tokens, more than the model's context of 300"):
        check_prompt([5] * 301, manifest)


def test_the_preset_prompts_are_the_eight_people_know():
    assert list(SYSTEM_PROMPTS) == [
        "assistant",
        "focused",
        "customer-service",
        "teacher",
        "helpful",
        "expert",
        "warm",
        "direct",
    ]
    assert len(set(SYSTEM_PROMPTS.values())) == 8
    assert system_prompt("teacher").startswith("You are a wise and friendly teacher.")


def test_an_unknown_prompt_is_answered_with_those_there_are():
    with pytest.raises(UnknownSystemPrompt, match="no system prompt named 'boss'; there are: assistant, focused"):
        system_prompt("boss")
