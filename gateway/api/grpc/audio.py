"""A live call's audio on the wire, in the format its caller chose."""

from __future__ import annotations

import numpy as np

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.audio.opus import OpusDecoder, OpusEncoder
from gateway.audio.stream import PcmFormat, PcmReader, to_bytes
from gateway.engine.backend import Floats
from gateway.errors import AudioError, InvalidRequest

_PCM: dict[int, PcmFormat] = {
    pb.AUDIO_FORMAT_UNSPECIFIED: "pcm_s16le",
    pb.AUDIO_FORMAT_PCM_S16LE: "pcm_s16le",
    pb.AUDIO_FORMAT_PCM_F32LE: "pcm_f32le",
}


class PcmAudio:
    """Samples as they are; the caller's may have another rate than the models'."""

    def __init__(self, audio_format: PcmFormat, sample_rate: int, model_rate: int) -> None:
        """Raises AudioError for a rate that is not read."""
        self._format = audio_format
        self._reader = PcmReader(audio_format, sample_rate, model_rate)
        self.kind = pb.AUDIO_FORMAT_PCM_F32LE if audio_format == "pcm_f32le" else pb.AUDIO_FORMAT_PCM_S16LE

    def read(self, data: bytes) -> Floats:
        """One message -> [T] float32 at the models' rate. Raises AudioError."""
        return self._reader.read(data)

    def finish(self) -> Floats:
        """What the last messages still give, [T] float32."""
        return self._reader.finish()

    def write(self, frame: Floats) -> bytes:
        """An agent frame [1920] -> what goes into a message."""
        return to_bytes(frame, self._format)


class OpusAudio:
    """One packet per message, both ways."""

    kind = pb.AUDIO_FORMAT_OPUS

    def __init__(self) -> None:
        self._decoder = OpusDecoder()
        self._encoder = OpusEncoder()

    def read(self, data: bytes) -> Floats:
        """One packet -> [T] float32 at 24 kHz. Raises AudioError."""
        return self._decoder.decode(data)

    def finish(self) -> Floats:
        """Nothing: a packet is heard whole."""
        return np.empty(0, np.float32)

    def write(self, frame: Floats) -> bytes:
        """An agent frame [1920] -> one packet."""
        return self._encoder.encode(frame)


CallAudio = PcmAudio | OpusAudio


def chosen_audio(start: pb.Start, model_rate: int) -> CallAudio:
    """What `start` asks for. Raises InvalidRequest for what there is not."""
    if start.format == pb.AUDIO_FORMAT_OPUS:
        if start.HasField("sample_rate"):
            raise InvalidRequest("expected no sample_rate: Opus packets say theirs", "sample_rate")
        return OpusAudio()
    if (pcm := _PCM.get(start.format)) is None:
        raise InvalidRequest(f"expected a value of AudioFormat, got {start.format}", "format")
    try:
        return PcmAudio(pcm, start.sample_rate if start.HasField("sample_rate") else model_rate, model_rate)
    except AudioError as error:
        raise InvalidRequest(error.message, "sample_rate") from None
