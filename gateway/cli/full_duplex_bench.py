"""Full-Duplex-Bench, v1 and v1.5: its samples are folders with `input.wav`, and `output.wav` is written beside it.

Version 1.5 also has `clean_input.wav`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gateway.cli.benchmark import CONVERSATION_PROMPT, Sample
from gateway.cli.console import CommandError

INTERRUPTION_PROMPT = (
    "You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way."
)
"""The prompt of NVIDIA's published figures for tasks with interruptions."""

_DEPTH = 3
"""Folders between the root and an input at most: version, task, sample."""


def find_samples(root: Path, *, clean: bool = False, tasks: Iterable[str] = ()) -> list[Sample]:
    """Find the inputs under `root`, in order. Raises CommandError if there are none.

    tasks: only those whose name contains one of these. clean: the clean inputs of version 1.5.
    """
    prefix = "clean_" if clean else ""
    wanted = tuple(tasks)
    found = []
    for path in sorted(root.rglob(f"{prefix}input.wav")):
        if len(path.relative_to(root).parts) > _DEPTH + 1:
            continue
        task = path.parent.parent.name if path.parent != root else root.name
        prompt = INTERRUPTION_PROMPT if "interruption" in task else CONVERSATION_PROMPT
        if not wanted or any(name in task for name in wanted):
            name = str(path.relative_to(root))
            found.append(Sample(name, path, path.with_name(f"{prefix}output.wav"), task, prompt))
    if not found:
        raise CommandError(f"{root}: expected folders with {prefix}input.wav" + (f" of {wanted}" if wanted else ""))
    return found
