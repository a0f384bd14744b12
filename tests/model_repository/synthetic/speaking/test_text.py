"""What the small model knows: enough intents, phrasings and roles, and each question belongs to one intent only."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import sentencepiece

from gateway.session.persona import SYSTEM_PROMPTS
from model_repository.synthetic.speaking.config import SpeakingConfig
from model_repository.synthetic.speaking.engines import Kokoro
from model_repository.synthetic.speaking.further import FURTHER_PATTERNS
from model_repository.synthetic.speaking.intents import BY_NAME, FALLBACK, INTENTS, PROMPT_NAMES, ROLES, answers
from model_repository.synthetic.speaking.phrases import choose, expand
from model_repository.synthetic.speaking.roles import ROLE_PROMPTS, random_persona
from model_repository.synthetic.speaking.speech import HELD_OUT_BLEND, HELD_OUT_USERS, USERS, user_lines
from model_repository.synthetic.speaking.tokenizer import train_speaking_tokenizer


def test_a_pattern_expands_to_all_its_alternatives() -> None:
    assert expand("{please |}tell me {a|another} joke") == [
        "please tell me a joke",
        "please tell me another joke",
        "tell me a joke",
        "tell me another joke",
    ]


def test_phrases_are_chosen_from_all_patterns_and_are_the_same_for_a_seed() -> None:
    patterns = ("one {a|b|c|d|e|f}", "two {a|b}")
    chosen = choose(patterns, 4, seed=3)
    assert chosen == choose(patterns, 4, seed=3)
    assert Counter(phrase.split()[0] for phrase in chosen) == {"one": 2, "two": 2}
    assert len(set(choose(patterns, 99, seed=3))) == 8


def test_there_are_forty_intents_with_fifteen_phrasings_each() -> None:
    assert len(INTENTS) >= 41
    assert FALLBACK in BY_NAME
    few = {intent.name for intent in INTENTS if len(choose(intent.patterns, 15, seed=0)) < 15}
    assert few == set()


def test_no_phrase_belongs_to_two_intents() -> None:
    owners: dict[str, set[str]] = {}
    for intent in INTENTS:
        for pattern in (*intent.patterns, *FURTHER_PATTERNS.get(intent.name, ())):
            for phrase in expand(pattern):
                owners.setdefault(phrase, set()).add(intent.name)
    assert {phrase: names for phrase, names in owners.items() if len(names) > 1} == {}


def test_every_role_has_answers_of_its_own() -> None:
    for role in ROLES:
        others = {intent.answer_for(other) for intent in INTENTS for other in ROLES if other != role}
        assert {intent.answer_for(role) for intent in INTENTS} - others, role


def test_a_name_in_the_prompt_changes_the_agents() -> None:
    assert {BY_NAME["name"].answer_for(ROLES[1], name) for name in PROMPT_NAMES} <= set(answers())
    assert BY_NAME["name"].answer_for(ROLES[0], "Anna") == "My name is Anna."


def test_the_gateways_preset_prompts_are_trained() -> None:
    assert set(SYSTEM_PROMPTS.values()) <= {prompt for _, prompt in ROLE_PROMPTS}


def test_personas_cover_roles_names_and_no_prompt() -> None:
    drawn = [random_persona(np.random.default_rng(seed)) for seed in range(300)]
    assert {persona.role for persona in drawn} == set(ROLES)
    assert {persona.name for persona in drawn} == {None, *PROMPT_NAMES}
    assert any(persona.prompt == "" for persona in drawn)
    for persona in drawn:
        assert persona.name is None or persona.name in persona.prompt


def test_held_out_phrasings_are_not_spoken_otherwise() -> None:
    lines = user_lines(SpeakingConfig())
    held_out = {line.text for line in lines if line.phrasing_held_out}
    trained = {line.text for line in lines if not line.phrasing_held_out}
    assert held_out
    assert not held_out & trained
    assert {line.speaker for line in lines} == {*USERS, *HELD_OUT_USERS}
    assert not set(USERS) & set(HELD_OUT_USERS)
    assert len({line.intent for line in lines if line.phrasing_held_out}) == len(INTENTS)


def test_no_trained_blend_is_near_the_held_out_one() -> None:
    held_out = {style for style, _ in HELD_OUT_BLEND}
    blends = [speaker.shares for speaker in USERS.values() if isinstance(speaker, Kokoro)]
    assert len(set(blends)) == len(blends) == 200
    for blend in blends:
        assert sum(share for style, share in blend) == pytest.approx(1)
        assert sum(share for style, share in blend if style not in held_out) >= 0.3


def test_the_tokenizer_restores_every_answer() -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=train_speaking_tokenizer(640))
    assert processor.get_piece_size() == 640
    for answer in answers():
        tokens = processor.encode(answer)
        assert processor.decode(tokens) == answer
        # One token a frame: an answer of a second has 12.
        assert len(tokens) <= 20
