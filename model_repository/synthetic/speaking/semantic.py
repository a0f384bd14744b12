"""Stage 2d, semantics: Mimi's encoder transformer and codebook 0, trained to expose what is meant.

A codec that is trained to reconstruct does not tell words apart across speakers. So the transformer's steps must
suffice to find phonemes and words. The first half of the latent, as quantized by codebook 0, shows in every frame
whether there is speech. In the frames after a question it shows the intent. So a question is understood from
continuous values, before they are quantized. The second half learns the acoustic codes: content for all speech, voice
and pitch for the agent's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from model_repository.checkpoint.geometry import FRAME_SIZE
from model_repository.synthetic.speaking.agent import AgentSpeech
from model_repository.synthetic.speaking.augment import FeatureSpectra, vary_line, vary_speaker
from model_repository.synthetic.speaking.config import SpeakingConfig
from model_repository.synthetic.speaking.engines import Sound
from model_repository.synthetic.speaking.features import SPECTRA, patches
from model_repository.synthetic.speaking.mimi import Encoder
from model_repository.synthetic.speaking.quantizer import CONTENT, PITCH, VOICE, Codes, Floats, k_means, silence_codes
from model_repository.synthetic.speaking.speech import Line
from model_repository.synthetic.speaking.training import reduced_precision, train
from model_repository.synthetic.speaking.voices import NAMES

BATCH, AGENTS = 24, 2
LEAD = (1, 13)
"""Frames of silence before an example: least and one more than the most. Pairs of utterances have longer pasts."""

TAIL = 10
"""Frames of silence after an example."""

QUANTIZED_FROM = 0.25
"""Share of the steps after which codebook 0 quantizes; it begins with the means of the latents of that step."""

FIXED_FROM = 0.5
"""Share of the steps after which codebook 0 stays as it is, and latents are judged by their distances to its centroids.

From then on the loss has a gradient also where the nearest code is a wrong one.
"""

DISTANCE_SCALE = 64.0
"""Squared distance by which a code becomes less likely by a factor of e. With 4, wrong codes have no gradient."""

BOUNDED = 0.7
"""Exponent q of the loss (1 - p^q) / q of a class of probability p, which is bounded.

Generalized cross-entropy: https://arxiv.org/abs/1805.07836. With cross-entropy the encoder memorizes utterances that
are not intelligible, and understands fewer unseen speakers.
"""

CLASS_EXAMPLES = 3000
"""Examples at most from which the classes of the codes are counted."""

SAID = slice(2, 6)
"""Frames after the end of the speech in which codebook 0 shows the intent. The answer begins in frame 6."""

QUIET, SPEECH, FIRST_INTENT = 0, 1, 2
"""Classes of frames; those of the intents follow."""

UNJUDGED = -100
"""Class of frames that may have any code: those at the borders between the others."""

FOLLOWED = 0.3
"""Share of the batches in which every utterance is followed by another one."""

STRETCHED = 0.65
"""Share of the users' utterances that are spoken at another speed, which changes as they go."""

SPEEDS, SPEED_CHANGE, KNOT_FRAMES = (0.8, 1.2), 0.18, 6
"""Least and most of the speed of an utterance; deviation in nepers of its local changes, one in so many frames."""

_DECAY = 0.98
_WEIGHTS = {"phonemes": 1.0, "words": 1.0, "intent": 1.0, "presence": 0.3, "acoustic": 1.0, "commitment": 0.25}


@dataclass(frozen=True, eq=False)
class Example:
    """An utterance as the front end sees it, with what is to be found in it."""

    features: Floats
    """[2 F, dim], float16."""
    content: Floats
    """[F, 40]."""
    classes: Codes
    """[F]: what codebook 0 is to show in every frame."""
    begin: int
    end: int
    """Frames in which the speech begins, and after which it has ended."""
    words: Sequence[int]
    phonemes: Sequence[int]
    acoustic: Floats
    """[F, 24] voice and pitch of the agent's speech; [F, 0] of a user's."""


