"""The whole evaluation: the reference speaks, everyone follows, and all are measured, one in memory at a time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_repository.errors import EvaluationError
from model_repository.evaluation.conversation import AGENT, TEXT, Prompt
from model_repository.evaluation.forced import Record
from model_repository.evaluation.processes import run_worker
from model_repository.evaluation.quality import Quality, compare
from model_repository.evaluation.questions import Answers, EvaluationSet
from model_repository.evaluation.report import FRAME_MS, Evaluated, Report, WeightErrors, machine
from model_repository.evaluation.repository import Repository, check_same_checkpoint
from model_repository.evaluation.worker import FOLLOWED, SPOKEN

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction of the whole that is done."""


def evaluate(
    models: Sequence[Repository],
    reference: Repository,
    prompt: Prompt,
    frames: NDArray[np.float32],
    *,
    layers: int = 16,
    slots: int = 1,
    threads: int = 0,
    questions: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Compare `models` with `reference` over its greedy answer to frames [T, 1920] after `prompt`.

    `layers`: at how many columns the residual stream is compared after each layer. `slots`: for how many
    conversations each process holds memory. `threads`: per model; 0 leaves the choice to it. `questions`: how many
    of the checkpoint's evaluation set are asked, if it has one. Raises `EvaluationError`.
    """
    if not models:
        raise EvaluationError("nothing to compare: give at least one repository beside the reference")
    if not len(frames):
        raise EvaluationError("nothing to answer: the audio has no frame")
    check_same_checkpoint(reference, models)
    everyone = [reference, *models]
    report = progress or (lambda _what, _done: None)
    layers_at = np.unique(np.linspace(0, len(frames) - 1, min(layers, len(frames))).round().astype(int)).tolist()
    evaluated: list[Evaluated] = []
    asked = questions > 0 and EvaluationSet.load(reference.folder) is not None
    parts = ("conversation", "comparison", "questions") if asked else ("conversation", "comparison")
    with tempfile.TemporaryDirectory(prefix="personaplex-evaluate-") as temporary:
        first = Path(temporary) / "0"
        for index, repository in enumerate(everyone):

            def part(number: int, index: int = index, repository: Repository = repository) -> Callable[[float], None]:
                what = f"{repository.folder.name}: {parts[number]}"
                return lambda done: report(what, (index + (number + done) / len(parts)) / len(everyone))

            folder = Path(temporary) / str(index)
            folder.mkdir()
            np.savez(folder / "prompt.npz", embeddings=prompt.embeddings, columns=prompt.columns, known=prompt.known)
            np.save(folder / "frames.npy", frames)
            job = {"models": str(repository.folder), "slots": slots, "layers_at": layers_at}
            spoke = run_worker(folder, {**job, "do": "converse"}, threads, part(0))
            own, columns = np.load(folder / SPOKEN), np.load(first / SPOKEN)
            np.save(folder / FOLLOWED, columns)
            run_worker(folder, {**job, "do": "follow"}, threads, part(1))
            quality = compare(Record.load(first), Record.load(folder), columns)
            answers = None
            if asked:
                questioned = {**job, "do": "answer", "asked_by": str(reference.folder), "questions": questions}
                answers = Answers(**run_worker(folder, questioned, threads, part(2)))
            evaluated.append(_evaluated(repository, spoke, quality, answers, _diverges_at(columns, own)))
            if folder != first:
                shutil.rmtree(folder)
    report("done", 1.0)
    parameters = {"frames": len(frames), "prompt_columns": prompt.length, "layers_at": layers_at, "slots": slots}
    return Report({**parameters, "threads": threads}, machine(), evaluated)


def _evaluated(
    repository: Repository,
    spoke: Mapping[str, Any],
    quality: Quality,
    answers: Answers | None,
    diverges_at: int | None,
) -> Evaluated:
    return Evaluated(
        models=str(repository.folder),
        variant=str(repository.manifest["variant"]),
        kv=repository.kv,
        disk_bytes=repository.disk_bytes,
        host_bytes=spoke["peak_bytes"],
        slot_bytes=spoke["slot_bytes"],
        device_bytes=spoke["device_bytes"],
        frame_ms=spoke["frame_ms"],
        frame_ms_p95=spoke["frame_ms_p95"],
        stages_ms=spoke["stages_ms"],
        rtf=spoke["frame_ms"] / FRAME_MS,
        diverges_at=diverges_at,
        quality=quality,
        answers=answers,
        weights=WeightErrors.of(repository.manifest),
    )


def _diverges_at(reference: NDArray[np.int64], own: NDArray[np.int64]) -> int | None:
    """The first column where what is said, text or audio, is not the same."""
    said = slice(TEXT, AGENT.stop)
    different = np.flatnonzero((reference[:, said] != own[:, said]).any(axis=1))
    return int(different[0]) if len(different) else None
