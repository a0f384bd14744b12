from __future__ import annotations

import base64
import io
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Unpack

import pytest
import soundfile

from gateway.cli import respond as respond_module
from gateway.cli.service import Service
from gateway.client import Answer, Client, ClientError, RespondParams
from tests.gateway.cli.conftest import COMMAND, ROOT, Outcome

Run = Callable[..., Outcome]

FRAME_BYTES = 2 * 1920


@pytest.fixture
def ask(personaplex: Run, service: Service, question: Path) -> Run:
    """Run `personaplex respond` with a recording, ten frames and a seed, against the running service."""
    common = ["--server", service.url, "--input", question, "--max-steps", 10, "--seed", 5]
    return lambda *arguments: personaplex("respond", *common, *arguments)


def test_the_response_is_written_to_the_output_file_only(ask: Run, tmp_path: Path) -> None:
    outcome = ask("--output", tmp_path / "a.wav")
    assert outcome == Outcome(0, "", "")
    info = soundfile.info(tmp_path / "a.wav")
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (24000, 1, 10 * 1920, "PCM_16")


def test_a_streamed_response_gives_the_same_file(ask: Run, tmp_path: Path) -> None:
    ask("--output", tmp_path / "whole.wav")
    assert ask("--output", tmp_path / "streamed.wav", "--stream") == Outcome(0, "", "")
    assert (tmp_path / "streamed.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()


@pytest.mark.parametrize("arguments", [[], ["--output", "-"], ["--stream"]])
def test_piped_the_result_is_the_wav_and_nothing_else(service: Service, question: Path, arguments: list[str]) -> None:
    command = [*COMMAND, "respond", "--server", service.url, "--input", str(question), "--max-steps", "10"]
    done = subprocess.run([*command, *arguments], capture_output=True, cwd=ROOT, check=True)
    assert done.stderr == b""
    assert done.stdout[:4] == b"RIFF"
    assert len(done.stdout) == 44 + 10 * FRAME_BYTES


def test_the_recording_can_come_from_stdin(service: Service, question: Path) -> None:
    command = [*COMMAND, "respond", "--server", service.url, "--input", "-", "--max-steps", "3"]
    done = subprocess.run(command, input=question.read_bytes(), capture_output=True, cwd=ROOT, check=True)
    assert len(done.stdout) == 44 + 3 * FRAME_BYTES


def test_json_equals_the_apis_response(ask: Run) -> None:
    answer = json.loads(ask("--json").out)
    assert (answer["frames"], answer["seed"], answer["sample_rate"]) == (10, 5, 24000)
    assert {"setup_ms", "time_to_first_audio_ms", "stages", "rtf"} <= answer["timings"].keys()
    assert soundfile.info(io.BytesIO(base64.b64decode(answer["audio"]))).frames == 10 * 1920
    assert "text_tokens" not in answer


def test_json_with_an_output_file_leaves_the_audio_there(ask: Run, tmp_path: Path) -> None:
    answer = json.loads(ask("--json", "--output", tmp_path / "a.wav").out)
    assert "audio" not in answer
    assert soundfile.info(tmp_path / "a.wav").frames == 10 * 1920


def test_tokens_are_included_on_request(ask: Run) -> None:
    answer = json.loads(ask("--json", "--include-tokens").out)
    assert len(answer["text_tokens"]) == 10
    assert {len(codes) for codes in answer["agent_codes"] + answer["user_codes"]} == {8}


def test_transcript_prints_the_transcript(ask: Run, tmp_path: Path) -> None:
    transcript = json.loads(ask("--json").out)["transcript"]
    assert ask("--transcript", "--output", tmp_path / "a.wav").out == f"{transcript}\n"
    assert soundfile.info(tmp_path / "a.wav").frames == 10 * 1920


def test_every_option_reaches_the_server(personaplex: Run, question: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, object] = {}

    def respond(_: Client, audio: bytes, **params: Unpack[RespondParams]) -> Answer:
        sent.update(params, audio=audio)
        return Answer(b"RIFF", "", 1, 24_000, "NATM1", 9, {})

    monkeypatch.setattr(Client, "respond", respond)
    options = "--voice NATM1 --text-prompt Hello --max-steps 3 --audio-temp 0.5 --audio-top-k 10 --text-temp 0.25"
    more = f"--text-top-k 7 --greedy --seed 9 --json --include-tokens --voice-audio {question} --system-prompt teacher"
    assert personaplex("respond", "-i", question, *options.split(), *more.split()).code == 0
    assert sent == {
        "audio": question.read_bytes(),
        "voice_audio": question.read_bytes(),
        "voice": "NATM1",
        "text_prompt": "Hello",
        "system_prompt": "teacher",
        "max_steps": 3,
        "audio_temperature": 0.5,
        "audio_top_k": 10,
        "text_temperature": 0.25,
        "text_top_k": 7,
        "greedy": True,
        "seed": 9,
        "include": ["tokens"],
    }


def test_absent_options_are_not_sent(ask: Run, service: Service, question: Path) -> None:
    with Client(service.url) as client:
        direct = client.respond(question.read_bytes(), max_steps=10, seed=5)
    printed = json.loads(ask("--json").out)
    assert base64.b64decode(printed.pop("audio")) == direct.audio
    assert printed.keys() == {"transcript", "frames", "sample_rate", "voice", "seed", "timings"}


@pytest.mark.parametrize(
    ("arguments", "error_text"),
    [
        (["--voice", "NOBODY"], "no voice named 'NOBODY'; there are: NATF0,"),
        (["--system-prompt", "villain"], "villain"),
        (["--text-prompt", "a", "--system-prompt", "teacher"], "got both"),
        (["--audio-temp", "9"], "audio_temperature"),
        (["--seed", "-1"], "seed"),
    ],
)
def test_the_servers_error_message_is_printed(ask: Run, tmp_path: Path, arguments: list[str], error_text: str) -> None:
    output = tmp_path / "a.wav"
    assert error_text in ask(*arguments, "--output", output).error
    assert error_text in ask(*arguments, "--json").error


def test_a_rejected_request_does_not_change_an_existing_file(ask: Run, tmp_path: Path) -> None:
    output = tmp_path / "a.wav"
    output.write_bytes(b"earlier")
    assert ask("--voice", "NOBODY", "--output", output).code == 2
    assert output.read_bytes() == b"earlier"


def test_a_file_without_audio_is_reported(personaplex: Run, service: Service, tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_text("not audio")
    assert personaplex("respond", "--server", service.url, "-i", tmp_path / "x.wav", "--json").error


@pytest.mark.parametrize(
    ("arguments", "error_text"),
    [
        (["-i", "/nowhere/x.wav", "--json"], "cannot read /nowhere/x.wav: No such file or directory"),
        (["--server", "http://127.0.0.1:1", "--json"], "cannot reach http://127.0.0.1:1: Connection refused"),
        (["--server", "elsewhere", "--json"], "'elsewhere' is not a server's URL"),
        (["--server", "http://a", "--models", "b", "--json"], "--server and --models"),
        (["--models", "/nowhere", "--json"], "/nowhere is not a built repository"),
        (["--stream", "--json"], "--stream"),
        (["--stream", "--transcript"], "--stream"),
        (["--include-tokens", "--transcript"], "--include-tokens needs --json"),
        (["--output", "-", "--json"], "both write to stdout"),
        (["--output", "/nowhere/a.wav"], "cannot write /nowhere/a.wav"),
        (["--output", "/"], "cannot write /"),
        (["--max-steps", "0", "--json"], "Invalid value for '--max-steps'"),
    ],
)
def test_invalid_options_are_reported_in_one_line(
    personaplex: Run, question: Path, arguments: list[str], error_text: str
) -> None:
    given = arguments if "-i" in arguments else ["-i", question, *arguments]
    assert error_text in personaplex("respond", *given).error


def test_audio_is_not_written_to_a_terminal(personaplex: Run, question: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "--output FILE" in personaplex("respond", "-i", question).error


def test_an_interrupted_response_leaves_a_readable_file(
    personaplex: Run, question: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> object:
        yield b"RIFF\xff\xff\xff\xffWAVEfmt " + (16).to_bytes(4, "little")
        yield bytes.fromhex("0100 0100 c05d0000 80bb0000 0200 1000") + b"data\xff\xff\xff\xff" + bytes(FRAME_BYTES)
        raise ClientError("broke off")

    monkeypatch.setattr(Client, "stream", broken)
    output = tmp_path / "a.wav"
    assert personaplex("respond", "-i", question, "--stream", "-o", output).error == "broke off"
    assert soundfile.info(output).frames == 1920


def test_models_starts_a_server_responds_and_stops_whatever_the_environment_sets_for_servers(
    spawn: Callable[..., subprocess.Popen[str]], tiny_models: Path, question: Path, gone: Callable[[int], list[str]]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {
            "PERSONAPLEX_API_KEYS": '["a-key"]',
            "PERSONAPLEX_TLS_CERTIFICATE": str(ROOT / "tests" / "data" / "localhost.pem"),
            "PERSONAPLEX_TLS_KEY": str(ROOT / "tests" / "data" / "localhost-key.pem"),
            "PERSONAPLEX_GRPC_PORT": str(taken.getsockname()[1]),
        }
        process = spawn("respond", "--models", tiny_models, "-i", question, "--max-steps", 4, "--json", **environment)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["frames"] == 4
    assert gone(process.pid) == []


def test_sizes_are_the_only_difference_to_a_streamed_header() -> None:
    streamed = b"RIFF" + b"\xff" * 4 + b"WAVEfmt " + bytes(20) + b"data" + b"\xff" * 4 + b"samples!"
    sized = respond_module.with_sizes(streamed)
    assert sized[4:8] == (36 + 8).to_bytes(4, "little")
    assert sized[40:44] == (8).to_bytes(4, "little")
    assert sized[:4] + sized[8:40] + sized[44:] == streamed[:4] + streamed[8:40] + streamed[44:]
