"""Prompts that the model is trained with, and the role that each asks for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model_repository.synthetic.speaking.intents import ASSISTANT, COMPANION, PROMPT_NAMES, SERVICE, TEACHER

ROLE_PROMPTS: tuple[tuple[str, str], ...] = (
    (ASSISTANT, "You are a helpful assistant. Answer questions clearly, keep it short, say when you are unsure."),
    (ASSISTANT, "You are an assistant who stays on the topic. Answer only what is asked, in one or two sentences."),
    (ASSISTANT, "You speak plainly. Give the answer first, then the reason, without small talk."),
    (ASSISTANT, "You are a helpful assistant."),
    (TEACHER, "You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way."),
    (TEACHER, "You are a patient expert. Explain precisely, name the reasons, and avoid jargon."),
    (TEACHER, "You are a teacher."),
    (SERVICE, "You work in customer service. Be polite, find out what the caller needs, offer the next step."),
    (SERVICE, "You work in customer service."),
    (COMPANION, "You are a kind and helpful companion. Listen closely and give practical help."),
    (COMPANION, "You are a warm and caring listener. Speak gently and show that you understand."),
    (COMPANION, "You are a kind companion."),
)
"""The gateway's presets and short forms of them."""

NAME_PROMPTS = ("Your name is {name}.", "You are {name}.", "You are called {name}.")
"""What a prompt says to change the agent's name, alone or beside a role."""


@dataclass(frozen=True)
class Persona:
    """A prompt, and how the agent answers to it. `name`: None where the prompt gives none."""

    prompt: str
    role: str
    name: str | None


def random_persona(generator: np.random.Generator) -> Persona:
    """Draw a prompt: mostly a role, in a third of the cases with a name; in a tenth no prompt at all."""
    if generator.random() < 0.1:
        return Persona("", ASSISTANT, None)
    role, prompt = ROLE_PROMPTS[int(generator.integers(len(ROLE_PROMPTS)))]
    if generator.random() < 0.67:
        return Persona(prompt, role, None)
    name = PROMPT_NAMES[int(generator.integers(len(PROMPT_NAMES)))]
    sentence = NAME_PROMPTS[int(generator.integers(len(NAME_PROMPTS)))].format(name=name)
    if generator.random() < 0.4:
        return Persona(sentence, ASSISTANT, name)
    return Persona(f"{prompt} {sentence}" if generator.random() < 0.5 else f"{sentence} {prompt}", role, name)


def texts() -> list[str]:
    """Return every sentence that prompts are made of."""
    names = [sentence.format(name=name) for sentence in NAME_PROMPTS for name in PROMPT_NAMES]
    return [*(prompt for _, prompt in ROLE_PROMPTS), *names]
