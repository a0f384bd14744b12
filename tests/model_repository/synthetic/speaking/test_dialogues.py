"""Dialogues: prompts as in serving, answers after questions, silence after interruptions."""

from __future__ import annotations

import numpy as np
import pytest
import sentencepiece

from model_repository.prompt_codes import SILENCE, SINE
from model_repository.synthetic.speaking import dialogues as module
from model_repository.synthetic.speaking.config import DELAYS
from model_repository.synthetic.speaking.dialogues import (
    _PAUSE_FRAMES,
    AGENT,
    DELAY,
    NEAR,
    PADDING,
    STOP,
    USER,
    Dialogue,
    Material,
    Question,
    delayed,
    make_dialogue,
    prompt_frames,
    spread,
)
from model_repository.synthetic.speaking.intents import ASSISTANT, INTENTS, answers
from model_repository.synthetic.speaking.quantizer import silence_codes
from model_repository.synthetic.speaking.roles import Persona
from model_repository.synthetic.speaking.tokenizer import train_speaking_tokenizer
from model_repository.synthetic.speaking.voices import NAMES

CARD, TEXT_CARD = 256, 640
SPOKEN, ASKED, QUIET = 7, 9, 11
"""Codes of the agent's speech, the user's speech and the user's silence in these tests."""


@pytest.fixture(scope="module")
def material() -> Material:
    codes = np.repeat([[QUIET], [ASKED], [QUIET]], [2, 10, 8], axis=0) * np.ones(8, np.int64)
    questions = [Question(intent.name, codes, 2, 12) for intent in INTENTS]
    sentences = {text: np.full((20, 8), SPOKEN) for text in answers()}
    processor = sentencepiece.SentencePieceProcessor(model_proto=train_speaking_tokenizer(TEXT_CARD))
    centroids = np.random.default_rng(0).standard_normal((CARD, 4)).astype(np.float32)
    voices = dict.fromkeys(NAMES, sentences)
    return Material(CARD, questions, voices, [], np.full(8, QUIET), processor, centroids)


