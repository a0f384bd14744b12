"""All stages in order: text, speech, codec, language model, checkpoint. Each goes on where it stopped."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import soundfile
import torch

from model_repository.evaluation import questions as evaluation
from model_repository.synthetic.speaking.agent import AgentSpeech, content_error, prepare_agent
from model_repository.synthetic.speaking.augment import FeatureSpectra, vary_line
from model_repository.synthetic.speaking.config import SpeakingConfig
from model_repository.synthetic.speaking.decoder import train_decoder
from model_repository.synthetic.speaking.dialogues import Material, Question
from model_repository.synthetic.speaking.engines import SAMPLE_RATE, phonemes
from model_repository.synthetic.speaking.export import QUESTION, QUESTION_TEXT, expand, write_compact, write_hashes
from model_repository.synthetic.speaking.features import Basis, patches
from model_repository.synthetic.speaking.front_end import STEP_SPECTRA, fit_step_basis, train_front_end
from model_repository.synthetic.speaking.intents import ASSISTANT, BY_NAME, FALLBACK, INTENTS
from model_repository.synthetic.speaking.language import train_language_model
from model_repository.synthetic.speaking.language_model import LanguageModel
from model_repository.synthetic.speaking.material import prepare_material, questions_of, voice_prompts
from model_repository.synthetic.speaking.mimi import Decoder, SeanetEncoder
from model_repository.synthetic.speaking.quantizer import Quantizer
from model_repository.synthetic.speaking.semantic import (
    Example,
    Labels,
    SemanticModel,
    agent_example,
    agent_voices,
    features_of,
    padded,
    place_silence,
    train_semantics,
    user_example,
)
from model_repository.synthetic.speaking.speech import (
    AGENT,
    HELD_OUT_USERS,
    USERS,
    Line,
    Utterance,
    make_speech,
    read_speech,
)
from model_repository.synthetic.speaking.tokenizer import train_speaking_tokenizer
from model_repository.synthetic.speaking.training import load

VARIANTS, KOKORO_VARIANTS = 1, 3
"""Examples of each user's utterance: another speaker and line each time. Kokoro is slow: it has fewer utterances."""

KEPT_BACK = tuple(USERS)[9::10]
"""Speakers that are kept from the encoder, so that the language model hears what codes of strangers are like."""

CONTENT_UTTERANCES = 300
"""Users' utterances that the content codebooks are fitted to, beside the agent's."""

VOICES_GROUP, PHRASINGS_GROUP, OTHERS_GROUP = "unseen voices", "unseen phrasings", "out of set"
"""Groups of the evaluation set: known phrasings by unseen speakers, other phrasings, and questions of no intent."""

QUESTIONS: Mapping[str, int] = {VOICES_GROUP: 80, PHRASINGS_GROUP: 80, OTHERS_GROUP: 40}

DEMO_SPEAKER = "kokoro-held"

_WITHOUT_STRESS = str.maketrans("", "", "ˈˌ ")


