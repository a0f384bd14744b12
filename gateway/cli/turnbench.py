"""TurnBench: conversations of two speakers, each of whom is the user once.

Inputs are `CONVERSATION/speaker_K_audio.flac` or `.wav`, as the benchmark exports them; the agent's answer to speaker K
is `CONVERSATION/speaker_K/output.flac`, from which its readouts make predictions.
"""

from __future__ import annotations

from pathlib import Path

from gateway.cli.benchmark import CONVERSATION_PROMPT, Sample
from gateway.cli.console import CommandError

_TASK = "turn_taking"


def find_samples(root: Path, recordings: Path) -> list[Sample]:
    """Find the inputs under `root`, in order; outputs are under `recordings`. Raises CommandError if there are none."""
    found = []
    for path in sorted(root.glob("*/speaker_[12]_audio.*")):
        if path.suffix in (".flac", ".wav"):
            speaker = path.stem.removesuffix("_audio")
            output = recordings / path.parent.name / speaker / "output.flac"
            found.append(Sample(str(path.relative_to(root)), path, output, _TASK, CONVERSATION_PROMPT))
    if not found:
        raise CommandError(f"{root}: expected folders with speaker_1_audio.flac and speaker_2_audio.flac")
    return found
