"""Expand phrase patterns: `{a|b}` stands for one of its alternatives, `{a|}` may be left out."""

from __future__ import annotations

import itertools
import re

import numpy as np

_CHOICE = re.compile(r"\{([^{}]*)\}")


def expand(pattern: str) -> list[str]:
    """Return every phrase of a pattern, in the order of its alternatives, with single spaces."""
    parts = _CHOICE.split(pattern)
    choices = [part.split("|") if index % 2 else [part] for index, part in enumerate(parts)]
    return [" ".join("".join(choice).split()) for choice in itertools.product(*choices)]


def choose(patterns: tuple[str, ...], count: int, seed: int) -> list[str]:
    """Return at most `count` different phrases, as evenly from all patterns as they allow.

    The order is random but the same for a seed.
    """
    generator = np.random.default_rng(seed)
    shuffled = []
    for pattern in patterns:
        phrases = expand(pattern)
        shuffled.append([phrases[index] for index in generator.permutation(len(phrases))])
    turns = itertools.zip_longest(*shuffled)
    distinct = dict.fromkeys(phrase for turn in turns for phrase in turn if phrase is not None)
    chosen = list(distinct)[:count]
    return [chosen[index] for index in generator.permutation(len(chosen))]
