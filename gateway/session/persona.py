"""Who the agent is: a voice and a text, turned into the columns every conversation of that persona begins with.

Prompt frames, in order: the voice's N frames, 6 of silence, one per text token, 6 of silence. Throughout, the user
side is a fixed tone and, after the voice, the agent side is fixed silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.engine.backend import Floats, Tokens
from gateway.engine.grid import AGENT, STREAMS, TEXT, USER, begin, lay_out
from gateway.errors import PromptTooLong, UnknownSystemPrompt
from gateway.manifest import Manifest
from gateway.voices.preset import VoicePreset

# Fixed token constants of the published model, part of how it was trained (they are not re-encoded).
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
class Prefix:
    """Columns 0..P-1 of a conversation, complete, and what they fix of column P.

    embeddings: [E, dim] float32, the summed input embeddings of columns 0..E-1 (E is 0 for a voice of tokens).
    columns: [P - E, 17] int64, the rest of the columns.
    known: [17] int64, the delayed tokens of column P; -1 elsewhere.
    """

    embeddings: Floats
    columns: Tokens
    known: Tokens

    @property
    def length(self) -> int:
        """P, the position of the first column that is not part of the prompt."""
        return len(self.embeddings) + len(self.columns)


def system_prompt(name: str) -> str:
    """A preset prompt's text. Raises UnknownSystemPrompt."""
    if name not in SYSTEM_PROMPTS:
        raise UnknownSystemPrompt(name, SYSTEM_PROMPTS)
    return SYSTEM_PROMPTS[name]


def check_prompt(text_tokens: Sequence[int], manifest: Manifest) -> None:
    """Raises PromptTooLong if the text alone would push itself out of the model's window."""
    if len(text_tokens) > manifest.context:
        raise PromptTooLong(len(text_tokens), manifest.context)


def prefix_of_preset(voice: VoicePreset, text_tokens: Sequence[int], manifest: Manifest) -> Prefix:
    """The prefix of a preset voice: its embeddings stand for the columns it does not hold as tokens."""
    after_voice = lay_out(_prompt_frames(text_tokens, manifest), manifest.delays)
    after_voice[0] = np.where(after_voice[0] >= 0, after_voice[0], voice.columns[-1])
    columns = np.concatenate([voice.columns[:-1], after_voice[:-1]])
    return Prefix(embeddings=voice.embeddings, columns=columns, known=after_voice[-1])


def prefix_of_codes(codes: Tokens, text_tokens: Sequence[int], manifest: Manifest) -> Prefix:
    """The prefix of a voice given by its codes [N, 8], as encoded from a recording."""
    return prefix_of_preset(preset_of_codes(codes, manifest), text_tokens, manifest)


def preset_of_codes(codes: Tokens, manifest: Manifest) -> VoicePreset:
    """A voice given by its codes [N, 8] as a preset: tokens alone, no embeddings."""
    columns = lay_out(_frames(codes, manifest), manifest.delays)
    initial = np.full(STREAMS, manifest.card, np.int64)
    initial[TEXT] = manifest.text_card
    begin(columns, manifest.delays, initial)
    return VoicePreset(embeddings=np.empty((0, manifest.dim), np.float32), columns=columns)


def _prompt_frames(text_tokens: Sequence[int], manifest: Manifest) -> Tokens:
    """[6 + L + 6, 17]: what follows the voice, frame by frame, before any delay."""
    text = len(text_tokens)
    frames = _frames(np.tile(SILENCE, (text + 2 * SILENT_FRAMES, 1)), manifest)
    frames[SILENT_FRAMES : SILENT_FRAMES + text, TEXT] = text_tokens
    return frames


def _frames(agent_codes: Tokens, manifest: Manifest) -> Tokens:
    """[N, 17] from the agent's codes [N, 8]: no text, and the user's fixed tone."""
    frames = np.empty((len(agent_codes), STREAMS), np.int64)
    frames[:, TEXT] = manifest.text_padding_id
    frames[:, AGENT] = agent_codes
    frames[:, USER] = SINE
    return frames
