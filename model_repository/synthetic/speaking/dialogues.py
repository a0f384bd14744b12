"""Stage 3a, dialogues: prompts, questions and answers as columns of 17 tokens.

A dialogue is made anew for every step of the training: persona, voice, questions, gaps and interruptions are random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import sentencepiece

from model_repository.checkpoint.geometry import AGENT_CODEBOOKS
from model_repository.prompt_codes import SINE
from model_repository.synthetic.speaking.config import DELAYS
from model_repository.synthetic.speaking.intents import ASSISTANT, BY_NAME
from model_repository.synthetic.speaking.quantizer import Codes, Floats, silence_codes
from model_repository.synthetic.speaking.roles import Persona, random_persona
from model_repository.synthetic.speaking.voices import NAMES

STREAMS = len(DELAYS)
AGENT = slice(1, 1 + AGENT_CODEBOOKS)
USER = slice(1 + AGENT_CODEBOOKS, STREAMS)
PADDING = 3
PROMPT_SILENCE = 6
"""Frames before and after the text of a prompt."""

DELAY = 6
"""Frames from the end of the user's speech to the agent's first: the last word is known only after it has ended."""

STOP = 2
"""Frames from the beginning of an interruption to the agent's silence."""

VOICE_FRAMES = (8, 14)
"""Length of a voice prompt: least and most."""

NEAR = 4
"""Codes that count as near."""

_TURNS = (0.3, 0.4, 0.2, 0.1)
"""Shares of dialogues of one, two, three and four turns."""

_INTERRUPTION, _NOISE = 0.45, 0.3
"""How often a further turn interrupts the answer before it, and how often the line is noisy."""

_ROLE_SHARE, _NAME_SHARE = 0.4, 0.3
"""How often a question is one whose answer depends on the role, and how often it is for the name if the prompt has one.

The others are drawn from all intents.
"""

_WRONG_CODES = 0.05
"""Share of the frames of a question whose codes are replaced by random ones: a recognizer is never sure."""

_NEAR_CODES = 0.25
"""Share of the frames of a question in which a near code of codebook 0 is heard: strangers sound a little different."""

_STRETCHES = (0.04, 0.92, 0.04)
"""Shares of the frames of speech that are left out, heard once and heard twice: people speak faster and slower."""

_PAUSE, _PAUSE_FRAMES = 0.02, (200, 1400)
"""How often a question comes after a long silence, and its frames: they fill the window of the model."""

_LONG_CALL = 0.15
"""How often the prompt has left the window of the model: it goes on as an assistant, in the voice that it has."""

_MAX_JUMP = 2800
"""Positions at most that are left out after the prompt: to the model, a dialogue late in a long call."""


@dataclass(frozen=True, eq=False)
class Question:
    """A user's utterance: codes [F, 8]; speech from frame `begin` to before frame `end`."""

    intent: str
    codes: Codes
    begin: int
    end: int


@dataclass(frozen=True, eq=False)
class Material:
    """All that dialogues are made of. `answers`: codes [F, 8] by voice and sentence; `noises`: codes of noise.

    `centroids`: of codebook 0, [card, D].
    """

    card: int
    questions: Sequence[Question]
    answers: Mapping[str, Mapping[str, Codes]]
    noises: Sequence[Codes]
    user_silence: Codes
    tokenizer: sentencepiece.SentencePieceProcessor
    centroids: Floats
    by_intent: Mapping[str, Sequence[Question]] = field(init=False)
    near: Codes = field(init=False)
    """The codes nearest to each of codebook 0, [card, NEAR]."""

    def __post_init__(self) -> None:
        grouped: dict[str, list[Question]] = {}
        for question in self.questions:
            grouped.setdefault(question.intent, []).append(question)
        object.__setattr__(self, "by_intent", grouped)
        squares = np.square(self.centroids).sum(1)
        distances = squares[:, None] + squares - 2 * self.centroids @ self.centroids.T
        np.fill_diagonal(distances, np.inf)
        object.__setattr__(self, "near", distances.argsort(1)[:, :NEAR])


@dataclass(frozen=True, eq=False)
class Dialogue:
    """Columns [S, 17] with delays, positions [S], and the column from which on the agent is free."""

    columns: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    prompt: int
    speaking: npt.NDArray[np.bool_]
    """[S] whether the agent speaks in the frame."""
    stopped: npt.NDArray[np.bool_]
    """[S] whether it would have spoken, had it not been interrupted."""


