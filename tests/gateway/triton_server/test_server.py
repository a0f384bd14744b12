from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from gateway.triton_server import TritonInstallation, TritonOptions, TritonServer, TritonStartError, guard
from gateway.triton_server import server as server_module

ROOT = Path(__file__).parents[3]

Gone = Callable[[int | TritonServer], list[str]]


@pytest.fixture
def server(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TritonServer]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = TritonServer(models)
    server.start(timeout=60)
    yield server
    server.stop(now=True)


def echo(server: TritonServer, values: list[float]) -> list[float]:
    sent = triton.InferInput("x", [len(values)], "FP32").set_data_from_numpy(np.array(values, np.float32))
    with triton.InferenceServerClient(server.grpc_url) as client:
        return client.infer("echo", [sent], client_timeout=10).as_numpy("y").tolist()


def children(server: TritonServer) -> dict[str, psutil.Process]:
    """The server's processes by role."""
    parent = psutil.Process(server._guard.pid)
    found = {"guard": parent}
    for process in parent.children(recursive=True):
        found["stub" if "stub" in process.cmdline()[0] else "tritonserver"] = process
    return found


def test_a_started_server_serves_its_models(server: TritonServer) -> None:
    assert server.alive()
    assert server.exit_code is None
    assert echo(server, [1.0, 2.5, -3.0]) == [1.0, 2.5, -3.0]


def test_metrics_are_served_at_metrics_url(server: TritonServer) -> None:
    echo(server, [1.0])
    counted = 'nv_inference_request_success{model="echo",version="1"} 1'
    # Triton counts a request a moment after it has answered it.
    deadline = time.monotonic() + 5
    while counted not in (page := urllib.request.urlopen(server.metrics_url, timeout=5).read().decode()):
        assert time.monotonic() < deadline, page
    dashboard = (ROOT / "deploy" / "helm" / "personaplex" / "dashboards" / "personaplex.json").read_text()
    shown = set(re.findall(r"nv_\w+", dashboard))
    assert shown
    assert {name for name in shown if f'{name}{{model="echo"' not in page} == set()


