"""`personaplex respond`: send a recording and write the agent's response."""

from __future__ import annotations

import base64
import json
import logging
import math
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from gateway.cli.console import CommandError, Seconds, print_status, progress
from gateway.cli.serve import WAIT_EMBEDDED_S, private_settings
from gateway.client import Answer, Client

DEFAULT_SERVER = "http://127.0.0.1:8998"
STDIO = Path("-")
WAV_HEADER_BYTES = 44


def respond(
    input: Annotated[Path, typer.Option("--input", "-i", help="Recording to send; - for stdin.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="WAV file to write; - for stdout, which is also the default if stdout is not a terminal.",
            rich_help_panel="Output",
        ),
    ] = None,
    voice: Annotated[str | None, typer.Option(help="Name of a voice preset.", rich_help_panel="Agent")] = None,
    voice_audio: Annotated[
        Path | None, typer.Option(help="Recording of the voice to use.", rich_help_panel="Agent")
    ] = None,
    system_prompt: Annotated[str | None, typer.Option(help="Name of a prompt preset.", rich_help_panel="Agent")] = None,
    text_prompt: Annotated[str | None, typer.Option(help="Text prompt of the agent.", rich_help_panel="Agent")] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Frames of 80 ms to generate.", rich_help_panel="Agent")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Write the audio while it is computed.", rich_help_panel="Output")
    ] = False,
    transcript: Annotated[
        bool, typer.Option("--transcript", help="Print the transcript of the answer.", rich_help_panel="Output")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON response.", rich_help_panel="Output")] = False,
    audio_temp: Annotated[
        float | None, typer.Option(help="Temperature of the audio tokens.", rich_help_panel="Sampling")
    ] = None,
    audio_top_k: Annotated[
        int | None, typer.Option(help="Sample from the k most likely audio tokens.", rich_help_panel="Sampling")
    ] = None,
    text_temp: Annotated[
        float | None, typer.Option(help="Temperature of the text tokens.", rich_help_panel="Sampling")
    ] = None,
    text_top_k: Annotated[
        int | None, typer.Option(help="Sample from the k most likely text tokens.", rich_help_panel="Sampling")
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Always take the most likely token.", rich_help_panel="Sampling")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.", rich_help_panel="Sampling")] = None,
    include_tokens: Annotated[
        bool, typer.Option("--include-tokens", help="Include the tokens; needs --json.", rich_help_panel="Output")
    ] = False,
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help=f"Server to use. [default: {DEFAULT_SERVER}]", rich_help_panel="Server"),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", envvar="PERSONAPLEX_API_KEY", help="API key for that server.", rich_help_panel="Server"
        ),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            help="Start a server for this built repository, and stop it afterwards.", rich_help_panel="Server"
        ),
    ] = None,
) -> None:
    """Send a recording and write the agent's audio response."""
    _check(output, stream, transcript, as_json, include_tokens, server, models)
    audio = _read(input)
    values: dict[str, Any] = {
        "voice_audio": None if voice_audio is None else _read(voice_audio),
        "voice": voice,
        "system_prompt": system_prompt,
        "text_prompt": text_prompt,
        "max_steps": max_steps,
        "audio_temperature": audio_temp,
        "audio_top_k": audio_top_k,
        "text_temperature": text_temp,
        "text_top_k": text_top_k,
        "greedy": greedy or None,
        "seed": seed,
        "include": ["tokens"] if include_tokens else None,
    }
    params: Any = {name: value for name, value in values.items() if value is not None}
    with _connect(server, models, api_key) as client:
        if as_json or transcript:
            with progress("answering"):
                answer = client.respond(audio, **params)
            _print(answer, output, as_json)
        elif stream:
            with _destination(output) as sink:
                _copy(_with_progress(client.stream(audio, **params)), sink)
        else:
            wav = with_sizes(b"".join(_with_progress(client.stream(audio, **params))))
            with _destination(output) as sink:
                sink.write(wav)


def with_sizes(wav: bytes) -> bytes:
    """Return a streamed WAV (44-byte header without a length) with the true sizes in its header."""
    sizes = sized_header(wav[:WAV_HEADER_BYTES], len(wav) - WAV_HEADER_BYTES)
    return sizes + wav[WAV_HEADER_BYTES:]


