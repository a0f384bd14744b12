"""Words that an agent says in place of what the model samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gateway.engine.conversation import Conversation
from gateway.engine.fake import FakeBackend
from gateway.engine.forced_text import MAX_PADDING, ForcedText
from gateway.engine.scheduler import FrameScheduler

PAD, EPAD, TEXT = 3, 0, 50
SLOT = 7
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (40, 1920)).astype(np.float32)


def chosen(forced: ForcedText, *sampled: int) -> list[int]:
    """What is used of these tokens, one per frame."""
    return [int(forced.apply(np.array([SLOT]), np.array([token]))[0]) for token in sampled]


def test_the_first_word_begins_at_once_and_its_tokens_follow_each_other() -> None:
    forced = ForcedText(PAD)
    forced.add(SLOT, [[11, 12, 13]])
    assert chosen(forced, PAD, PAD, TEXT, EPAD, PAD, TEXT) == [EPAD, 11, 12, 13, PAD, TEXT]


def test_the_model_keeps_the_pace() -> None:
    """Words begin where the model ends the padding, or begins a word of its own."""
    forced = ForcedText(PAD)
    forced.add(SLOT, [[11], [12], [13], [14]])
    tokens = chosen(forced, PAD, PAD, PAD, PAD, EPAD, TEXT, TEXT, PAD, TEXT, TEXT)
    assert tokens == [EPAD, 11, PAD, PAD, EPAD, 12, 13, PAD, EPAD, 14]


def test_a_silent_model_says_the_words_nevertheless() -> None:
    forced = ForcedText(PAD)
    forced.add(SLOT, [[11], [12]])
    pads = [PAD] * MAX_PADDING
    assert chosen(forced, *[PAD] * (MAX_PADDING + 5)) == [EPAD, 11, *pads, EPAD, 12, PAD]


def test_text_is_said_in_the_order_in_which_it_came_and_of_one_slot_only() -> None:
    forced = ForcedText(PAD)
    forced.add(SLOT, [[11]])
    forced.add(SLOT, [[12]])
    forced.add(SLOT, [])
    rows = [forced.apply(np.array([2, SLOT]), np.array([TEXT, TEXT])).tolist() for _ in range(4)]
    assert rows == [[TEXT, EPAD], [TEXT, 11], [TEXT, 12], [TEXT, TEXT]]


def test_a_cleared_slot_says_nothing() -> None:
    forced = ForcedText(PAD)
    forced.add(SLOT, [[11]])
    forced.clear(SLOT)
    assert chosen(forced, TEXT) == [TEXT]


async def test_an_agent_says_words_and_the_others_what_they_would(
    converse: Callable[..., Conversation], scheduler: FrameScheduler, engine: FakeBackend
) -> None:
    """The codes follow: the depformer and the next steps get the forced tokens."""

    async def talk(conversation: Conversation, words: list[list[int]]) -> list[list[int]]:
        frames = []
        for number, pcm in enumerate(NOISE):
            if number == 5:
                conversation.say(words)
            frame = await conversation.step(pcm)
            frames.append([frame.text_token, *frame.codes.tolist()])
        return frames

    said = []
    for words in ([], [[21, 22], [23]]):
        one, other = converse(seed=1), converse(seed=2)
        for conversation in (one, other):
            await conversation.start()
        said.append([await talk(one, words), await talk(other, [])])
        await one.close()
        await other.close()
    (free, neighbour), (forced, same) = said
    assert same == neighbour
    changed = next(index for index, (a, b) in enumerate(zip(free, forced, strict=True)) if a != b)
    text = [tokens[0] for tokens in forced]
    at = text.index(21)
    assert changed <= at
    assert text[at - 1] == EPAD
    assert [token for token in text[at:] if token not in (PAD, EPAD)][:3] == [21, 22, 23]
    assert [tokens[1:] for tokens in free[changed:]] != [tokens[1:] for tokens in forced[changed:]]
    # A conversation that ends takes its words with it.
    last = converse(seed=3)
    await last.start()
    last.say([[30]])
    slot = last.slot
    await last.close()
    again = converse(seed=3)
    assert again.slot == slot
    await again.start()
    assert (await again.step(NOISE[0])).text_token != 30
    assert (await again.step(NOISE[1])).text_token != 30
    await again.close()
