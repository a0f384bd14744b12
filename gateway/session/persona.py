"""Personas: build the prompt of a conversation from a voice and a text.

Prompt frames, in order: the voice's N frames, 6 of silence, one per text token, 6 of silence. The user side is a fixed
tone throughout, and the agent side is fixed silence after the voice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.engine.backend import Floats, Tokens
from gateway.engine.grid import AGENT, STREAMS, TEXT, USER, delay_frames, set_initial_tokens
from gateway.engine.prefix import PromptPrefix
from gateway.errors import PromptTooLong, UnknownSystemPrompt
from gateway.manifest import Manifest
from gateway.voices.preset import VoicePreset

# Token constants of the published model's training data.
SILENCE = np.array([948, 243, 1178, 546, 1736, 1030, 1978, 2008], np.int64)
SINE = np.array([430, 1268, 381, 1611, 1095, 1495, 56, 472], np.int64)
SILENT_FRAMES = 6

SYSTEM_PROMPTS = {
    "assistant": "You are a helpful assistant. Answer questions clearly, keep it short, say when you are unsure.",
    "focused": "You are an assistant who stays on the topic. Answer only what is asked, in one or two sentences.",
    "customer-service": "You work in customer service. Be polite, find out what the caller needs, offer the next step.",
    "teacher": "You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way.",
    "helpful": "You are a kind and helpful companion. Listen closely and give practical help.",
    "expert": "You are a patient expert. Explain precisely, name the reasons, and avoid jargon.",
    "warm": "You are a warm and caring listener. Speak gently and show that you understand.",
    "direct": "You speak plainly. Give the answer first, then the reason, without small talk.",
}
DEFAULT_SYSTEM_PROMPT = "assistant"


@dataclass(frozen=True, eq=False)
class Persona:
    """Voice and role of the agent. `voice`: the name of a preset, or a recording [T] float32 at 24 kHz. `text` may be
    empty.
    """

    voice: str | Floats
    text: str

    @property
    def voice_name(self) -> str:
        """The name of the preset, or "voice_audio"."""
        return self.voice if isinstance(self.voice, str) else "voice_audio"


def system_prompt(name: str) -> str:
    """Return the text of a preset prompt. Raises UnknownSystemPrompt."""
    if name not in SYSTEM_PROMPTS:
        raise UnknownSystemPrompt(name, SYSTEM_PROMPTS)
    return SYSTEM_PROMPTS[name]


def check_prompt(text_tokens: Sequence[int], manifest: Manifest) -> None:
    """Raise PromptTooLong if the text alone exceeds the model's context."""
    if len(text_tokens) > manifest.context:
        raise PromptTooLong(len(text_tokens), manifest.context)


def prefix_of_preset(voice: VoicePreset, text_tokens: Sequence[int], manifest: Manifest) -> PromptPrefix:
    """Build the prompt of a preset voice. Its embeddings replace the steps that it does not have as tokens."""
    after_voice = delay_frames(_prompt_frames(text_tokens, manifest), manifest.delays)
    after_voice[0] = np.where(after_voice[0] >= 0, after_voice[0], voice.columns[-1])
    steps = np.concatenate([voice.columns[:-1], after_voice[:-1]])
    return PromptPrefix(embeddings=voice.embeddings, steps=steps, fixed=after_voice[-1])


def prefix_of_codes(codes: Tokens, text_tokens: Sequence[int], manifest: Manifest) -> PromptPrefix:
    """Build the prompt of a voice given by its codes [N, 8], as encoded from a recording."""
    return prefix_of_preset(preset_of_codes(codes, manifest), text_tokens, manifest)


def preset_of_codes(codes: Tokens, manifest: Manifest) -> VoicePreset:
    """Make a preset of a voice given by its codes [N, 8]: tokens, no embeddings."""
    steps = delay_frames(_frames(codes, manifest), manifest.delays)
    initial = np.full(STREAMS, manifest.card, np.int64)
    initial[TEXT] = manifest.text_card
    set_initial_tokens(steps, manifest.delays, initial)
    return VoicePreset(embeddings=np.empty((0, manifest.dim), np.float32), columns=steps)


def _prompt_frames(text_tokens: Sequence[int], manifest: Manifest) -> Tokens:
    """Return the frames after the voice, without delays: [6 + L + 6, 17]."""
    text = len(text_tokens)
    frames = _frames(np.tile(SILENCE, (text + 2 * SILENT_FRAMES, 1)), manifest)
    frames[SILENT_FRAMES : SILENT_FRAMES + text, TEXT] = text_tokens
    return frames


def _frames(agent_codes: Tokens, manifest: Manifest) -> Tokens:
    """Return frames [N, 17] with agent codes [N, 8], text padding, and the fixed tone as user codes."""
    frames = np.empty((len(agent_codes), STREAMS), np.int64)
    frames[:, TEXT] = manifest.text_padding_id
    frames[:, AGENT] = agent_codes
    frames[:, USER] = SINE
    return frames
