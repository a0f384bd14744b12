"""A process of its own for each thing measured: `python -m model_repository.evaluation.worker FOLDER`.

FOLDER holds `job.json` and the arrays it needs, and takes what comes out. A line on stdout is the fraction done. Only
a fresh process tells what memory a repository takes, and gives all of it back.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from model_repository.errors import ModelRepositoryError
from model_repository.evaluation.conversation import STAGES, TEXT, Conversation, Models, Prompt
from model_repository.evaluation.forced import follow
from model_repository.evaluation.questions import EvaluationSet, judge
from model_repository.evaluation.repository import Repository
from model_repository.serving.device import DeviceError

SPOKEN, FOLLOWED = "spoken.npy", "followed.npy"
"""Columns [T + 1, 17]: of the conversation a worker held, and of that it is led along."""


def main() -> None:
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    ort.set_default_logger_severity(3)
    try:
        result = {"converse": converse, "follow": follow_conversation, "answer": answer}[job["do"]](folder, job)
    except (ModelRepositoryError, DeviceError) as error:
        sys.exit(str(error))
    (folder / "result.json").write_text(json.dumps(result))


def converse(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Hold a conversation: leaves `spoken.npy`, answers times and memory.

    frame_ms: milliseconds of a whole frame, median and 95th percentile, and the median of each stage. peak_bytes: the
    most memory this process held with all states of `slots` conversations in use; slot_bytes: the part of one of them;
    device_bytes: what a device's memory had less at the end, None for the CPU.
    """
    repository = Repository.open(Path(job["models"]))
    device = repository.device()
    free = device.free() if device else 0
    models = Models(repository, job["slots"], device)
    slot_bytes = models.fill_states()
    held = models.converse(_prompt(folder), np.load(folder / "frames.npy"), _say)
    np.save(folder / SPOKEN, held.columns)
    device_bytes = free - device.free() if device else None
    return {"slot_bytes": slot_bytes, "peak_bytes": peak_bytes(), "device_bytes": device_bytes, **_times(held)}


def follow_conversation(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Be led along `followed.npy`: leaves a `Record`."""
    columns = np.load(folder / FOLLOWED)
    repository = Repository.open(Path(job["models"]))
    follow(repository, _prompt(folder), columns, job["layers_at"], _say).save(folder)
    return {}


def answer(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Be asked `questions` questions of the evaluation set of the repository `asked_by`; the result is an `Answers`."""
    repository = Repository.open(Path(job["models"]))
    whole = EvaluationSet.load(Path(job["asked_by"]))
    assert whole is not None  # noqa: S101 - the job is given to repositories with a set only
    asked = whole.first(job["questions"])
    models = Models(repository, 1, repository.device())
    prompt = _prompt(folder)
    transcripts, sounds = [], []
    for index, frames in enumerate(asked.frames()):
        held = models.converse(prompt, frames, lambda _part: None)
        _say((index + 1) / len(asked.questions))
        transcripts.append(repository.transcript(held.columns[:, TEXT]))
        sounds.append(held.sound.ravel())
    return asdict(judge(asked, transcripts, sounds))


def peak_bytes() -> int:
    """The most resident memory this process ever had."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        # Bytes on macOS, where there is no /proc.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _times(held: Conversation) -> dict[str, Any]:
    frames = held.seconds.sum(axis=1) * 1e3
    stages = np.median(held.seconds, axis=0) * 1e3
    return {
        "frame_ms": float(np.median(frames)),
        "frame_ms_p95": float(np.percentile(frames, 95)),
        "stages_ms": {name: float(ms) for name, ms in zip(STAGES, stages, strict=True)},
    }


def _prompt(folder: Path) -> Prompt:
    with np.load(folder / "prompt.npz") as arrays:
        return Prompt(arrays["embeddings"], arrays["columns"], arrays["known"])


def _say(fraction: float) -> None:
    print(fraction, flush=True)


if __name__ == "__main__":
    main()