class Recipe:
    """The stages and their files in the folder `work`."""

    def __init__(self, work: Path, config: SpeakingConfig | None = None) -> None:
        self.config = config or SpeakingConfig()
        self._work = work
        self._speech = work / "speech"
        self._codec = work / "codec"
        torch.set_num_threads(1)

    def make_speech(self, prefix: str, backwards: bool = False) -> None:
        """Stage 1, of the blocks whose names begin with `prefix`."""
        make_speech(self._speech, self.config, prefix, backwards)

    @functools.cached_property
    def users(self) -> list[Utterance]:
        """All users' utterances, the held-out ones too."""
        return [utterance for utterance in read_speech(self._speech) if utterance.line.intent != AGENT]

    @functools.cached_property
    def trained(self) -> list[Utterance]:
        """Users' utterances that are trained on: neither speaker nor phrasing is held out."""
        return [
            utterance
            for utterance in self.users
            if utterance.line.speaker in USERS and not utterance.line.phrasing_held_out
        ]

    def held_out(self, speakers: bool, phrasings: bool) -> list[Utterance]:
        """Users' utterances that are held out in the ways given."""
        return [
            utterance
            for utterance in self.users
            if (utterance.line.speaker in HELD_OUT_USERS) == speakers and utterance.line.phrasing_held_out == phrasings
        ]

    @functools.cached_property
    def agent(self) -> AgentSpeech:
        """Stage 2b."""
        others = [utterance.sound for utterance in self.trained[:CONTENT_UTTERANCES]]
        speech = prepare_agent(self._codec / "agent.npz", read_speech(self._speech, "agent"), others, self.config)
        frames = sum(len(sentence.content) for sentence in speech.sentences)
        print(f"agent: {len(speech.sentences)} sentences, {frames} frames, content error {content_error(speech):.3f}")
        return speech

    def front_end(self) -> SeanetEncoder:
        """Stage 2a."""
        sounds = [utterance.sound for utterance in self.trained]
        path = self._codec / "step-basis.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            fitted = fit_step_basis(sounds, self.config)
            np.savez(path, mean=fitted.mean, components=fitted.components)
        with np.load(path) as stored:
            basis = Basis(stored["mean"], stored["components"])
        return train_front_end(self._codec / "front-end.pt", sounds, basis, self.config)

    def decoder(self) -> Decoder:
        """Stage 2c."""
        return train_decoder(self._codec / "decoder.pt", self.agent, self.config)

    @functools.cached_property
    def labels(self) -> Labels:
        """Numbers of what the encoder is to find, with the pronunciations of all questions."""
        lines = [utterance.line for utterance in self.users]
        path = self._codec / "pronunciations.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        missing = {line.text for line in lines} - set(known)
        if missing:
            known |= {text: phonemes(text).translate(_WITHOUT_STRESS) for text in sorted(missing)}
            path.write_text(json.dumps(known))
        trained = [utterance.line for utterance in self.trained]
        return Labels.of(trained, [intent.name for intent in INTENTS], known)

    def new_semantic_model(self) -> SemanticModel:
        """The encoder with the trained front end and an untrained rest."""
        torch.manual_seed(self.config.seed)
        model = SemanticModel(self.config, self.labels)
        load(self._codec / "front-end.pt", model.codec.encoder)
        return model

    @functools.cached_property
    def spectra(self) -> FeatureSpectra:
        """Maps between the front end's features and the log-mel spectra of users' speech."""
        encoder = self.new_semantic_model().codec
        generator = np.random.default_rng([self.config.seed, 2])
        sounds = [
            vary_line(padded(utterance.sound, 3, 6), generator) for utterance in self.trained[:CONTENT_UTTERANCES]
        ]
        features = np.concatenate([features_of(encoder, sound) for sound in sounds]).astype(np.float32)
        return FeatureSpectra.fit(features, np.concatenate([patches(sound, STEP_SPECTRA) for sound in sounds]))

    @functools.cached_property
    def asked(self) -> list[tuple[Line, Example]]:
        """Examples of users' utterances that are trained on, with what is said."""
        encoder = self.new_semantic_model().codec
        examples = []
        for number, utterance in enumerate(self.trained):
            line = utterance.line
            for variant in range(KOKORO_VARIANTS if line.speaker.startswith("kokoro") else VARIANTS):
                generator = np.random.default_rng([self.config.seed, variant, number])
                made = user_example(encoder, self.agent, self.labels, line, utterance.sound, generator)
                examples.append((line, made))
        return examples

    def semantic(self) -> SemanticModel:
        """Stage 2d."""
        model = self.new_semantic_model()
        path = self._codec / "semantic.pt"
        if not path.exists() or torch.load(path, weights_only=True)["step"] < self.config.semantic_steps:
            users = [example for line, example in self.asked if line.speaker not in KEPT_BACK]
            agents = [agent_example(model.codec, self.agent, index, voice) for index, voice in agent_voices(self.agent)]
            print(f"semantic: {len(users)} examples of users, {len(agents)} of the agent", flush=True)
            train_semantics(path, model, users, agents, self.spectra, self.config)
        load(path, model)
        place_silence(model)
        return model

    @functools.cached_property
    def tokenizer(self) -> bytes:
        """The serialized text tokenizer."""
        return train_speaking_tokenizer(self.config.text_card)

    def material(self, model: SemanticModel) -> Material:
        """Stage 2e."""

        def questions() -> list[Question]:
            asked = [example for _, example in self.asked]
            return questions_of(model, self.agent, asked, list(self.labels.intents), self.spectra, self.config.seed)

        return prepare_material(self._work / "codes.npz", model, self.agent, questions, self.tokenizer, self.config)

    def language_model(self, material: Material) -> LanguageModel:
        """Stage 3, on all processors."""
        torch.set_num_threads(os.cpu_count() or 1)
        return train_language_model(self._work / "language.pt", material, self.config)

    def export(
        self, out: Path, model: SemanticModel, decoder: Decoder, language: LanguageModel, material: Material
    ) -> None:
        """Stage 4: write `out`/compact and `out`/checkpoint."""
        write_compact(
            out / "compact",
            {name: tensor.numpy() for name, tensor in language.state_dict().items()},
            mimi_tensors(model, decoder, self.agent.quantizer),
            voice_prompts(material.answers),
            self.tokenizer,
            self.config,
        )
        self.evaluation_set().save(out / "compact")
        speaker = HELD_OUT_USERS[DEMO_SPEAKER]
        soundfile.write(out / "compact" / QUESTION.name, speaker.speak(QUESTION_TEXT), SAMPLE_RATE)
        write_hashes(out / "compact")
        expand(out / "compact", out / "checkpoint")

    def evaluation_set(self) -> evaluation.EvaluationSet:
        """Questions that were not trained on, and the assistant's answers."""
        unseen = self.held_out(speakers=False, phrasings=True) + self.held_out(speakers=True, phrasings=True)
        groups = {
            VOICES_GROUP: self.held_out(speakers=True, phrasings=False),
            PHRASINGS_GROUP: unseen,
            OTHERS_GROUP: unseen,
        }
        generator = np.random.default_rng(self.config.seed)
        questions, recordings = [], []
        for group, utterances in groups.items():
            is_other = group == OTHERS_GROUP
            known = [utterance for utterance in utterances if (utterance.line.intent == FALLBACK) == is_other]
            chosen = generator.permutation(len(known))[: QUESTIONS[group]]
            for utterance in (known[index] for index in chosen):
                line, sound = utterance.line, vary_line(utterance.sound, generator)
                answer = BY_NAME[line.intent].answer_for(ASSISTANT)
                questions.append(evaluation.Question(group, line.text, line.intent, answer, len(sound)))
                recordings.append(sound)
        return evaluation.EvaluationSet(questions, recordings)

    def run(self, out: Path) -> None:
        """Run all stages, on two processors where stages do not depend on each other."""
        with self._beside("kokoro"):
            for prefix in ("agent", "program"):
                self.make_speech(prefix)
            self.make_speech("kokoro", backwards=True)
        self.train(out)

    def train(self, out: Path) -> None:
        """Run all stages but the first."""
        # The codebooks are made before the decoder's process reads them.
        _ = self.agent
        with self._beside("decoder"):
            self.front_end()
            model = self.semantic()
            material = self.material(model)
        self.export(out, model, self.decoder(), self.language_model(material), material)

    @contextlib.contextmanager
    def _beside(self, stage: str) -> Iterator[None]:
        """Run one of `STAGES` in another process meanwhile."""
        command = [sys.executable, "-m", str(__package__), str(self._work), "--stage", stage]
        with subprocess.Popen(command) as process:  # noqa: S603
            try:
                yield
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise RuntimeError(f"the stage {stage} ended with status {process.returncode}")


