"""The whole evaluation: a conversation with each repository, and its outputs over the reference's conversation.

Each step runs in a process of its own, one at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_repository.errors import EvaluationError
from model_repository.evaluation.conversation import AGENT, STAGES, TEXT, Models, Prompt
from model_repository.evaluation.processes import run_in_process
from model_repository.evaluation.quality import compare
from model_repository.evaluation.questions import Answers, EvaluationSet, judge
from model_repository.evaluation.report import FRAME_MS, Evaluated, Report, WeightErrors, machine
from model_repository.evaluation.repository import Repository, check_same_checkpoint
from model_repository.evaluation.teacher_forcing import Record, teacher_force

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
    asked = EvaluationSet.load(reference.folder) if questions else None
    parts = ("conversation", "comparison", "questions") if asked else ("conversation", "comparison")
    evaluated: list[Evaluated] = []
    columns = np.empty(0, np.int64)

    def run(part: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a part of the evaluation of `repository`, see `run_in_process`."""
        name, index = repository.folder, len(evaluated) * len(parts) + parts.index(part)

        def done(share: float) -> None:
            report(f"{name.name}: {part}", (index + share) / (len(everyone) * len(parts)))

        return run_in_process(str(name), threads, done, function, repository, prompt, *arguments)

    with tempfile.TemporaryDirectory(prefix="personaplex-evaluate-") as temporary:
        first, folder = Path(temporary) / "reference", Path(temporary) / "other"
        for repository in everyone:
            own, measured = run("conversation", converse, frames, slots)
            place = folder if evaluated else first
            columns = columns if evaluated else own
            run("comparison", record, columns, layers_at, place)
            evaluated.append(
                Evaluated(
                    models=str(repository.folder),
                    variant=repository.manifest["variant"],
                    kv=repository.manifest["kv"],
                    disk_bytes=repository.disk_bytes,
                    diverges_at=_diverges_at(columns, own),
                    quality=compare(Record.load(first), Record.load(place), columns),
                    answers=run("questions", answer, asked.first(questions)) if asked else None,
                    weights=WeightErrors.of(repository.manifest),
                    **measured,
                )
            )
    report("done", 1.0)
    parameters = {"frames": len(frames), "prompt_columns": prompt.length, "layers_at": layers_at, "slots": slots}
    return Report({**parameters, "threads": threads}, machine(), evaluated)


def converse(
    repository: Repository, prompt: Prompt, frames: NDArray[np.float32], slots: int, done: Callable[[float], None]
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Answer frames [T, 1920]; the columns [T + 1, 17] of the conversation, and times and sizes of `Evaluated`.

    All states of all slots are in use, so that the most memory that this process had counts them.
    """
    device = repository.device()
    free = device.free() if device else 0
    models = Models(repository, slots, device)
    slot_bytes = models.fill_states()
    conversation = models.converse(prompt, frames, done)
    frame_ms = conversation.seconds.sum(axis=1) * 1e3
    stages_ms = np.median(conversation.seconds, axis=0) * 1e3
    return conversation.columns, {
        "host_bytes": _peak_bytes(),
        "slot_bytes": slot_bytes,
        "device_bytes": free - device.free() if device else None,
        "frame_ms": float(np.median(frame_ms)),
        "frame_ms_p95": float(np.percentile(frame_ms, 95)),
        "stages_ms": {name: float(ms) for name, ms in zip(STAGES, stages_ms, strict=True)},
        "rtf": float(np.median(frame_ms)) / FRAME_MS,
    }


def record(
    repository: Repository,
    prompt: Prompt,
    columns: NDArray[np.int64],
    layers_at: Sequence[int],
    folder: Path,
    done: Callable[[float], None],
) -> None:
    """Save the outputs over a given conversation, see `teacher_force`."""
    folder.mkdir(exist_ok=True)
    teacher_force(repository, prompt, columns, layers_at, done).save(folder)


def answer(repository: Repository, prompt: Prompt, asked: EvaluationSet, done: Callable[[float], None]) -> Answers:
    """Ask the questions, each in a conversation of its own, and compare the answers with the right ones."""
    models = Models(repository, 1, repository.device())
    transcripts, sounds = [], []
    for index, frames in enumerate(asked.frames()):
        conversation = models.converse(prompt, frames, lambda _part: None)
        done((index + 1) / len(asked.questions))
        transcripts.append(repository.transcript(conversation.columns[:, TEXT]))
        sounds.append(conversation.sound.ravel())
    return judge(asked, transcripts, sounds)


def _peak_bytes() -> int:
    """The most resident memory this process ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _diverges_at(reference: NDArray[np.int64], own: NDArray[np.int64]) -> int | None:
    """The first column whose tokens of the agent, text or audio, differ."""
    agent = slice(TEXT, AGENT.stop)
    different = np.flatnonzero((reference[:, agent] != own[:, agent]).any(axis=1))
    return int(different[0]) if len(different) else None
