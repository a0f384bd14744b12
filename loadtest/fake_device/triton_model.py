"""The Triton entry point of the models on the fake device."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from loadtest.fake_device.timed_session import TimedSession, Timing
from model_repository.serving import triton_model
from model_repository.serving.execution_target import ExecutionTarget


class TritonPythonModel(triton_model.TritonPythonModel):
    """A model whose runs take the time that its config states."""

    def execution_target(self, parameters: Mapping[str, str]) -> ExecutionTarget:
        """Sessions that take time."""
        return partial(TimedSession, timing=Timing.of(parameters))