def spread(tokens: Sequence[int], pieces: Sequence[str], frames: int) -> Codes:
    """Lay the tokens of a sentence over its frames in proportion to its characters; the rest is padding."""
    text = np.full(frames, PADDING, np.int64)
    lengths = np.array([max(1, len(piece)) for piece in pieces])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) / lengths.sum()
    last = -1
    for index, (token, start) in enumerate(zip(tokens, starts, strict=True)):
        # One a frame, and room for those that follow.
        frame = min(max(last + 1, int(start * (frames - 3))), frames - (len(tokens) - index))
        text[frame] = token
        last = frame
    return text


def prompt_frames(material: Material, persona: Persona, voice: Codes) -> npt.NDArray[np.int64]:
    """Frames [N + 12 + L, 17] of a voice's codes [N, 8] and a persona's text."""
    tokens: list[int] = []
    if persona.prompt:
        tokens = material.tokenizer.encode(f"<system> {persona.prompt} <system>")
    count = len(voice) + 2 * PROMPT_SILENCE + len(tokens)
    frames = np.empty((count, STREAMS), np.int64)
    frames[:, 0] = PADDING
    frames[:, AGENT] = silence_codes(material.card)
    frames[: len(voice), AGENT] = voice
    frames[:, USER] = np.array(SINE) % material.card
    begin = len(voice) + PROMPT_SILENCE
    frames[begin : begin + len(tokens), 0] = tokens
    return frames