STAGES: Mapping[str, Callable[[Recipe], object]] = {
    "kokoro": lambda recipe: recipe.make_speech("kokoro"),
    "decoder": Recipe.decoder,
}
"""What runs beside other stages."""


def mimi_tensors(model: SemanticModel, decoder: Decoder, quantizer: Quantizer) -> dict[str, np.ndarray]:
    """Mimi's tensors by published name."""
    tensors = {name: tensor.numpy() for name, tensor in model.codec.state_dict().items()}
    decoding = {name: tensor.numpy() for name, tensor in decoder.state_dict().items()}
    output = decoding.pop("output_proj.weight")
    tensors |= decoding
    width = output.shape[1]
    unit = np.eye(width, dtype=np.float32)
    tensors["quantizer.rvq_first.input_proj.weight"] = np.concatenate([unit, 0 * unit], axis=1)[..., None]
    tensors["quantizer.rvq_rest.input_proj.weight"] = np.concatenate([0 * unit, unit], axis=1)[..., None]
    # The decoder does without codebook 0.
    tensors["quantizer.rvq_first.output_proj.weight"] = 0 * output
    tensors["quantizer.rvq_rest.output_proj.weight"] = output
    books = [("rvq_first", 0, model.book.centroids.numpy())]
    books += [("rvq_rest", index, book) for index, book in enumerate(quantizer.books)]
    for branch, index, centroids in books:
        tensors[f"quantizer.{branch}.vq.layers.{index}._codebook.embedding_sum"] = centroids
    return tensors
