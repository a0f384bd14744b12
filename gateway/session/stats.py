"""One conversation's own timings, told to the caller and, summed over all, to Prometheus."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from gateway.engine.conversation import AgentFrame
from gateway.telemetry.metrics import STAGES, Metrics


@dataclass(frozen=True, slots=True)
class StageStats:
    """Milliseconds one stage took over a conversation's frames."""

    median_ms: float
    p99_ms: float


class SessionStats:
    """Watches a conversation's frames, or those of a later turn; the clock starts when it is made.

    That is when the slot is taken, or when the turn begins.
    """

    def __init__(self, metrics: Metrics, frame_seconds: float) -> None:
        self._metrics = metrics
        self._frame_seconds = frame_seconds
        self._began = perf_counter()
        # A call may last for hours: 32 bytes a frame, not a tuple of floats.
        self._stages = array("d")
        self._busy = 0.0
        self.setup_seconds = 0.0
        self.first_audio_seconds = 0.0

    def observe(self, frame: AgentFrame) -> None:
        """Called for every frame, in order."""
        self._metrics.frame(frame)
        passed = perf_counter() - self._began
        if frame.index == 0:
            # Until a frame is drawn, the forced silence is all there is to hear.
            self.setup_seconds = self.first_audio_seconds = passed
            self._metrics.setup_seconds.observe(passed)
            return
        if not self._stages:
            self.first_audio_seconds = passed
            # A later turn's clock did not start with the slot.
            if self.setup_seconds:
                self._metrics.first_audio_seconds.observe(passed)
        self._busy += frame.seconds
        stages = frame.stages
        self._stages.extend((stages.encode, stages.temporal, stages.depformer, stages.decode))

    def finish(self) -> None:
        """Called once, when the conversation or its turn is over."""
        if self._stages:
            self._metrics.rtf.observe(self.rtf)

    @property
    def rtf(self) -> float:
        """Seconds spent on frames over seconds of audio made; the setup and frame 0 are not in it."""
        frames = len(self._stages) // len(STAGES)
        return self._busy / (frames * self._frame_seconds) if frames else 0.0

    def stages(self) -> dict[str, StageStats]:
        """Median and 99th percentile by stage, over all frames but frame 0; zeros if there was no other."""
        times = np.array(self._stages or [0.0] * len(STAGES)).reshape(-1, len(STAGES)) * 1000
        median, p99 = np.percentile(times, [50, 99], axis=0)
        return {stage: StageStats(float(median[i]), float(p99[i])) for i, stage in enumerate(STAGES)}
