"""`personaplex evaluate`: size, speed and quality of the variants of a checkpoint, as tables or JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from gateway.audio.decode import decode
from gateway.cli.console import CommandError, progress
from gateway.engine.backend import Floats
from gateway.errors import AudioError
from gateway.manifest import Manifest
from gateway.session.persona import DEFAULT_SYSTEM_PROMPT, prefix_of_preset, system_prompt
from gateway.session.recorded import split
from gateway.session.tokenizer import Tokenizer
from gateway.voices.registry import VoiceRegistry

if TYPE_CHECKING:
    from model_repository.evaluation.conversation import Prompt

SECONDS = 8.0
MAX_SECONDS = 600.0


def evaluate(
    models: Annotated[list[Path], typer.Argument(metavar="MODELS...", help="Built repositories to compare.")],
    against: Annotated[Path, typer.Option(help="Reference repository, usually fp32.")],
    audio: Annotated[
        Path | None,
        typer.Option(help="User recording. [default: synthetic speech, see --seed]", rich_help_panel="Conversation"),
    ] = None,
    voice: Annotated[
        str | None, typer.Option(help="Voice of the agent. [default: the first one]", rich_help_panel="Conversation")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text prompt of the agent.", rich_help_panel="Conversation")
    ] = None,
    columns: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Frames of 80 ms. [default: length of the recording; 100 for synthetic speech]",
            rich_help_panel="Conversation",
        ),
    ] = None,
    layers: Annotated[
        int,
        typer.Option(min=0, help="Number of frames at which every layer is compared.", rich_help_panel="Measurement"),
    ] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the synthetic speech.", rich_help_panel="Conversation")] = 0,
    slots: Annotated[
        int, typer.Option(min=1, help="Conversations to allocate memory for.", rich_help_panel="Measurement")
    ] = 1,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads per model; 0: as when served.", rich_help_panel="Measurement")
    ] = 0,
    questions: Annotated[
        int,
        typer.Option(
            min=0,
            help="Questions to ask of the checkpoint's evaluation set, if it has one.",
            rich_help_panel="Measurement",
        ),
    ] = 100,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the results as JSON; - prints them instead of the tables.")
    ] = None,
) -> None:
    """Compare builds of one checkpoint with a reference: size, speed, difference of the outputs, answers."""
    from gateway.cli.evaluation_tables import show
    from model_repository.errors import ModelRepositoryError
    from model_repository.evaluation.evaluate import evaluate as run
    from model_repository.evaluation.repository import Repository

    try:
        reference = Repository.open(against)
        others = [Repository.open(folder) for folder in models]
        manifest = Manifest.load(against)
        name = voice or next(iter(VoiceRegistry(manifest).available()), "")
        text = system_prompt(DEFAULT_SYSTEM_PROMPT) if prompt is None else prompt
        frames = _frames(manifest, audio, columns, seed)
        with progress("evaluating", total=1.0) as bar:
            report = run(
                others,
                reference,
                _prompt(manifest, name, text),
                frames,
                layers=layers,
                slots=slots,
                threads=threads,
                questions=questions,
                progress=bar,
            )
    except ModelRepositoryError as error:
        raise CommandError(str(error)) from None
    parameters = {"audio": str(audio) if audio else f"synthetic speech, seed {seed}", "voice": name, "prompt": text}
    stats = report.as_json()
    stats["parameters"] = {**parameters, **stats["parameters"]}
    _write(json_file, json.dumps(stats, indent=1))
    if str(json_file) != "-":
        show(report)


def _prompt(manifest: Manifest, voice: str, text: str) -> Prompt:
    from model_repository.evaluation.conversation import Prompt

    tokenizer = Tokenizer(manifest.tokenizer_path, manifest.text_card, manifest.text_padding_id)
    prefix = prefix_of_preset(VoiceRegistry(manifest).require(voice).preset, tokenizer.encode_prompt(text), manifest)
    return Prompt(prefix.embeddings, prefix.steps, prefix.fixed)


def _frames(manifest: Manifest, audio: Path | None, count: int | None, seed: int) -> Floats:
    """Return frames [count, 1920] float32 of the recording, padded with silence, or of synthetic speech."""
    from model_repository.evaluation.speech import synthetic_speech

    if audio is None:
        count = count or round(SECONDS * manifest.frame_rate)
        pcm = synthetic_speech(count / manifest.frame_rate, manifest.sample_rate, seed)
    else:
        try:
            pcm = decode(audio.read_bytes(), manifest.sample_rate, MAX_SECONDS)
        except OSError as error:
            raise CommandError(f"cannot read {audio}: {error.strerror}") from None
        except AudioError as error:
            raise CommandError(f"cannot use {audio}: {error.message}") from None
    frames = split(pcm, manifest.frame_size)
    if count is None:
        return frames
    missing = np.zeros((max(count - len(frames), 0), manifest.frame_size), np.float32)
    return np.concatenate([frames[:count], missing])


def _write(file: Path | None, text: str) -> None:
    if file is None:
        return
    if str(file) == "-":
        print(text)
        return
    try:
        file.write_text(text + "\n")
    except OSError as error:
        raise CommandError(f"cannot write {file}: {error.strerror}") from None
