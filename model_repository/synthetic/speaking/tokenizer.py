"""The text tokenizer: SentencePiece, trained on all that the agent says and is told."""

from __future__ import annotations

from model_repository.synthetic.speaking.intents import answers
from model_repository.synthetic.speaking.roles import texts
from model_repository.synthetic.tokenizer import SENTENCES, train_tiny_tokenizer


def train_speaking_tokenizer(pieces: int) -> bytes:
    """Return a serialized SentencePiece model of `pieces` pieces. The agent's own sentences weigh most."""
    prompts = [f"<system> {text} <system>" for text in texts()]
    return train_tiny_tokenizer(pieces, [*answers() * 8, *prompts * 4, *SENTENCES])