def test_all_ports_listen_on_the_loopback_address_only(server: TritonServer) -> None:
    listening = children(server)["tritonserver"].net_connections(kind="tcp")
    addresses = {c.laddr.ip.removeprefix("::ffff:") for c in listening if c.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1"}


def test_the_shared_memory_protocol_is_disabled(server: TritonServer) -> None:
    with triton.InferenceServerClient(server.grpc_url) as client, pytest.raises(Exception, match="restricted"):
        client.get_system_shared_memory_status()


def test_models_get_the_environment(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAPLEX_INTRA_OP_THREADS", "3")
    with TritonServer(models, environment={"PERSONAPLEX_EXTRA": "x"}) as server:
        seen = children(server)["stub"].environ()
        server.stop(now=True)
    assert (seen["PERSONAPLEX_INTRA_OP_THREADS"], seen["PERSONAPLEX_EXTRA"]) == ("3", "x")


def test_models_import_from_the_running_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    model = tmp_path / "imports" / "1" / "model.py"
    model.parent.mkdir(parents=True)
    (tmp_path / "imports" / "config.pbtxt").write_text('name: "imports"\nbackend: "python"\n')
    model.write_text(
        "import sys, onnxruntime, model_repository\n"
        "class TritonPythonModel:\n    def initialize(self, args): print('prefix', sys.prefix, flush=True)\n"
    )
    server = TritonServer(tmp_path)
    server.start(timeout=60)
    server.stop(now=True)
    assert f"prefix {sys.prefix}" in server.log


def test_a_graceful_stop_leaves_no_processes_or_files(server: TritonServer, tmp_path: Path, gone: Gone) -> None:
    server.stop()
    assert server.exit_code == 0
    assert not server.alive()
    assert gone(server) == []
    assert list(tmp_path.iterdir()) == []


def test_an_immediate_stop_leaves_no_processes_or_files(server: TritonServer, tmp_path: Path, gone: Gone) -> None:
    server.stop(now=True)
    server.stop(now=True)
    assert server.exit_code == 128 + signal.SIGKILL
    assert gone(server) == []
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_ignores_sigterm_is_killed_after_its_grace(
    models: Path, gone: Gone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_grace", lambda options: 0.5)
    server = TritonServer(models)
    server.start(timeout=60)
    children(server)["tritonserver"].suspend()
    server.stop()
    assert server.exit_code == 128 + signal.SIGKILL
    assert gone(server) == []


def test_the_guard_of_a_gateway_that_ended_at_once_kills_the_server(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [sys.executable, "-IS", guard.__file__, "5", str(folder), "personaplex_no_gateway_", "/bin/sleep", "60"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=5)
    assert ended.returncode == 128 + signal.SIGKILL
    assert not folder.exists()


@pytest.mark.parametrize(("victim", "status"), [("tritonserver", 128 + signal.SIGKILL), ("guard", -signal.SIGKILL)])
def test_a_killed_process_is_detected_and_cleaned_up(
    server: TritonServer, tmp_path: Path, gone: Gone, victim: str, status: int
) -> None:
    children(server)[victim].kill()
    assert server.wait(5)
    server.stop()
    assert server.exit_code == status
    assert gone(server) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_server_and_stubs_end_when_the_parent_dies(models: Path, gone: Gone, tmp_path: Path, number: int) -> None:
    program = (
        "import signal, sys, time, pathlib, gateway.triton_server as t\n"
        # A child of `nohup` ignores it.
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "s = t.TritonServer(pathlib.Path(sys.argv[1])); s.start(60); print('ready', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(models)],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"ready\n"
    owner.send_signal(number)
    owner.wait()
    assert gone(owner.pid) == []
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_at_the_terminal_does_not_reach_the_server(server: TritonServer) -> None:
    groups = {os.getpgid(process.pid) for process in children(server).values()}
    assert os.getpgrp() not in groups


def test_a_model_that_fails_to_load_is_the_reason_of_the_error(tmp_path: Path, gone: Gone) -> None:
    folder = tmp_path / "broken"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text('name: "broken"\nbackend: "python"\n')
    (folder / "1" / "model.py").write_text(
        "class TritonPythonModel:\n    def initialize(self, args): raise ValueError('no such weights')\n"
    )
    server = TritonServer(tmp_path)
    with pytest.raises(TritonStartError, match="no such weights") as caught:
        server.start(timeout=60)
    assert "\n" not in str(caught.value)
    assert gone(server) == []


def test_the_error_names_a_port_in_use(models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TritonStartError, match=f"{port}.*already in use"):
            TritonServer(models, TritonOptions(grpc_port=port, metrics_port=None)).start(timeout=60)


def test_chosen_ports_that_are_in_use_are_tried_once(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = TritonOptions(metrics_port=None).with_free_ports()
    taken = socket.create_server(("127.0.0.1", options.grpc_port))
    with taken, pytest.raises(TritonStartError, match="already in use"):
        TritonServer(models, options).start(timeout=60)
    assert "starting it again" not in caplog.text


def test_another_port_is_selected_if_one_is_taken_meanwhile(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = TritonOptions.with_free_ports
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken_meanwhile = [TritonOptions(grpc_port=taken.getsockname()[1], metrics_port=None)]
        monkeypatch.setattr(
            TritonOptions,
            "with_free_ports",
            lambda options: taken_meanwhile.pop() if taken_meanwhile else choose(options),
        )
        server = TritonServer(models)
        server.start(timeout=60)
        assert echo(server, [4.0]) == [4.0]
        server.stop(now=True)
    assert taken_meanwhile == []


def test_a_start_that_fails_by_a_broken_lock_is_repeated(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = TritonInstallation.find()
    binary, failed = tmp_path / "tritonserver", tmp_path / "failed"
    lines = "terminate called\n  what():  boost::interprocess::lock_exception"
    binary.write_text(
        f'#!/bin/sh\n[ -e {failed} ] && exec {found.binary} "$@"\n'
        f"touch {failed}\nprintf '%s\\n' '{lines}' >&2\nkill -ABRT $$\n"
    )
    binary.chmod(0o755)
    server = TritonServer(models, installation=replace(found, binary=binary))
    server.start(timeout=60)
    try:
        assert echo(server, [4.0]) == [4.0]
    finally:
        server.stop(now=True)
    (warning,) = (record.message for record in caplog.records if "starting it again" in record.message)
    assert "with status 134: what():  boost::interprocess::lock_exception" in warning


@pytest.mark.parametrize("order", ["grpc,http,metrics", "http,metrics,grpc", "metrics,grpc,http"])
def test_a_started_server_listens_on_every_port(order: str, models: Path, tmp_path: Path) -> None:
    binary = tmp_path / "tritonserver"
    binary.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("late_ports.py")} {order} "$@"\n')
    binary.chmod(0o755)
    server = TritonServer(models, installation=replace(TritonInstallation.find(), binary=binary))
    server.start(timeout=60)
    try:
        for port in (server.options.http_port, server.options.grpc_port, server.options.metrics_port):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
    finally:
        server.stop(now=True)


async def test_a_cancelled_start_leaves_no_processes(models: Path, gone: Gone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "is_ready", lambda url: False)
    server = TritonServer(models)
    starting = asyncio.ensure_future(server.__aenter__())
    await asyncio.sleep(0.5)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not server.alive()
    assert gone(server) == []


def test_a_server_that_is_not_ready_in_time_is_stopped(
    models: Path, gone: Gone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "is_ready", lambda url: False)
    server = TritonServer(models)
    with pytest.raises(TritonStartError, match="not ready in time"):
        server.start(timeout=0.5)
    assert gone(server) == []


def test_a_failed_launch_leaves_no_files(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(server_module, "_link_python_backend", full)
    with pytest.raises(OSError, match="No space left"):
        TritonServer(models).start(timeout=60)
    assert list(tmp_path.iterdir()) == []
