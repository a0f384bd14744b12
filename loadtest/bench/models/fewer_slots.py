"""Write a built repository for another number of slots: large files are linked, small ones rewritten."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

_SMALL_BYTES = 1 << 20


def with_slots(models: Path, out: Path, slots: int) -> None:
    """Write `models` for `slots` conversations to `out`; large files are copied where they cannot be linked."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for file in models.rglob("*"):
        target = out / file.relative_to(models)
        if file.is_dir():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        linked = file.stat().st_size > _SMALL_BYTES and file.stat().st_dev == out.stat().st_dev
        (os.link if linked else shutil.copyfile)(file, target)
    for file in out.glob("triton/*/config.pbtxt"):
        config = text_format.Parse(file.read_text(), pb.ModelConfig())
        config.max_batch_size = slots
        file.write_text(text_format.MessageToString(config))
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "slots": slots}, indent=1) + "\n")
