"""The prompt that a conversation begins with, as steps of the temporal model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class PromptPrefix:
    """Steps 0..P-1 of a conversation, complete, and the tokens they fix of step P.

    embeddings: [E, dim] float32, summed input embeddings of steps 0..E-1 (E is 0 for a voice given as tokens).
    steps: [P - E, 17] int64, the other steps.
    fixed: [17] int64, the delayed tokens of step P; -1 where the models choose.
    """

    embeddings: npt.NDArray[np.float32]
    steps: npt.NDArray[np.int64]
    fixed: npt.NDArray[np.int64]

    @property
    def length(self) -> int:
        """P, the position of the first step that is not part of the prompt."""
        return len(self.embeddings) + len(self.steps)

    @property
    def cacheable(self) -> int:
        """P - 1: all steps but the last, which is always run because its output is needed."""
        return self.length - 1

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the cacheable steps: embeddings float32, steps int64, then E as int64. 32 bytes.

        The temporal model computes the same digest from what it is fed, and keeps prefixes under it.
        """
        content = hashlib.sha256(np.ascontiguousarray(self.embeddings, np.float32).tobytes())
        content.update(np.ascontiguousarray(self.steps[:-1], np.int64).tobytes())
        content.update(np.int64(len(self.embeddings)).tobytes())
        return content.digest()
