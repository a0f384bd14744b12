"""`personaplex voice add|list|remove`: voice presets of a built repository. A running server sees changes at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from gateway.cli.build import explained
from gateway.cli.console import CommandError, print_status, progress
from gateway.engine.backend import Floats, Tokens
from gateway.errors import AudioError, RepositoryError
from gateway.manifest import Manifest
from gateway.voices.registry import VoiceRegistry
from gateway.voices.store import VoiceStore

if TYPE_CHECKING:
    from gateway.voices.preset import VoicePreset

MAX_RECORDING_BYTES = 2**28

app = typer.Typer(rich_markup_mode="markdown")

Models = Annotated[Path, typer.Argument(help="Folder written by `personaplex build`.")]
Name = Annotated[str, typer.Argument(help="Name of the voice in requests.")]


@app.command()
def add(
    models: Models,
    name: Name,
    recording: Annotated[
        Path,
        typer.Argument(help="Recording of one speaker, 3 to 30 s, as WAV, FLAC, Ogg or MP3; or a voice file."),
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing voice of that name.")] = False,
) -> None:
    """Add a voice preset. A running server offers it at once.

    Published voice files are NAME.pt, .safetensors, .bin, .embeddings.bin (with .cache.json) and voices.tgz. A voice
    made from a recording gives the same answers as a request that carries the recording.
    """
    manifest = Manifest.load(models)
    store = VoiceStore(VoiceRegistry(manifest))
    store.check_free(name, force)
    preset, source = _preset(recording, name, manifest, models)
    store.add(name, preset, source, force)
    print_status(f"{name}: {_seconds(preset.frames, manifest):.1f} s of voice from a {source}, added to {models}")


@app.command("list")
def list_(models: Models, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the voices with their length and origin."""
    manifest = Manifest.load(models)
    registry = VoiceRegistry(manifest)
    voices, broken = registry.available().values(), registry.broken()
    if as_json:
        listed = [
            {
                "name": voice.name,
                "seconds": _seconds(voice.frames, manifest),
                "frames": voice.frames,
                "origin": voice.origin,
                "source": voice.source or None,
            }
            for voice in voices
        ]
        print(json.dumps({"voices": listed, "broken": [{"name": one.name, "problem": one.problem} for one in broken]}))
        return
    width = max((len(voice.name) for voice in voices), default=0)
    for voice in voices:
        origin = f"{voice.origin}, from a {voice.source}" if voice.source else voice.origin
        print(f"{voice.name:{width}}  {_seconds(voice.frames, manifest):5.1f} s  {origin}")
    for one in broken:
        print_status(f"invalid: {one.problem}")


@app.command()
def remove(
    models: Models,
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Remove a built-in voice too.")] = False,
) -> None:
    """Remove a voice. Running conversations keep it."""
    VoiceStore(VoiceRegistry(Manifest.load(models))).remove(name, force)
    print_status(f"{name}: removed from {models}")


def _preset(recording: Path, name: str, manifest: Manifest, models: Path) -> tuple[VoicePreset, str]:
    """Read or encode the file; return the voice and the kind of file. Raises CommandError."""
    if not recording.is_file():
        raise CommandError(f"{recording}: no such file")
    # Imported here because the other commands do not need it and it takes long.
    from model_repository.checkpoint.voices.voice_file import is_voice_file

    if is_voice_file(recording):
        return _published(recording, name, manifest), "voice file"
    return _recorded(recording, manifest, models), "recording"


def _published(file: Path, name: str, manifest: Manifest) -> VoicePreset:
    from gateway.voices.preset import VoicePreset, read
    from model_repository.checkpoint.voices.voice_file import read_voice

    if file.suffix == ".safetensors":
        try:
            # A file of another built repository.
            return read(file, manifest)[0]
        except RepositoryError:
            pass
    try:
        with explained():
            voice = read_voice(file, manifest, name)
    except CommandError as error:
        raise CommandError(error.message if str(file) in error.message else f"{file}: {error.message}") from None
    return VoicePreset(voice.embeddings, voice.columns)


def _recorded(recording: Path, manifest: Manifest, models: Path) -> VoicePreset:
    from gateway.session.persona import preset_of_codes
    from gateway.session.recorded import split
    from gateway.voices.recording import preset_recording

    try:
        if (size := recording.stat().st_size) > MAX_RECORDING_BYTES:
            raise CommandError(f"{recording}: {size} bytes exceed the limit of {MAX_RECORDING_BYTES}")
        pcm = preset_recording(recording.read_bytes(), manifest.sample_rate)
    except AudioError as error:
        raise CommandError(f"{recording}: {error.message}") from None
    except OSError as error:
        raise CommandError(f"{recording}: {error.strerror}") from None
    return preset_of_codes(_encode(models, split(pcm, manifest.frame_size)), manifest)


def _encode(models: Path, frames: Floats) -> Tokens:
    """Encode frames [N, 1920] float32 to codes [N, 8] int64 with the repository's mimi_encoder."""
    from model_repository.serving.mimi import MimiModel
    from model_repository.serving.row_request import run_one

    graph = models / "triton" / "mimi_encoder" / "1" / "model.onnx"
    if not graph.is_file():
        raise CommandError(f"{models} is incomplete: {graph.relative_to(models)} is missing")
    try:
        encoder = MimiModel(graph, slots=1)
    except Exception as error:  # ONNX Runtime's error classes have no common base but Exception
        raise CommandError(f"{graph} cannot be loaded: {error}") from None
    encoder.slots.begin(0)
    codes = []
    with progress("encoding", total=len(frames)) as report:
        for index, frame in enumerate(frames):
            codes.append(run_one(encoder, 0, {"pcm": frame})["codes"])
            report(None, index + 1)
    return np.stack(codes)


def _seconds(frames: int, manifest: Manifest) -> float:
    return frames / manifest.frame_rate
