"""`personaplex voice add`, `list` and `remove`: the preset voices of a built repository, also of one being served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from gateway.cli.build import explained
from gateway.cli.console import CommandError, progress, say
from gateway.engine.backend import Floats, Tokens
from gateway.errors import AudioError, RepositoryError
from gateway.manifest import Manifest
from gateway.voices import store as shelf

if TYPE_CHECKING:
    from gateway.voices.preset import VoicePreset

MAX_CLIP_BYTES = 2**28

app = typer.Typer(rich_markup_mode=None)

Models = Annotated[Path, typer.Argument(help="Folder written by `personaplex build`.")]
Name = Annotated[str, typer.Argument(help="What requests call the voice.")]


@app.command()
def add(
    models: Models,
    name: Name,
    clip: Annotated[
        Path,
        typer.Argument(help="3 to 30 s of one person speaking, as WAV, FLAC, Ogg or MP3; or a published voice's file."),
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace the voice of that name.")] = False,
) -> None:
    """Make a preset voice, once; a server that runs offers it from then on.

    Of a voice's published forms NAME.pt, .safetensors, .bin, .embeddings.bin with its .cache.json and voices.tgz are
    read. A voice made from a clip answers as if the clip were sent with the request.
    """
    manifest = Manifest.load(models)
    shelf.check_free(manifest.voices, name, force)
    preset, source = _preset(clip, name, manifest, models)
    shelf.add(manifest.voices, name, preset, source, force)
    say(f"{name}: {_seconds(preset.frames, manifest):.1f} s of voice from a {source}, added to {models}")


@app.command("list")
def list_(models: Models, as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Show the voices: how long they are, and whether they were built in or added."""
    manifest = Manifest.load(models)
    voices, broken = manifest.voices.now().values(), manifest.voices.broken()
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
        say(f"cannot be used: {one.problem}")


@app.command()
def remove(
    models: Models,
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Also a voice that was built in.")] = False,
) -> None:
    """Take a voice out; calls that have begun with it go on."""
    shelf.remove(Manifest.load(models).voices, name, force)
    say(f"{name}: removed from {models}")


def _preset(clip: Path, name: str, manifest: Manifest, models: Path) -> tuple[VoicePreset, str]:
    """The voice in the file, and what kind of file that is. Raises CommandError."""
    if not clip.is_file():
        raise CommandError(f"{clip}: no such file")
    # Reading and encoding voices needs the models' side; the other commands do not wait for its import.
    from model_repository.checkpoint.voice_file import is_voice_file

    if is_voice_file(clip):
        return _published(clip, name, manifest), "voice file"
    return _recorded(clip, manifest, models), "clip"


def _published(file: Path, name: str, manifest: Manifest) -> VoicePreset:
    from gateway.voices.preset import VoicePreset, read
    from model_repository.checkpoint.voice_file import read_voice

    if file.suffix == ".safetensors":
        try:
            # Another repository's, perhaps one that was taken from a clip.
            return read(file, manifest)[0]
        except RepositoryError:
            pass
    try:
        with explained():
            voice = read_voice(file, manifest, name)
    except CommandError as error:
        raise CommandError(error.message if str(file) in error.message else f"{file}: {error.message}") from None
    return VoicePreset(voice.embeddings, voice.columns)


def _recorded(clip: Path, manifest: Manifest, models: Path) -> VoicePreset:
    from gateway.session.persona import preset_of_codes
    from gateway.session.recorded import split
    from gateway.voices.recording import lasting_voice

    try:
        if (size := clip.stat().st_size) > MAX_CLIP_BYTES:
            raise CommandError(f"{clip}: {size} bytes are more than a clip takes ({MAX_CLIP_BYTES})")
        pcm = lasting_voice(clip.read_bytes(), manifest.sample_rate)
    except AudioError as error:
        raise CommandError(f"{clip}: {error.message}") from None
    except OSError as error:
        raise CommandError(f"{clip}: {error.strerror}") from None
    return preset_of_codes(_encode(models, split(pcm, manifest.frame_size)), manifest)


def _encode(models: Path, frames: Floats) -> Tokens:
    """frames [N, 1920] -> codes [N, 8], by the repository's own encoder, as the server would."""
    from model_repository.serving.mimi import MimiModel
    from model_repository.serving.turns import Turn

    graph = models / "triton" / "mimi_encoder" / "1" / "model.onnx"
    if not graph.is_file():
        raise CommandError(f"{models} is incomplete: {graph.relative_to(models)} is missing")
    try:
        encoder = MimiModel(graph, slots=1)
    except Exception as error:  # ONNX Runtime's own errors have no base but this
        raise CommandError(f"{graph} cannot be loaded: {error}") from None
    codes = []
    with progress("encoding", total=len(frames)) as report:
        for index, frame in enumerate(frames):
            outcome = encoder.run([Turn(0, index == 0, {"pcm": frame})])
            codes.append(outcome.outputs[0]["codes"])
            report(None, index + 1)
    return np.stack(codes)


def _seconds(frames: int, manifest: Manifest) -> float:
    return frames / manifest.frame_rate
