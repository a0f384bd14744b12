"""The text side of the model: a persona's prompt into tokens, the agent's tokens into text."""

from __future__ import annotations

from pathlib import Path

from sentencepiece import SentencePieceProcessor

SYSTEM_TAG = "<system>"
EPAD = 0


class Tokenizer:
    """SentencePiece with the model's conventions; `text_card` is the number of text tokens the model knows."""

    def __init__(self, path: Path, text_card: int, padding_id: int) -> None:
        self._processor = SentencePieceProcessor(model_file=str(path))
        known = min(text_card, self._processor.get_piece_size())
        self._pieces = [self._processor.id_to_piece(token).replace("\u2581", " ") for token in range(known)]
        self._pieces += [""] * (text_card - known)
        for silent in (EPAD, padding_id):
            self._pieces[silent] = ""

    def encode_prompt(self, text: str) -> list[int]:
        """A persona's text -> tokens, in the tags the model was trained with; blank text -> no tokens at all."""
        text = text.strip()
        if not text:
            return []
        tagged = text.startswith(SYSTEM_TAG) and text.endswith(SYSTEM_TAG)
        tokens: list[int] = self._processor.encode(text if tagged else f"{SYSTEM_TAG} {text} {SYSTEM_TAG}")
        return tokens

    def piece(self, token: int) -> str:
        """What is shown for a text token; nothing for the two padding tokens."""
        return self._pieces[token]
