"""Forced text: words that an agent says verbatim, in place of the text tokens that the model samples.

The audio follows, because the depformer and the later steps get the forced tokens. The model keeps the pace: a word
begins when the model would begin one, by a text token or the end of padding, and after `MAX_PADDING` frames of padding
at the latest. The first word begins at once. The tokens of a word follow each other, one per frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from gateway.engine.backend import Tokens

MAX_PADDING = 6
"""Frames of padding between two words at most: 0.5 s. Speech has two to three words per second."""

END_OF_PADDING = 0
"""Text token before a word that follows padding."""


class ForcedText:
    """The words that the agents of all slots still have to say. `padding_id`: text token of silence between words."""

    def __init__(self, padding_id: int) -> None:
        self._padding_id = padding_id
        self.waiting: dict[int, _Words] = {}
        """By slot; empty while no agent has words to say."""

    def add(self, slot: int, words: Iterable[Sequence[int]]) -> None:
        """Say these words, each of them text tokens, after those that wait."""
        waiting = self.waiting.setdefault(slot, _Words())
        waiting.words.extend(words)
        if not waiting.words:
            self.clear(slot)

    def clear(self, slot: int) -> None:
        """Forget the words of a slot."""
        self.waiting.pop(slot, None)

    def apply(self, slots: Tokens, text_tokens: Tokens) -> Tokens:
        """Text tokens [B] that were sampled -> text tokens [B] to use."""
        chosen = text_tokens.copy()
        for row, slot in enumerate(slots.tolist()):
            if (waiting := self.waiting.get(slot)) is not None:
                chosen[row] = waiting.next(int(text_tokens[row]), self._padding_id)
                if not waiting.words and not waiting.rest:
                    self.clear(slot)
        return chosen


class _Words:
    """Words that wait. rest: tokens of the word that has begun. padding: frames of padding since the last word."""

    def __init__(self) -> None:
        self.words: deque[Sequence[int]] = deque()
        self.rest: deque[int] = deque()
        self.padding = MAX_PADDING

    def next(self, sampled: int, padding_id: int) -> int:
        if not self.rest:
            if sampled == padding_id and self.padding < MAX_PADDING:
                self.padding += 1
                return sampled
            self.rest.extend(self.words.popleft())
            padded, self.padding = self.padding > 0, 0
            if padded or sampled == END_OF_PADDING:
                return END_OF_PADDING
        return self.rest.popleft()
