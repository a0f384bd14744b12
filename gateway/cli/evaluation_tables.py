"""Tables of an evaluation: size and speed, quality, answers to questions, and error per layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from gateway.cli.console import result_console

if TYPE_CHECKING:
    from model_repository.evaluation.report import Report

GB = 1e9


def show(report: Report) -> None:
    """Print all tables, then the parameters and the machine."""
    console = result_console()
    for table in (cost(report), quality(report), answers(report), layers(report)):
        if table.row_count:
            console.print(table)
    for line in weights(report):
        console.print(line)
    machine, parameters = report.machine, report.parameters
    console.print(
        f"{parameters['frames']} frames after a prompt of {parameters['prompt_columns']} columns; memory for "
        f"{parameters['slots']} conversation(s). {machine['cpu']}, {machine['cores']} cores, "
        f"ONNX Runtime {machine['onnxruntime']}."
    )


def cost(report: Report) -> Table:
    """Disk, memory and time, for one conversation with all models in one process."""
    table = _table(
        "models", "variant", "KV", "disk", "host RAM", "per slot", "device", "ms/frame", "RTF", "hidden cosine"
    )
    for label, repository in zip(_labels(report), report.repositories, strict=True):
        table.add_row(
            label,
            repository.variant,
            repository.kv,
            _size(repository.disk_bytes),
            _size(repository.host_bytes),
            _size(repository.slot_bytes),
            "–" if repository.device_bytes is None else _size(repository.device_bytes),
            f"{repository.frame_ms:.1f}",
            f"{repository.rtf:.3f}",
            f"{repository.quality.hidden_cosine.mean:.5f}",
        )
    return table


def quality(report: Report) -> Table:
    """Quality with the reference's own tokens fed to every variant (teacher forcing)."""
    table = _table("variant", "cosine: mean", "1 %", "min", "text =", "audio =", "text ppl", "audio ppl", "diverges at")
    for label, repository in zip(_labels(report), report.repositories, strict=True):
        found = repository.quality
        table.add_row(
            label,
            f"{found.hidden_cosine.mean:.5f}",
            f"{found.hidden_cosine.p1:.5f}",
            f"{found.hidden_cosine.min:.5f}",
            f"{found.text.agreement:.1%}",
            f"{found.audio.agreement:.1%}",
            f"{found.text.perplexity:.3g} ({found.text.change:+.1%})",
            f"{found.audio.perplexity:.3g} ({found.audio.change:+.1%})",
            "never" if repository.diverges_at is None else f"frame {repository.diverges_at}",
        )
    return table


def answers(report: Report) -> Table:
    """Answers to the checkpoint's evaluation set; no row where it has none."""
    first = report.repositories[0].answers
    groups = list(first.groups) if first else []
    table = _table("variant", "questions", "intent accuracy", *groups, "word error")
    for label, repository in zip(_labels(report), report.repositories, strict=True):
        if found := repository.answers:
            error = "install pocketsphinx" if found.word_error is None else f"{found.word_error:.1%}"
            accuracies = [f"{share:.1%}" for share in (found.intent_accuracy, *found.groups.values())]
            table.add_row(label, str(found.questions), *accuracies, error)
    return table


def layers(report: Report) -> Table:
    """Relative error of the residual stream after each layer, without the reference."""
    others = report.repositories[1:]
    table = _table("error after layer", *_labels(report)[1:])
    for row in zip(*(repository.quality.layers for repository in others), strict=True):
        table.add_row(str(row[0].layer), *(f"{found.error:.4f}" for found in row))
    return table


def weights(report: Report) -> list[str]:
    """The quantized tensors with the largest errors, one line each."""
    lines = []
    for label, repository in zip(_labels(report), report.repositories, strict=True):
        if found := repository.weights:
            lines.append(f"{label}: {found.tensors} quantized tensors, with the largest relative errors in")
            for tensor in found.worst:
                errors = ", ".join(f"{name} {_short(value)}" for name, value in tensor.items() if name not in _NAMES)
                lines.append(f"  {tensor['model']} {tensor['tensor']}: {errors}")
    return lines


_NAMES = ("model", "tensor")


def _labels(report: Report) -> list[str]:
    """Folder names, or whole paths if two names are equal."""
    folders = [Path(repository.models) for repository in report.repositories]
    names = {folder.name for folder in set(folders)}
    unique = len(names) == len(set(folders))
    return [folder.name if unique else str(folder) for folder in folders]


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("models", "variant", "KV") else "right")
    return table


def _size(count: int) -> str:
    return f"{count / GB:.2f} GB" if count >= GB / 10 else f"{count / 1e6:.1f} MB"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