def sized_header(header: bytes, data_bytes: int) -> bytes:
    """Return the 44-byte header with the sizes for `data_bytes` bytes of samples."""
    return b"".join(
        [header[:4], struct.pack("<I", WAV_HEADER_BYTES - 8 + data_bytes), header[8:40], struct.pack("<I", data_bytes)]
    )


def _check(
    output: Path | None,
    stream: bool,
    transcript: bool,
    as_json: bool,
    include_tokens: bool,
    server: str | None,
    models: Path | None,
) -> None:
    """Check that the options can be combined and the output can be written. Raises CommandError."""
    if server is not None and models is not None:
        raise CommandError("--server and --models: expected one of them, got both")
    if stream and (as_json or transcript):
        raise CommandError("--stream cannot be combined with --json or --transcript")
    if include_tokens and not as_json:
        raise CommandError("--include-tokens needs --json")
    if output == STDIO and (as_json or transcript):
        raise CommandError("--output - and --json or --transcript would both write to stdout")
    if output is None and not (as_json or transcript) and sys.stdout.isatty():
        raise CommandError("expected --output FILE, --transcript or --json: audio is not written to a terminal")
    if output not in (None, STDIO) and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise CommandError(f"--output: cannot write {output}: not a file in a folder that exists")


def _read(path: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == STDIO else path.read_bytes()
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from None


@contextmanager
def _connect(server: str | None, models: Path | None, api_key: str | None) -> Iterator[Client]:
    """Yield a client of `server`, or of a server that runs for this command only."""
    with ExitStack() as stack:
        if models is None:
            yield stack.enter_context(Client(server or DEFAULT_SERVER, api_key=api_key))
            return
        from gateway.cli.service import Service

        logging.basicConfig(level=logging.ERROR)
        service = Service(private_settings(models, allow_voice_audio=True), wait=WAIT_EMBEDDED_S)
        with progress("starting Triton and the gateway"):
            service.start()
        # There is no other client to wait for.
        stack.callback(service.stop, now=True)
        yield stack.enter_context(Client(service.url))


def _print(answer: Answer, output: Path | None, as_json: bool) -> None:
    """Print the answer as the API has it, or its transcript; audio that is written to a file is not printed."""
    fields = {name: value for name, value in asdict(answer).items() if value is not None}
    fields["audio"] = base64.b64encode(answer.audio).decode()
    if output is not None:
        with _destination(output) as sink:
            sink.write(answer.audio)
        del fields["audio"]
    print(json.dumps(fields, ensure_ascii=False) if as_json else answer.transcript)


@contextmanager
def _destination(output: Path | None) -> Iterator[IO[bytes]]:
    """Yield the file or stdout. Raises CommandError if the file cannot be written."""
    if output is None or output == STDIO:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        with output.open("wb") as sink:
            yield sink
    except OSError as error:
        raise CommandError(f"cannot write {output}: {error.strerror}") from None
    if sys.stderr.isatty():
        print_status(f"wrote {output}")


def _copy(pieces: Iterator[bytes], sink: IO[bytes]) -> None:
    """Write each piece at once. If the sink is a file, write the true sizes into its header at the end."""
    header = b""
    total = 0
    try:
        for piece in pieces:
            header = (header + piece)[:WAV_HEADER_BYTES] if len(header) < WAV_HEADER_BYTES else header
            total += len(piece)
            sink.write(piece)
            sink.flush()
    finally:
        # Also after an error: the audio received so far is a valid WAV.
        if sink.seekable() and len(header) == WAV_HEADER_BYTES:
            sink.seek(0)
            sink.write(sized_header(header, total - WAV_HEADER_BYTES))
            sink.seek(0, 2)


def _with_progress(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the pieces; show the seconds of audio received so far on a terminal."""
    rate = math.inf
    received = 0
    with progress("answering", column=Seconds()) as report:
        for piece in pieces:
            if not received and len(piece) >= WAV_HEADER_BYTES:
                rate = struct.unpack_from("<I", piece, 28)[0]
            received += len(piece)
            report(None, max(0, received - WAV_HEADER_BYTES) / rate)
            yield piece
