"""Prompts into tokens and tokens into text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.session.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[2] / "golden"


def test_the_golden_prompt_has_the_references_tokens(tokenizer: Tokenizer, golden: dict[str, Any]):
    prompt = (GOLDEN / "prompt.txt").read_text()
    assert tokenizer.encode_prompt(prompt) == golden["text_prompt_tokens"].tolist()


def test_a_prompt_in_its_tags_is_not_tagged_again(tokenizer: Tokenizer):
    assert tokenizer.encode_prompt("  <system> be brief <system> ") == tokenizer.encode_prompt("be brief")


@pytest.mark.parametrize("blank", ["", "   ", "\n\t"])
def test_a_blank_prompt_has_no_tokens(tokenizer: Tokenizer, blank: str):
    assert tokenizer.encode_prompt(blank) == []


def test_padding_is_not_shown(tokenizer: Tokenizer):
    assert tokenizer.pieces[0] == ""
    assert tokenizer.pieces[3] == ""


def test_a_word_begins_with_a_space(tokenizer: Tokenizer):
    pieces = [tokenizer.pieces[token] for token in tokenizer.encode_prompt("you work")]
    assert "".join(pieces) == " <system> you work <system>"


def test_tokens_the_model_knows_but_the_tokenizer_does_not_show_nothing():
    tokenizer = Tokenizer(GOLDEN / "checkpoint" / "tokenizer_spm_32k_3.model", text_card=410, padding_id=3)
    assert tokenizer.pieces[409] == ""
    assert tokenizer.pieces[399] != ""
