"""Audio codecs of gRPC live sessions, in the format the client chooses in `start`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.audio.opus import OpusDecoder, OpusEncoder
from gateway.audio.samples import Floats
from gateway.audio.stream import PCM_ENCODINGS, PcmFormat, PcmReader, check_rate, to_bytes
from gateway.errors import AudioError, InvalidRequest

_PCM: dict[int, PcmFormat] = {
    pb.AUDIO_FORMAT_UNSPECIFIED: "pcm_s16le",
    pb.AUDIO_FORMAT_PCM_S16LE: "pcm_s16le",
    pb.AUDIO_FORMAT_PCM_F32LE: "pcm_f32le",
}


class PcmCodec:
    """PCM in both directions. The client's sample rate may differ from the model's."""

    def __init__(self, audio_format: PcmFormat, sample_rate: int, model_rate: int) -> None:
        reader = PcmReader(audio_format, sample_rate, model_rate)
        self.decode = reader.read
        self.finish = reader.finish
        self.encoding = PCM_ENCODINGS[audio_format]
        self.plain_int16 = audio_format == "pcm_s16le" and sample_rate == model_rate
        """Whether samples are 16-bit integers at the model's rate, which need no reader."""
        self.wire_format = pb.AUDIO_FORMAT_PCM_F32LE if audio_format == "pcm_f32le" else pb.AUDIO_FORMAT_PCM_S16LE
        self._format = audio_format

    def encode(self, pcm: Floats) -> bytes:
        """Encode an agent frame [1920] as the data of one message."""
        return to_bytes(pcm, self._format)


class OpusCodec:
    """One Opus packet per message, in both directions."""

    encoding = None
    plain_int16 = False
    wire_format = pb.AUDIO_FORMAT_OPUS

    def __init__(self) -> None:
        self.decode = OpusDecoder().decode
        self.encode = OpusEncoder().encode

    def finish(self) -> Floats:
        """Return no samples: each packet is decoded whole."""
        return np.empty(0, np.float32)


AudioCodec = PcmCodec | OpusCodec


def choose_codec(start: pb.Start, model_rate: int) -> Callable[[], AudioCodec]:
    """What makes the codec for the format of `start`, once the session is admitted.

    Raises InvalidRequest if the format is not supported.
    """
    if start.format == pb.AUDIO_FORMAT_OPUS:
        if start.HasField("sample_rate"):
            raise InvalidRequest("expected no sample_rate: Opus packets state theirs", "sample_rate")
        return OpusCodec
    if (pcm := _PCM.get(start.format)) is None:
        raise InvalidRequest(f"expected a value of AudioFormat, got {start.format}", "format")
    sample_rate = start.sample_rate if start.HasField("sample_rate") else model_rate
    try:
        check_rate(sample_rate)
    except AudioError as error:
        raise InvalidRequest(error.message, "sample_rate") from None
    return partial(PcmCodec, pcm, sample_rate, model_rate)