@dataclass(frozen=True)
class Labels:
    """Numbers of intents, words and phonemes; 0 of words and phonemes is the blank."""

    intents: Mapping[str, int]
    words: Mapping[str, int]
    phonemes: Mapping[str, int]
    pronunciations: Mapping[str, str]
    """Phonemes of each text."""

    @classmethod
    def of(cls, lines: Sequence[Line], intents: Sequence[str], pronunciations: Mapping[str, str]) -> Labels:
        """Number what occurs in the lines."""
        words = sorted({word for line in lines for word in line.text.split()})
        symbols = sorted({symbol for text in pronunciations.values() for symbol in text})
        return cls(
            {intent: index for index, intent in enumerate(intents)},
            {word: index + 1 for index, word in enumerate(words)},
            {symbol: index + 1 for index, symbol in enumerate(symbols)},
            pronunciations,
        )


def padded(sound: Sound, lead: int, tail: int) -> Sound:
    """Add frames of silence; the whole is a number of frames."""
    frames = lead + -(-len(sound) // FRAME_SIZE) + tail
    output = np.zeros(frames * FRAME_SIZE, np.float32)
    output[lead * FRAME_SIZE : lead * FRAME_SIZE + len(sound)] = sound
    return output


def features_of(encoder: Encoder, sound: Sound) -> Floats:
    """Run the convolutions over sound [1920 F] -> [2 F, dim] float16."""
    with torch.no_grad():
        features = encoder.encoder(torch.from_numpy(sound)[None, None])[0].T
    return np.asarray(features.numpy(), np.float16)


def user_example(
    encoder: Encoder, speech: AgentSpeech, labels: Labels, line: Line, sound: Sound, generator: np.random.Generator
) -> Example:
    """Make an example of a user's utterance: another speaker and line each time."""
    lead = int(generator.integers(*LEAD))
    clean = padded(vary_speaker(sound, generator), lead, TAIL)
    frames = len(clean) // FRAME_SIZE
    return Example(
        features_of(encoder, vary_line(clean, generator)),
        speech.basis.project(patches(clean, SPECTRA)),
        classes_of(labels.intents[line.intent], lead, frames - TAIL, frames),
        lead,
        frames - TAIL,
        [labels.words[word] for word in line.text.split() if word in labels.words],
        [labels.phonemes[symbol] for symbol in labels.pronunciations[line.text]],
        np.empty((frames, 0), np.float32),
    )


def classes_of(intent: int, begin: int, end: int, frames: int) -> Codes:
    """The class of every frame [frames] of speech in the frames from `begin` to before `end`."""
    classes = np.full(frames, QUIET, np.int64)
    classes[max(0, begin - 1) : end + SAID.stop + 2] = UNJUDGED
    classes[begin + 1 : end - 1] = SPEECH
    classes[end + SAID.start : end + SAID.stop] = FIRST_INTENT + intent
    return classes


def agent_example(encoder: Encoder, speech: AgentSpeech, index: int, voice: str) -> Example:
    """Make an example of an agent's sentence in one of the voices: its content is the reader's."""
    sentence = speech.sentences[index]
    codes = speech.codes(sentence, voice)
    sums = speech.quantizer.decode(codes)
    return Example(
        features_of(encoder, speech.sound(sentence, voice)),
        sentence.content,
        np.full(len(codes), UNJUDGED, np.int64),
        0,
        len(codes),
        [],
        [],
        np.concatenate([sums[:, VOICE], sums[:, PITCH]], axis=1),
    )


class Codebook(nn.Module):
    """Codebook 0: nearest centroids, learnt as moving averages; gradients pass straight through.

    `shares` [card, classes]: how frequent each class is among the frames of a code.
    """

    def __init__(self, card: int, dim: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("centroids", torch.zeros(card, dim))
        self.register_buffer("sums", torch.zeros(card, dim))
        self.register_buffer("usage", torch.zeros(card))
        self.register_buffer("shares", torch.full((card, classes), 1 / classes))

    def start(self, samples: Tensor, generator: np.random.Generator) -> None:
        """Begin with the means of samples [n, dim]."""
        means = torch.from_numpy(k_means(samples.numpy(), len(self.usage), generator))
        self.centroids.copy_(means)
        self.sums.copy_(means)
        self.usage.fill_(1.0)

    def codes(self, x: Tensor) -> Tensor:
        """Nearest centroids [...] of x [..., dim]."""
        return (self.centroids.square().sum(1) - 2 * x @ self.centroids.T).argmin(-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x quantized and the codes."""
        codes = self.codes(x.detach())
        return x + (self.centroids[codes] - x).detach(), codes

    def update(self, x: Tensor, codes: Tensor, generator: np.random.Generator) -> None:
        """Move the centroids towards samples [n, dim]; one that is hardly used moves to a random sample."""
        chosen = functional.one_hot(codes, len(self.usage)).to(x.dtype)
        self.usage.mul_(_DECAY).add_(chosen.sum(0), alpha=1 - _DECAY)
        self.sums.mul_(_DECAY).add_(chosen.T @ x, alpha=1 - _DECAY)
        unused = torch.nonzero(self.usage < 0.02)[:, 0]
        if len(unused):
            replacement = x[torch.from_numpy(generator.integers(len(x), size=len(unused)))]
            self.sums[unused] = replacement
            self.usage[unused] = 1.0
        self.centroids.copy_(self.sums / self.usage[:, None].clamp(min=1e-5))

    def count_classes(self, codes: Tensor, classes: Tensor) -> None:
        """Set the shares from the codes [n] of frames and their classes [n]."""
        counts = torch.zeros_like(self.shares)
        counts.index_put_((codes, classes), torch.ones(len(codes)), accumulate=True)
        # A code without frames has the shares of all of them.
        counts += 0.02 * counts.sum(0) / counts.sum().clamp(min=1) + 1e-4
        self.shares.copy_(counts / counts.sum(1, keepdim=True))

    def losses(self, x: Tensor, classes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of latents x [n, dim] by their distances to the centroids, which stay, and the nearest codes [n].

        Frames that are not judged count in the commitment only. The others are drawn to the likeliest code of their
        class, as far as that is likely.
        """
        distances = x.square().sum(-1, keepdim=True) - 2 * x @ self.centroids.T + self.centroids.square().sum(1)
        likely = (-distances / DISTANCE_SCALE).log_softmax(-1)
        probabilities = likely.exp() @ self.shares + 1e-8
        showing, present = classes >= FIRST_INTENT, (classes >= 0) & (classes < FIRST_INTENT)
        codes = distances.argmin(-1)
        wanted = codes.clone()
        judged = classes >= 0
        wanted[judged] = (likely.detach()[judged] + self.shares.log()[:, classes[judged]].T).argmax(-1)
        right = probabilities.gather(1, classes.clamp(min=0)[:, None])[:, 0].clamp(max=1)
        bounded = (1 - right**BOUNDED) / BOUNDED
        trust = torch.where(judged, right.detach().clamp(min=0.05), 1.0)
        return {
            "intent": bounded[showing].mean(),
            "presence": bounded[present].mean(),
            "commitment": ((x - self.centroids[wanted]).square().mean(-1) * trust).mean(),
        }, codes


class SemanticModel(nn.Module):
    """The encoder with the heads that supervise it."""

    def __init__(self, config: SpeakingConfig, labels: Labels) -> None:
        super().__init__()
        geometry = config.geometry().mimi
        self.codec = Encoder(geometry)
        self.codec.encoder.requires_grad_(False)
        self.book = Codebook(config.card, geometry.codebook_dim, FIRST_INTENT + len(labels.intents))
        self.phonemes = nn.Linear(geometry.dimension, len(labels.phonemes) + 1)
        self.words = nn.Linear(geometry.dimension, len(labels.words) + 1)
        self.classes = nn.Linear(geometry.codebook_dim, FIRST_INTENT + len(labels.intents))

    def split(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The halves of latents [..., 128]: semantic, acoustic."""
        half = latents.shape[-1] // 2
        return latents[..., :half], latents[..., half:]


def sorted_batches(examples: Sequence[Example], generator: np.random.Generator, size: int) -> list[Example]:
    """Return `size` examples of about one length; `examples` are sorted by length."""
    start = int(generator.integers(0, max(1, len(examples) - 4 * size)))
    near = examples[start : start + 4 * size]
    return [near[index] for index in generator.choice(len(near), min(size, len(near)), replace=False)]


def train_semantics(
    path: Path,
    model: SemanticModel,
    users: Sequence[Example],
    agents: Sequence[Example],
    spectra: FeatureSpectra,
    config: SpeakingConfig,
) -> None:
    """Train on users' examples, with a few of the agent's in every batch."""
    users = sorted(users, key=lambda example: len(example.features))
    agents = sorted(agents, key=lambda example: len(example.features))
    first, fixed = (int(share * config.semantic_steps) for share in (QUANTIZED_FROM, FIXED_FROM))

    def spoken(generator: np.random.Generator, size: int) -> list[Example]:
        chosen = sorted_batches(users, generator, size)
        return [stretched(each, generator) if generator.random() < STRETCHED else each for each in chosen]

    def batch(generator: np.random.Generator) -> list[Example]:
        if generator.random() >= FOLLOWED:
            return spoken(generator, BATCH)
        earlier, later = (spoken(generator, BATCH // 2) for _ in range(2))
        return [joined(*pair, generator) for pair in zip(earlier, later, strict=True)]

    def step(index: int, generator: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        if index == first:
            with torch.no_grad():
                samples = [_samples(model, sorted_batches(users, generator, 64)) for _ in range(24)]
            model.book.start(torch.cat(samples), generator)
        if index == fixed:
            count_classes(model, [users[number] for number in generator.permutation(len(users))[:CLASS_EXAMPLES]])
        stage = (index >= first) + (index >= fixed)
        losses, figures = user_losses(model, batch(generator), stage, spectra, generator)
        losses["acoustic"] = losses["acoustic"] + _agent_loss(model, sorted_batches(agents, generator, AGENTS))
        total = torch.stack([_WEIGHTS[name] * loss for name, loss in losses.items()]).sum()
        return total, {**{name: float(loss.detach()) for name, loss in losses.items()}, **figures}

    train(path, model, step, config.semantic_steps, rate=1.5e-3, seed=config.seed)


def stretched(example: Example, generator: np.random.Generator) -> Example:
    """The same utterance, spoken faster or slower; the speed also changes as it goes."""
    frames = example.end - example.begin
    length = max(2, round(frames / generator.uniform(*SPEEDS)))
    knots = max(2, frames // KNOT_FRAMES)
    speeds = np.exp(SPEED_CHANGE * generator.standard_normal(knots + 1))
    local = np.interp(np.linspace(0, knots, 2 * frames), np.arange(knots + 1), speeds)
    begun = np.concatenate([[0], np.cumsum(1 / local)])
    # In steps of 40 ms: where each step of the result was.
    within = np.interp(np.arange(2 * length), begun / begun[-1] * 2 * length, np.arange(2 * frames + 1))
    begin, end = 2 * example.begin, 2 * example.end
    places = np.concatenate([np.arange(begin), begin + within, np.arange(end, len(example.features))])
    low = np.minimum(places.astype(int), len(example.features) - 2)
    share = (places - low).astype(np.float32)[:, None]
    features = example.features[low] * (1 - share) + example.features[low + 1] * share
    heard = np.minimum(np.rint(places[::2] / 2).astype(int), len(example.content) - 1)
    intent = int(example.classes.max()) - FIRST_INTENT
    ends = example.begin + length
    return dataclasses.replace(
        example,
        features=features.astype(np.float16),
        content=example.content[heard],
        classes=classes_of(intent, example.begin, ends, len(features) // 2),
        end=ends,
        acoustic=example.acoustic[heard],
    )


def joined(earlier: Example, later: Example, generator: np.random.Generator) -> Example:
    """One utterance after another, in one example whose classes are those of both."""
    kept = earlier.end + int(generator.integers(SAID.stop, TAIL + 1))
    return Example(
        np.concatenate([earlier.features[: 2 * kept], later.features]),
        np.concatenate([earlier.content[:kept], later.content]),
        np.concatenate([earlier.classes[:kept], later.classes]),
        kept + later.begin,
        kept + later.end,
        [*earlier.words, *later.words],
        [*earlier.phonemes, *later.phonemes],
        np.concatenate([earlier.acoustic[:kept], later.acoustic]),
    )


def _stack(examples: Sequence[Example]) -> Tensor:
    """Features [N, S, dim], the shorter ones followed by their last step: silence."""
    longest = max(len(example.features) for example in examples)
    return torch.stack(
        [
            torch.from_numpy(
                np.pad(example.features, ((0, longest - len(example.features)), (0, 0)), mode="edge").astype(np.float32)
            )
            for example in examples
        ]
    )


def _latents(model: SemanticModel, examples: Sequence[Example]) -> Tensor:
    return model.codec.latents(_stack(examples))


def _classes(examples: Sequence[Example], length: int) -> Tensor:
    """Classes [N, length]; frames after an example are not judged."""
    classes = np.full((len(examples), length), UNJUDGED, np.int64)
    for row, example in enumerate(examples):
        classes[row, : len(example.classes)] = example.classes
    return torch.from_numpy(classes)


def _samples(model: SemanticModel, examples: Sequence[Example]) -> Tensor:
    """Semantic halves of latents: of all frames that show an intent, and of as many others."""
    semantic, _ = model.split(_latents(model, examples))
    classes = _classes(examples, semantic.shape[1])
    showing, others = semantic[classes >= FIRST_INTENT], semantic[classes < FIRST_INTENT]
    return torch.cat([showing, others[torch.randperm(len(others))[: len(showing)]]])


def count_classes(model: SemanticModel, examples: Sequence[Example]) -> None:
    """Count the classes of the codes of examples as they are."""
    was_training = model.training
    model.eval()
    codes, classes = [], []
    with torch.no_grad():
        for example in examples:
            semantic, _ = model.split(_latents(model, [example])[0])
            judged = example.classes >= 0
            codes.append(model.book.codes(semantic)[judged])
            classes.append(torch.from_numpy(example.classes[judged]))
    model.book.count_classes(torch.cat(codes), torch.cat(classes))
    model.train(was_training)


CONTINUOUS, QUANTIZED, FIXED = 0, 1, 2
"""Stages of the training: the intent is read from latents, from quantized ones, or from distances to fixed codes."""


def user_losses(
    model: SemanticModel,
    examples: Sequence[Example],
    stage: int,
    spectra: FeatureSpectra,
    generator: np.random.Generator,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Losses of a batch by name, and in which share of the frames that show the intent it was right."""
    features = _stack(examples)
    with reduced_precision():
        steps = model.codec.encoder_transformer(spectra.varied(features, generator) if model.training else features)
    steps = steps.float()
    latents = model.codec.downsample(steps.transpose(1, 2)).transpose(1, 2)
    semantic, acoustic = model.split(latents)
    classes = _classes(examples, semantic.shape[1])
    showing = classes >= FIRST_INTENT
    losses: dict[str, Tensor] = {}
    if stage == FIXED:
        losses, codes = model.book.losses(semantic.flatten(0, 1), classes.flatten())
        found = model.book.shares[codes.view(classes.shape)[showing]].argmax(-1)
    else:
        read = semantic
        if stage == QUANTIZED:
            read, codes = model.book(semantic)
            losses["commitment"] = (semantic - model.book.centroids[codes]).square().mean()
            if model.training:
                model.book.update(semantic.detach().flatten(0, 1), codes.flatten(), generator)
        logits = model.classes(read)
        losses["intent"] = functional.cross_entropy(logits[showing], classes[showing])
        losses["presence"] = functional.cross_entropy(logits[~showing], classes[~showing])
        found = logits[showing].argmax(-1)
    lengths = torch.tensor([len(example.features) for example in examples])
    losses["words"] = _ctc(model.words(steps), lengths, [example.words for example in examples])
    losses["phonemes"] = _ctc(model.phonemes(steps), lengths, [example.phonemes for example in examples])
    content = [
        functional.mse_loss(acoustic[row, : len(example.content), CONTENT], torch.from_numpy(example.content))
        for row, example in enumerate(examples)
    ]
    losses["acoustic"] = torch.stack(content).mean()
    return losses, {"right": float((found == classes[showing]).float().mean())}


def _agent_loss(model: SemanticModel, examples: Sequence[Example]) -> Tensor:
    """Error of the second half of latents of the agent's speech."""
    _, acoustic = model.split(_latents(model, examples))
    errors = []
    for row, example in enumerate(examples):
        target = torch.from_numpy(np.concatenate([example.content, example.acoustic], axis=1))
        errors.append(functional.mse_loss(acoustic[row, : len(target)], target))
    return torch.stack(errors).mean()


def _ctc(logits: Tensor, lengths: Tensor, labels: Sequence[Sequence[int]]) -> Tensor:
    targets = torch.tensor([label for row in labels for label in row])
    counts = torch.tensor([len(row) for row in labels])
    logs = logits.log_softmax(-1).transpose(0, 1)
    return functional.ctc_loss(logs, targets, lengths, counts, zero_infinity=True)


def place_silence(model: SemanticModel) -> None:
    """Exchange two centroids so that digital silence has the published constant's code."""
    with torch.no_grad():
        features = model.codec.encoder(torch.zeros(1, 1, 100 * FRAME_SIZE)).transpose(1, 2)
        found = int(model.book.codes(model.split(model.codec.latents(features))[0])[0, -1])
        wanted = int(silence_codes(len(model.book.usage))[0])
        for buffer in (model.book.centroids, model.book.sums, model.book.usage, model.book.shares):
            buffer[[found, wanted]] = buffer[[wanted, found]]


def encode(model: SemanticModel, speech: AgentSpeech, features: Floats) -> Codes:
    """All codes [F, 8] of features [2 F, dim]."""
    with torch.no_grad():
        latents = model.codec.latents(torch.from_numpy(features.astype(np.float32))[None])[0]
        semantic, acoustic = model.split(latents)
        first = model.book.codes(semantic).numpy()
    return np.concatenate([first[:, None], speech.quantizer.encode(acoustic.numpy().copy())], axis=1)


def shown_intent(model: SemanticModel, codes: Codes) -> int:
    """Number of the intent that codes [F] of codebook 0 show, which begin with the frame after a question."""
    with torch.no_grad():
        logs = model.book.shares[torch.from_numpy(codes[SAID])].log()
    return int(logs[:, FIRST_INTENT:].sum(0).argmax())


def agent_voices(speech: AgentSpeech) -> list[tuple[int, str]]:
    """Every sentence in three of its reader's voices, in turn: (index of the sentence, voice)."""
    chosen = []
    for voice_index, voice in enumerate(NAMES):
        for position, index in enumerate(speech.reader_of(voice)):
            if (position + voice_index) % 3 == 0:
                chosen.append((index, voice))
    return chosen