@pytest.fixture(scope="module")
def all_dialogues(material: Material) -> list[Dialogue]:
    """With questions as they were spoken: no wrong or near codes, no frames left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WRONG_CODES", 0.0)
        patch.setattr(module, "_NEAR_CODES", 0.0)
        patch.setattr(module, "_STRETCHES", (0.0, 1.0, 0.0))
        return [make_dialogue(material, TEXT_CARD, np.random.default_rng(seed)) for seed in range(300)]


@pytest.fixture(scope="module")
def dialogues(all_dialogues: list[Dialogue]) -> list[Dialogue]:
    """Those that begin with a prompt."""
    return [dialogue for dialogue in all_dialogues if dialogue.positions[0] == 0]


def runs(found: np.ndarray) -> list[tuple[int, int]]:
    """Beginning and length of each run of frames."""
    edges = np.diff(np.concatenate([[0], found.astype(int), [0]]))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return [(int(start), int(end - start)) for start, end in zip(starts, ends, strict=True)]


def conversation(dialogue: Dialogue, stream: int) -> np.ndarray:
    """A stream of the conversation, its delay undone."""
    return np.roll(dialogue.columns[:, stream], -DELAYS[stream])[dialogue.prompt :]


def test_tokens_are_spread_in_order_one_a_frame() -> None:
    text = spread([5, 6, 7], ["hello", "a", "there"], 20)
    assert [token for token in text if token != PADDING] == [5, 6, 7]
    assert text[0] == 5
    assert spread([4] * 10, ["x"] * 10, 10).tolist() == [4] * 10


def test_a_prompt_is_voice_silence_text_silence(material: Material) -> None:
    frames = prompt_frames(material, Persona("Your name is Anna.", ASSISTANT, "Anna"), np.full((9, 8), 1))
    tokens = material.tokenizer.encode("<system> Your name is Anna. <system>")
    assert len(frames) == 9 + 6 + len(tokens) + 6
    assert frames[15 : 15 + len(tokens), 0].tolist() == tokens
    assert set(frames[:15, 0]) == set(frames[-6:, 0]) == {PADDING}
    assert (frames[:9, AGENT] == 1).all()
    assert (frames[9:, AGENT] == np.array(SILENCE) % CARD).all()
    assert (frames[:, USER] == np.array(SINE) % CARD).all()


def test_columns_are_delayed_and_begin_with_initial_tokens() -> None:
    frames = np.arange(5)[:, None] + np.arange(17) * 100
    columns = delayed(frames, np.full(17, -1))
    assert (columns[0] == -1).all()
    for stream, delay in enumerate(DELAYS):
        assert columns[1 : 1 + delay, stream].tolist() == [-1] * delay
        assert columns[1 + delay :, stream].tolist() == frames[1 : 5 - delay, stream].tolist()


def test_the_agent_answers_after_the_question_and_only_then(dialogues: list[Dialogue]) -> None:
    for dialogue in dialogues:
        agent, user = conversation(dialogue, 1), conversation(dialogue, 9)
        speaks = agent == SPOKEN
        first = int(np.argmax(speaks))
        asked = np.flatnonzero(user[:first] == ASKED)
        assert first - asked[-1] == DELAY + 1
        # The agent is silent while it is asked, but for the frames in which it notices an interruption.
        assert all(length <= STOP for _, length in runs(speaks & (user == ASKED)))


def test_codes_of_the_user_are_often_near_ones_and_seldom_wrong(material: Material) -> None:
    near = set(material.near[ASKED].tolist())
    assert len(near) == NEAR
    assert ASKED not in near
    heard = np.concatenate(
        [
            dialogue.columns[:, 9][dialogue.columns[:, 9] != QUIET]
            for dialogue in (make_dialogue(material, TEXT_CARD, np.random.default_rng(seed)) for seed in range(300))
        ]
    )
    # Of each question, 10 frames are ASKED and 10 are QUIET, which have near and wrong codes too.
    asked = np.count_nonzero(heard == ASKED)
    assert 0.2 < np.count_nonzero(np.isin(heard, list(near))) / asked < 0.6


def test_interruptions_end_the_answer_and_are_answered(dialogues: list[Dialogue]) -> None:
    interrupted = 0
    for dialogue in dialogues:
        agent, user = conversation(dialogue, 1), conversation(dialogue, 9)
        for start, length in runs((agent == SPOKEN) & (user == ASKED)):
            interrupted += 1
            # Another interruption may end this answer too, but not at once.
            answer = start + 10 + DELAY
            assert (agent[start + length : answer] == silence_codes(CARD)[0]).all()
            assert dialogue.stopped[dialogue.prompt :][start + length]
            assert (agent[answer : answer + 2] == SPOKEN).all()
    assert interrupted > 10
    assert not any((dialogue.stopped & dialogue.speaking).any() for dialogue in dialogues)


def test_some_questions_come_after_a_long_silence(dialogues: list[Dialogue]) -> None:
    longest = [max(length for _, length in runs(conversation(dialogue, 9) == QUIET)) for dialogue in dialogues]
    assert 0.01 < np.mean(np.array(longest) >= _PAUSE_FRAMES[0]) < 0.15


def test_the_transcript_is_an_answer(material: Material, dialogues: list[Dialogue]) -> None:
    whole = 0
    for dialogue in dialogues:
        tokens = [int(token) for token in conversation(dialogue, 0) if token not in (PADDING, TEXT_CARD)]
        spoken = conversation(dialogue, 1) == SPOKEN
        if np.count_nonzero(np.diff(spoken.astype(int)) == 1) == 1 and spoken.sum() == 20:
            whole += 1
            assert material.tokenizer.decode(tokens) in answers()
    assert whole > 50


def test_late_dialogues_keep_the_prompt_before_them(dialogues: list[Dialogue]) -> None:
    jumps = [int(np.diff(dialogue.positions).max()) for dialogue in dialogues]
    assert min(jumps) == 1
    assert 1000 < max(jumps) < 3000
    for dialogue in dialogues:
        assert (np.diff(dialogue.positions[: dialogue.prompt]) == 1).all()
        assert (np.diff(dialogue.positions[dialogue.prompt :]) == 1).all()


def test_late_in_a_long_call_the_prompt_is_gone_and_the_first_answer_is_given(all_dialogues: list[Dialogue]) -> None:
    late = [dialogue for dialogue in all_dialogues if dialogue.positions[0]]
    assert 10 < len(late) < 60
    for dialogue in late:
        assert dialogue.positions[0] > 2000
        assert not (dialogue.columns[:, USER] == np.array(SINE) % CARD).all(1).any()
        assert dialogue.speaking[: dialogue.prompt].any()
        assert dialogue.speaking[dialogue.prompt :].any()
