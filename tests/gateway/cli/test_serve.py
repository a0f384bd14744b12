from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import httpx
import psutil
import pytest

from gateway.triton_server import TritonServer
from tests.gateway.cli.conftest import Outcome, spawning

DATA = Path(__file__).parents[2] / "data"
CERTIFICATE = DATA / "localhost.pem"
PATIENCE_S = 120.0
"""These tests do not measure speed."""

Run = Callable[..., Outcome]
Spawn = Callable[..., subprocess.Popen[str]]
Gone = Callable[[int], list[str]]


def url_of(process: subprocess.Popen[str]) -> str:
    """Wait for a server's first line; return its URL."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("PersonaPlex is ready: ")
    return line.split()[-1]


def post(url: str, question: Path, **fields: object) -> httpx.Response:
    data = {name: str(value) for name, value in fields.items()}
    with question.open("rb") as audio:
        return httpx.post(f"{url}/v1/respond", files={"audio": audio}, data=data, timeout=60)


def tritonserver(process: subprocess.Popen[str]) -> psutil.Process:
    return next(p for p in psutil.Process(process.pid).children(recursive=True) if p.name() == "tritonserver")


def assert_stopped(process: subprocess.Popen[str], gone: Gone) -> None:
    """Wait for the end of a server that received a signal; nothing of it is left."""
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert err.splitlines()[-1] == "stopping"
    assert gone(process.pid) == []


def test_a_signal_while_starting_stops_it_too(spawn: Spawn, tiny_models: Path, gone: Gone) -> None:
    process = spawn("serve", tiny_models, "--port", 0)
    assert process.stderr is not None
    assert process.stderr.readline() == "starting Triton\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (0, "")
    assert gone(process.pid) == []


def test_an_answer_under_way_is_finished_before_sigterm_stops_it(
    spawn: Spawn, tiny_models: Path, question: Path, gone: Gone
) -> None:
    process = spawn("serve", tiny_models, "--port", 0)
    answers: Queue[httpx.Response] = Queue()
    url = url_of(process)
    asking = threading.Thread(target=lambda: answers.put(post(url, question, max_steps=150)))
    asking.start()
    wait_until(lambda: "personaplex_conversations_active 1.0" in httpx.get(f"{url}/metrics").text)
    process.send_signal(signal.SIGTERM)
    answer = answers.get(timeout=PATIENCE_S)
    assert (answer.status_code, len(answer.content)) == (200, 44 + 150 * 3840)
    assert_stopped(process, gone)


# The short form is `test_a_second_signal_ends_sessions_at_once`, of live sessions.
@pytest.mark.long
def test_a_second_sigint_does_not_wait_for_answers(spawn: Spawn, tiny_models: Path, question: Path, gone: Gone) -> None:
    process = spawn("serve", tiny_models, "--port", 0)
    url = url_of(process)

    answers: Queue[httpx.Response | httpx.HTTPError] = Queue()

    def ask() -> None:
        try:
            answers.put(post(url, question, max_steps=7500))
        except httpx.HTTPError as error:
            answers.put(error)

    threading.Thread(target=ask).start()
    wait_until(lambda: "personaplex_conversations_active 1.0" in httpx.get(f"{url}/metrics").text)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert_stopped(process, gone)
    assert time.monotonic() - began < 15
    answer = answers.get(timeout=10)
    assert isinstance(answer, httpx.HTTPError) or answer.status_code >= 500


def figure(url: str, name: str) -> float:
    (line,) = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def test_a_crashed_triton_is_restarted_with_warm_personas_and_does_not_survive_a_gateway_that_is_killed(
    spawn: Spawn, tiny_models: Path, question: Path, gone: Gone
) -> None:
    process = spawn("serve", tiny_models, "--port", 0, "--warm", "NATF1:teacher", "--warm", "NATM0:You are Ana.")
    url = url_of(process)
    cold = figure(url, "personaplex_prefill_columns_total")
    for persona in ({"voice": "NATF1", "system_prompt": "teacher"}, {"voice": "NATM0", "text_prompt": "You are Ana."}):
        before = figure(url, "personaplex_prefill_columns_total")
        assert post(url, question, max_steps=1, **persona).status_code == 200
        assert figure(url, "personaplex_prefill_columns_total") - before == 1
    tritonserver(process).kill()
    refused = post(url, question, max_steps=3)
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    # The state is up to a second old.
    wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
    wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
    assert figure(url, "personaplex_prefill_columns_total") == 2 * cold + 2
    assert post(url, question, max_steps=3).status_code == 200
    process.kill()
    process.wait()
    assert gone(process.pid) == []


@pytest.mark.parametrize(
    ("warm", "message"),
    [("NATX", "no voice named 'NATX'; there are: NATF0, "), ("NATF0:teachr", "no system prompt named 'teachr'; ")],
)
def test_an_unknown_persona_is_reported_before_the_start(
    personaplex: Run, tiny_models: Path, warm: str, message: str
) -> None:
    assert personaplex("serve", tiny_models, "--port", 0, "--warm", warm).error.startswith(f"--warm {warm}: {message}")


# The short form is the chart's test of its containers.
@pytest.mark.long
def test_a_triton_that_runs_elsewhere_is_used_and_left_running(spawn: Spawn, tiny_models: Path, question: Path) -> None:
    with TritonServer(tiny_models / "triton") as triton:
        process = spawn("serve", tiny_models, "--port", 0, "--triton", triton.http_url)
        assert post(url_of(process), question, max_steps=3).status_code == 200
        assert psutil.Process(process.pid).children(recursive=True) == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert triton.alive()
        triton.stop(now=True)


def test_a_port_in_use_is_reported_before_the_start(personaplex: Run, tiny_models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = personaplex("serve", tiny_models, "--port", port).error
    assert error == f"cannot listen on 127.0.0.1:{port}: Address already in use (choose another with --port)"


def test_a_grpc_port_in_use_is_reported_before_the_start(personaplex: Run, tiny_models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = personaplex("serve", tiny_models, "--port", 0, "--grpc-port", port).error
    assert error == f"cannot listen on 127.0.0.1:{port}: Address already in use (choose another with --grpc-port)"


def test_unusable_tls_files_are_reported(personaplex: Run, tiny_models: Path, tmp_path: Path) -> None:
    assert personaplex("serve", tiny_models, "--tls-key", "key.pem").error == (
        "expected both tls_certificate and tls_key, or neither"
    )
    missing = tmp_path / "missing.pem"
    files = ("--tls-certificate", missing, "--tls-key", missing)
    assert personaplex("serve", tiny_models, "--port", 0, *files).error == (
        f"cannot use {missing} with {missing} for TLS: No such file or directory"
    )


@pytest.fixture(scope="module")
def secured(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory, gone: Gone) -> Iterator[str]:
    """The URL of a server with TLS and the key `a-key`. It ends by SIGINT and leaves nothing."""
    files = ("--tls-certificate", CERTIFICATE, "--tls-key", DATA / "localhost-key.pem")
    with spawning(tmp_path_factory.mktemp("secured")) as spawn:
        process = spawn("serve", tiny_models, "--port", 0, *files, PERSONAPLEX_API_KEYS='["a-key"]')
        yield url_of(process)
        process.send_signal(signal.SIGINT)
        assert_stopped(process, gone)


def test_it_serves_over_tls(secured: str, personaplex: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert secured.startswith("https://")
    trusted = ssl.create_default_context(cafile=str(CERTIFICATE))
    assert httpx.get(f"{secured}/readyz", verify=trusted).status_code == 200
    files = ("--input", DATA / "question.wav", "--output", tmp_path / "a.wav")
    asked = ("respond", "--server", secured, "--api-key", "a-key", *files)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    refused = personaplex(*asked).error
    assert "certificate verify failed" in refused
    assert refused.endswith("; set SSL_CERT_FILE to trust a private authority")
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    assert personaplex(*asked).code == 0


def test_a_folder_that_is_no_repository_is_reported(personaplex: Run, tmp_path: Path) -> None:
    assert personaplex("serve", tmp_path).error == f"{tmp_path} is not a built repository: it has no manifest.json"


def test_a_repository_for_cuda_without_a_gpu_is_reported(personaplex: Run, cuda_models: Path) -> None:
    error = personaplex("serve", cuda_models, "--port", 0).error
    assert f"{cuda_models} was built for CUDA: " in error
    assert error.endswith("build with --device cpu")


def test_an_unreachable_triton_and_unknown_variables_of_the_environment(spawn: Spawn, tiny_models: Path) -> None:
    names = {"PERSONAPLEX_API_KEY": "k", "PERSONAPLEX_ALOWED_ORIGINS": "[]", "PERSONAPLEX_CPU_KERNELS": "1"}
    process = spawn("serve", tiny_models, "--port", 0, "--wait", 1, PERSONAPLEX_TRITON_URL="127.0.0.1:1", **names)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (2, "")
    assert "unknown setting: PERSONAPLEX_ALOWED_ORIGINS" in err
    assert "PERSONAPLEX_API_KEY is read by clients only" in err
    assert "CPU_KERNELS" not in err
    assert "personaplex: error: Triton at 127.0.0.1:1 is not ready after 1 s: " in err
    assert "starting Triton" not in err
    assert "Traceback" not in err


def test_the_help_names_tritons_port(personaplex: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = " ".join(personaplex("serve", "--help").out.replace("│", " ").split())
    assert "HTTP endpoint of a running Triton to use instead of the embedded one" in text


def test_a_server_with_keys_needs_a_key(
    secured: str, personaplex: Run, question: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    ask = ("respond", "--server", secured, "-i", question, "--max-steps", 2, "--json")
    assert "a valid API key is needed" in personaplex(*ask).error
    assert "a valid API key is needed" in personaplex(*ask, "--api-key", "another").error
    assert personaplex(*ask, "--api-key", "a-key").code == 0
    monkeypatch.setenv("PERSONAPLEX_API_KEY", "a-key")
    assert personaplex(*ask).code == 0


@pytest.mark.parametrize("address", ["localhost", ":8001", "http://localhost:8001", "localhost:port", "localhost:0"])
def test_an_invalid_address_is_reported(personaplex: Run, tiny_models: Path, address: str) -> None:
    assert (
        personaplex("serve", tiny_models, "--triton", address).error == f"--triton: expected HOST:PORT, got {address!r}"
    )


def test_a_wrong_environment_variable_is_named(
    personaplex: Run, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONAPLEX_MAX_STEPS", "plenty")
    assert personaplex("serve", tiny_models).error.startswith("PERSONAPLEX_MAX_STEPS='plenty': ")


@pytest.mark.parametrize(("keys", "error_text"), [('[""]', "PERSONAPLEX_API_KEYS.0='': "), ("a-key", "expected JSON")])
def test_invalid_keys_are_reported(
    personaplex: Run, tiny_models: Path, monkeypatch: pytest.MonkeyPatch, keys: str, error_text: str
) -> None:
    monkeypatch.setenv("PERSONAPLEX_API_KEYS", keys)
    error = personaplex("serve", tiny_models).error
    assert error_text in error
    assert "api_keys" in error.lower()


def test_a_model_that_does_not_load_is_reported(spawn: Spawn, tiny_models: Path, tmp_path: Path, gone: Gone) -> None:
    broken = tmp_path / "broken"
    for path in tiny_models.rglob("*"):
        if path.is_file() and path.name != "model.onnx":
            copy = broken / path.relative_to(tiny_models)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path)
    process = spawn("serve", broken, "--port", 0, "--log-level", "error")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "personaplex: error: Triton ended while starting, with status 1: failed to load '" in err.splitlines()[-1]
    assert gone(process.pid) == []


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
