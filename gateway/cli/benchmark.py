"""Send the samples of a public benchmark to a server, and write the agent's audio as its evaluator reads it.

Benchmarks expect the agent's channel alone, mono, on the clock of the input and as long as the input.
"""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from gateway.audio.wav import pcm16
from gateway.cli.console import CommandError
from gateway.client import AgentAudio, AsyncClient, AsyncConversation, ClientError, Ended, LiveParams, RespondParams

Floats = npt.NDArray[np.float32]

SAMPLE_RATE = 24_000
FRAME = 1920
FRAME_SECONDS = FRAME / SAMPLE_RATE
SHIFT_MS = 80
"""A live listener hears the answer to a frame one frame later."""

CONVERSATION_PROMPT = "You enjoy having a good conversation."
"""The prompt of NVIDIA's published figures, but for tasks with interruptions."""

FULL_WAIT_S = 600.0
"""How long a sample waits while every slot of the server is taken."""


class Mode(StrEnum):
    """How a sample is sent: `respond` as a recording, as fast as the server computes; `converse` in real time."""

    RESPOND = "respond"
    CONVERSE = "converse"


@dataclass(frozen=True)
class Sample:
    """One input of the benchmark. name: in the description of the run. output: a WAV or FLAC file.

    prompt: the one that goes with published figures.
    """

    name: str
    input: Path
    output: Path
    task: str
    prompt: str


@dataclass(frozen=True)
class Options:
    """How to run the samples. prompt: None for the one of the task. rate: of the outputs, in Hz. jobs: at once."""

    server: str
    api_key: str | None = None
    mode: Mode = Mode.RESPOND
    voice: str | None = None
    prompt: str | None = None
    seed: int = 42424242
    rate: int = SAMPLE_RATE
    shift: bool = False
    jobs: int = 4


@dataclass(frozen=True)
class SampleResult:
    """What was written for a sample. rms: of the output. transcript: the agent's own text."""

    seconds: float
    rms: float
    task: str
    prompt: str
    transcript: str


def is_done(sample: Sample, rate: int) -> bool:
    """Whether the sample has an output at this rate, as long as its input."""
    try:
        written = soundfile.info(sample.output)
        given = soundfile.info(sample.input)
    except (OSError, soundfile.LibsndfileError):
        return False
    return bool(written.samplerate == rate and written.frames == _length(given.frames, given.samplerate, rate))


async def run_samples(
    samples: Sequence[Sample], options: Options, done: Callable[[Sample, SampleResult | None, str], None]
) -> None:
    """Run the samples, `options.jobs` at once. `done` receives each with its result, or None and the reason."""
    waiting = asyncio.Semaphore(options.jobs)
    async with AsyncClient(options.server, api_key=options.api_key, wait_when_full=FULL_WAIT_S) as client:

        async def run(sample: Sample) -> None:
            async with waiting:
                try:
                    result = await _run(sample, options, client)
                except (ClientError, CommandError) as error:
                    done(sample, None, error.message)
                else:
                    done(sample, result, "")

        async with asyncio.TaskGroup() as group:
            for sample in samples:
                group.create_task(run(sample))


async def _run(sample: Sample, options: Options, client: AsyncClient) -> SampleResult:
    pcm, frames_in, rate_in = await asyncio.to_thread(_read, sample.input)
    prompt = sample.prompt if options.prompt is None else options.prompt
    send = _respond if options.mode is Mode.RESPOND else _converse
    answer, transcript = await send(pcm, prompt, options, client)
    output = await asyncio.to_thread(_write, sample.output, answer, _length(frames_in, rate_in, options.rate), options)
    return SampleResult(
        seconds=round(frames_in / rate_in, 4),
        rms=round(float(np.sqrt(np.mean(np.square(output)))), 6) if output.size else 0.0,
        task=sample.task,
        prompt=prompt,
        transcript=transcript,
    )


def _length(frames: int, rate_in: int, rate_out: int) -> int:
    return round(frames * rate_out / rate_in)