def delayed(frames: npt.NDArray[np.int64], initial: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Columns [F, 17] of frames [F, 17]: column 0 is initial, streams of delay 1 come a column later.

    The first frame is lost, as in serving.
    """
    columns = np.empty_like(frames)
    for stream, delay in enumerate(DELAYS):
        columns[delay:, stream] = frames[: len(frames) - delay, stream]
        columns[: delay + 1, stream] = initial[stream]
    return columns


def make_dialogue(material: Material, text_card: int, generator: np.random.Generator) -> Dialogue:
    """Make one dialogue."""
    turns = 1 + int(generator.choice(len(_TURNS), p=_TURNS))
    is_long_call = turns > 1 and generator.random() < _LONG_CALL
    persona = Persona("", ASSISTANT, None) if is_long_call else random_persona(generator)
    voice = NAMES[int(generator.integers(len(NAMES)))]
    sentences = material.answers[voice]
    prompt = prompt_frames(material, persona, _voice_prompt(sentences, generator))

    timeline = _Timeline(material, _background(material, generator), generator)
    end = answer_at = first_end = 0
    for turn in range(turns):
        question = _draw(material, persona, generator)
        interrupts = turn > 0 and generator.random() < _INTERRUPTION
        if interrupts:
            onset = int(generator.integers(answer_at + 2, max(answer_at + 3, end - 3)))
            timeline.silence_agent(onset + STOP)
        else:
            onset = end + _pause(generator)
        answer_at = timeline.ask(question, onset) + DELAY
        end = timeline.answer(material, sentences, question, persona, answer_at)
        first_end = first_end or end
    conversation, speaking, stopped = timeline.frames(end + int(generator.integers(4, 10)))

    frames = np.concatenate([prompt, conversation])
    initial = np.full(STREAMS, material.card, np.int64)
    initial[0] = text_card
    columns = delayed(frames, initial)
    positions = np.arange(len(frames))
    spoken, stopped = (np.concatenate([np.zeros(len(prompt), bool), part]) for part in (speaking, stopped))
    if is_long_call:
        # What came first is heard only: nothing tells which voice it was to have.
        kept = slice(len(prompt) + 1, None)
        return Dialogue(columns[kept], positions[kept] + _MAX_JUMP, first_end, spoken[kept], stopped[kept])
    if generator.random() < 0.3:
        positions[len(prompt) :] += int(generator.integers(0, _MAX_JUMP))
    return Dialogue(columns, positions, len(prompt), spoken, stopped)


def _pause(generator: np.random.Generator) -> int:
    """Frames of silence before a question."""
    chance = generator.random()
    if chance < _PAUSE:
        return int(generator.integers(*_PAUSE_FRAMES))
    return int(generator.integers(0, 60 if chance < _PAUSE + 0.1 else 14))


def _draw(material: Material, persona: Persona, generator: np.random.Generator) -> Question:
    """A question of a random intent, more often of one that the persona answers differently."""
    names = list(material.by_intent)
    if persona.name and "name" in names and generator.random() < _NAME_SHARE:
        names = ["name"]
    elif generator.random() < _ROLE_SHARE:
        names = [name for name in names if BY_NAME[name].answers or name == "name"] or names
    questions = material.by_intent[names[int(generator.integers(len(names)))]]
    return questions[int(generator.integers(len(questions)))]


def _background(material: Material, generator: np.random.Generator) -> Codes:
    """What the user's line carries while nobody speaks."""
    if len(material.noises) and generator.random() < _NOISE:
        return material.noises[int(generator.integers(len(material.noises)))]
    return material.user_silence[None]


def _voice_prompt(sentences: Mapping[str, Codes], generator: np.random.Generator) -> Codes:
    """A random part of a random sentence."""
    codes = list(sentences.values())[int(generator.integers(len(sentences)))]
    frames = min(len(codes), int(generator.integers(VOICE_FRAMES[0], VOICE_FRAMES[1] + 1)))
    start = int(generator.integers(0, len(codes) - frames + 1))
    return codes[start : start + frames]


class _Timeline:
    """The two sides of a conversation, frame by frame; both are silent where nothing is written."""

    def __init__(self, material: Material, background: Codes, generator: np.random.Generator) -> None:
        self._material = material
        self._generator = generator
        self._background = background
        self._user: dict[int, Codes] = {}
        self._agent: dict[int, tuple[int, Codes]] = {}
        self._stopped: set[int] = set()

    def ask(self, question: Question, onset: int) -> int:
        """Put a question's codes where its speech begins at frame `onset`; return the frame in which it ends."""
        begin = onset - question.begin
        generator, card = self._generator, self._material.card
        times = np.ones(len(question.codes), np.int64)
        speech = slice(question.begin, question.end)
        times[speech] = 1 + generator.choice([-1, 0, 1], question.end - question.begin, p=_STRETCHES)
        for offset, codes in enumerate(np.repeat(question.codes, times, axis=0)):
            chance = generator.random()
            heard = codes
            if chance < _WRONG_CODES:
                heard = generator.integers(0, card, codes.shape)
            elif chance < _WRONG_CODES + _NEAR_CODES:
                heard = codes.copy()
                heard[0] = generator.choice(self._material.near[codes[0]])
            self._user[begin + offset] = heard
        return onset + int(times[speech].sum())

    def answer(
        self, material: Material, sentences: Mapping[str, Codes], question: Question, persona: Persona, begin: int
    ) -> int:
        """Put the answer to a question at `begin`; return the frame after its end."""
        text = BY_NAME[question.intent].answer_for(persona.role, persona.name)
        codes = sentences[text]
        tokens = material.tokenizer.encode(text)
        pieces = [material.tokenizer.id_to_piece(token) for token in tokens]
        for offset, (token, agent) in enumerate(zip(spread(tokens, pieces, len(codes)), codes, strict=True)):
            self._agent[begin + offset] = (int(token), agent)
        return begin + len(codes)

    def silence_agent(self, begin: int) -> None:
        """Remove what the agent would say from frame `begin` on."""
        self._stopped |= {frame for frame in self._agent if frame >= begin}
        self._agent = {frame: spoken for frame, spoken in self._agent.items() if frame < begin}

    def frames(self, length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return frames [length, 17], in which of them the agent speaks, and in which it was stopped."""
        frames = np.empty((length, STREAMS), np.int64)
        frames[:, 0] = PADDING
        frames[:, AGENT] = silence_codes(self._material.card)
        speaking = np.zeros(length, bool)
        stopped = np.isin(np.arange(length), list(self._stopped))
        for index in range(length):
            frames[index, USER] = self._user.get(index, self._background[index % len(self._background)])
            if index in self._agent:
                frames[index, 0], frames[index, AGENT] = self._agent[index]
                speaking[index] = True
        return frames, speaking, stopped & ~speaking
