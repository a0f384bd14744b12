"""Every example of docs/clients.md runs as it is written, but for the address of the server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from gateway.cli.service import Service
from tests.gateway.cli.conftest import QUESTION, ROOT

EXAMPLES = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs" / "clients.md").read_text(), re.M | re.S)
WRITES_AUDIO = re.compile(r"answer\.wav")

pytestmark = pytest.mark.long


@pytest.mark.parametrize(("language", "text"), EXAMPLES, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(EXAMPLES)])
def test_an_example_runs(service: Service, tmp_path: Path, language: str, text: str) -> None:
    if language == "sh" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    shutil.copyfile(QUESTION, tmp_path / "question.wav")
    assert service.grpc_target is not None
    text = text.replace("http://127.0.0.1:8998", service.url).replace("127.0.0.1:8999", service.grpc_target)
    command = {"python": [sys.executable, "-W", "error", "-c", text], "sh": ["sh", "-ec", text]}[language]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env={"PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stderr) == (0, "")
    if WRITES_AUDIO.search(text):
        assert soundfile.info(tmp_path / "answer.wav").duration > 6
    else:
        assert done.stdout