def _read(path: Path) -> tuple[Floats, int, int]:
    """Samples [N, 1920] at 24 kHz, mono, the last frame padded with zeros; length and rate of the file."""
    try:
        sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise CommandError(f"cannot read {path}: {error}") from None
    if not len(sound):
        raise CommandError(f"{path} has no samples")
    mono = sound.mean(axis=1)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    padded = np.pad(mono, (0, -len(mono) % FRAME))
    return padded.reshape(-1, FRAME).astype(np.float32), len(sound), int(rate)


def _write(path: Path, answer: Floats, length: int, options: Options) -> Floats:
    """Write `length` samples of the answer, which is at 24 kHz, as mono PCM_16; the file appears when it is whole."""
    if options.shift:
        answer = np.concatenate([np.zeros(FRAME, np.float32), answer])
    if options.rate != SAMPLE_RATE:
        answer = soxr.resample(answer, SAMPLE_RATE, options.rate, quality="HQ")
    answer = np.pad(answer[:length], (0, max(0, length - len(answer))))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            # Integers, so that what the server sent is written as it is.
            samples = np.rint(answer * 32768).clip(-32768, 32767).astype(np.int16)
            soundfile.write(part, samples, options.rate, "PCM_16", format=path.suffix[1:])
        Path(part.name).chmod(0o644)
        Path(part.name).replace(path)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from None
    return answer


async def _respond(pcm: Floats, prompt: str, options: Options, client: AsyncClient) -> tuple[Floats, str]:
    """The answer to a recording [N, 1920]: N frames."""
    recording = io.BytesIO()
    soundfile.write(recording, pcm.reshape(-1), SAMPLE_RATE, "FLOAT", format="WAV")
    params: RespondParams = {"text_prompt": prompt, "seed": options.seed, "max_steps": len(pcm)}
    if options.voice is not None:
        params["voice"] = options.voice
    answer = await client.respond(recording.getvalue(), **params)
    sound, _ = soundfile.read(io.BytesIO(answer.audio), dtype="float32")
    return sound, answer.transcript


async def _converse(pcm: Floats, prompt: str, options: Options, client: AsyncClient) -> tuple[Floats, str]:
    """The answer of a live conversation in real time: N frames."""
    params: LiveParams = {"text_prompt": prompt, "seed": options.seed, "on_gap": "wait"}
    if options.voice is not None:
        params["voice"] = options.voice
    received: list[Floats] = []
    async with client.converse(audio_format="pcm_f32le", sample_rate=SAMPLE_RATE, **params) as conversation:
        sending = asyncio.create_task(_send(conversation, pcm))
        try:
            async for event in conversation:
                if isinstance(event, AgentAudio):
                    # As `POST /v1/respond` encodes it.
                    samples = np.frombuffer(pcm16(event.pcm), "<i2")
                    received.append(samples.astype(np.float32) / np.float32(32768))
                elif isinstance(event, Ended):
                    if event.reason != "completed" or event.dropped_frames:
                        raise ClientError(f"the conversation was not whole: {event}")
                    return np.concatenate(received[: len(pcm)]), event.transcript
        finally:
            sending.cancel()
    raise ClientError("the conversation did not end")


async def _send(conversation: AsyncConversation, pcm: Floats) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    for index, frame in enumerate(pcm):
        await asyncio.sleep(max(0.0, began + index * FRAME_SECONDS - loop.time()))
        await conversation.send(frame)
    await conversation.end()


def run_file(folder: Path, benchmark: str) -> Path:
    """Where the description of a run is kept: beside the folder, because evaluators walk through the folder."""
    return folder.resolve().with_name(f"{folder.resolve().name}.{benchmark}_run.json")


def record(path: Path, options: Options, results: dict[str, SampleResult], project_version: str) -> None:
    """Write, or extend, the description of the run."""
    try:
        files = json.loads(path.read_text())["files"] if path.exists() else {}
    except (OSError, ValueError, KeyError):
        files = {}
    files |= {name: asdict(result) for name, result in results.items()}
    described = {name: value for name, value in asdict(options).items() if name not in ("api_key", "jobs", "prompt")}
    content = {"personaplex_triton": project_version, **described, "files": dict(sorted(files.items()))}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
