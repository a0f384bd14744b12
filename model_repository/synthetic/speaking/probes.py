"""Judge a stage before the next one begins: do codes tell the intent, is what the decoder makes understood?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from model_repository.checkpoint.geometry import AGENT_CODEBOOKS
from model_repository.evaluation.recognizer import recognize, word_error
from model_repository.synthetic.speaking.agent import AgentSpeech
from model_repository.synthetic.speaking.decoder import decoded
from model_repository.synthetic.speaking.dialogues import Question
from model_repository.synthetic.speaking.mimi import Decoder

_BATCH = 32
_WIDTH = 128


class _Probe(nn.Module):
    """Codes [N, F, 8] -> intents after the last frame, by one GRU."""

    def __init__(self, card: int, intents: int, codebooks: Sequence[int]) -> None:
        super().__init__()
        self._codebooks = codebooks
        self.tables = nn.ModuleList(nn.Embedding(card, _WIDTH) for _ in codebooks)
        self.reader = nn.GRU(_WIDTH, _WIDTH, batch_first=True)
        self.intent = nn.Linear(_WIDTH, intents)
        self.dropout = nn.Dropout(0.2)

    def forward(self, codes: Tensor, ends: Tensor) -> Tensor:
        x = torch.stack([table(codes[..., book]) for table, book in zip(self.tables, self._codebooks, strict=True)])
        hidden, _ = self.reader(self.dropout(x.sum(0)))
        return self.intent(self.dropout(hidden[torch.arange(len(codes)), ends]))


def intent_accuracy(
    trained: Sequence[Question],
    held_out: Mapping[str, Sequence[Question]],
    card: int,
    codebooks: Sequence[int] = range(AGENT_CODEBOOKS),
    epochs: int = 12,
    seed: int = 0,
) -> dict[str, float]:
    """Train a probe on questions; return the share of right intents for each held-out set."""
    torch.manual_seed(seed)
    names = sorted({question.intent for question in trained})
    probe = _Probe(card, len(names), codebooks)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=0.05)
    by_length = sorted(trained, key=lambda question: len(question.codes))
    batches = [by_length[start : start + _BATCH] for start in range(0, len(by_length), _BATCH)]
    generator = np.random.default_rng(seed)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * len(batches))
    for _ in range(epochs):
        for index in generator.permutation(len(batches)):
            logits, intents = _run(probe, batches[index], names)
            loss = functional.cross_entropy(logits, intents)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    probe.eval()
    accuracies = {}
    with torch.no_grad():
        for name, questions in held_out.items():
            right = 0
            for start in range(0, len(questions), _BATCH):
                logits, intents = _run(probe, questions[start : start + _BATCH], names)
                right += int((logits.argmax(-1) == intents).sum())
            accuracies[name] = right / max(1, len(questions))
    return accuracies


def _run(probe: _Probe, questions: Sequence[Question], names: Sequence[str]) -> tuple[Tensor, Tensor]:
    longest = max(len(question.codes) for question in questions)
    codes = np.stack([np.pad(question.codes, ((0, longest - len(question.codes)), (0, 0))) for question in questions])
    ends = torch.tensor([min(question.end + 3, len(question.codes) - 1) for question in questions])
    intents = torch.tensor([names.index(question.intent) for question in questions])
    return probe(torch.from_numpy(codes.astype(np.int64)), ends), intents


def decoded_word_error(decoder: Decoder, speech: AgentSpeech, voices: Sequence[str], every: int) -> dict[str, float]:
    """Word error of every `every`th sentence: as the engine spoke it, as the vocoder and as the decoder make it."""
    spoken: dict[str, list[tuple[str, str]]] = {"engine": [], "vocoder": [], "decoder": []}
    for voice in voices:
        for index in speech.reader_of(voice)[::every]:
            sentence = speech.sentences[index]
            pad = speech.silence(3)
            codes = np.concatenate([pad, speech.codes(sentence, voice), pad])
            spoken["engine"].append((sentence.text, recognize(sentence.sound)))
            spoken["vocoder"].append((sentence.text, recognize(speech.sound(sentence, voice))))
            spoken["decoder"].append((sentence.text, recognize(decoded(decoder, speech, codes))))
    return {name: word_error(pairs) for name, pairs in spoken.items()}


def silence_level(decoder: Decoder, speech: AgentSpeech) -> float:
    """RMS of what the decoder makes of silence, after its first second."""
    return float(np.sqrt(np.mean(np.square(decoded(decoder, speech, speech.silence(40))[20 * 1920 :]))))
