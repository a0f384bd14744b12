"""Convert a persona's text prompt to tokens, and the agent's text tokens to text."""

from __future__ import annotations

from pathlib import Path

from sentencepiece import SentencePieceProcessor

from gateway.engine.forced_text import END_OF_PADDING

SYSTEM_TAG = "<system>"
_WORD_BEGINS = "\u2581"


class Tokenizer:
    """SentencePiece with the model's conventions. `text_card`: number of the model's text tokens.

    pieces: the text of each token; empty for the two padding tokens.
    """

    def __init__(self, path: Path, text_card: int, padding_id: int) -> None:
        self._processor = SentencePieceProcessor(model_file=str(path))
        known = min(text_card, self._processor.get_piece_size())
        self.pieces = [self._processor.id_to_piece(token).replace(_WORD_BEGINS, " ") for token in range(known)]
        self.pieces += [""] * (text_card - known)
        for silent in (END_OF_PADDING, padding_id):
            self.pieces[silent] = ""

    def encode_words(self, text: str) -> list[list[int]]:
        """Encode text to be said: the tokens of each word."""
        words: list[list[int]] = []
        for token in self._processor.encode(text):
            if not words or self._processor.id_to_piece(token).startswith(_WORD_BEGINS):
                words.append([])
            words[-1].append(token)
        return words

    def encode_prompt(self, text: str) -> list[int]:
        """Encode a text prompt, between the tags of the model's training data. A blank prompt has no tokens."""
        text = text.strip()
        if not text:
            return []
        tagged = text.startswith(SYSTEM_TAG) and text.endswith(SYSTEM_TAG)
        tokens: list[int] = self._processor.encode(text if tagged else f"{SYSTEM_TAG} {text} {SYSTEM_TAG}")
        return tokens
