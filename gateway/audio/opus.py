"""Opus packets (RFC 6716) to and from 24 kHz mono float32.

libopus decodes to 24 kHz itself, without a resampler and its delay, as in the reference. PyAV's wheel contains it, but
its decoder interface uses 48 kHz, so libopus is called directly.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from gateway.audio.samples import Floats
from gateway.errors import AudioError

SAMPLE_RATE = 24_000
# A packet lasts 120 ms at most (RFC 6716 section 3.2.5).
MAX_PACKET_SAMPLES = SAMPLE_RATE * 120 // 1000
# 48 frames of 1275 bytes, and their lengths.
MAX_PACKET_BYTES = 61_440

_VOIP = 2048
_GET_LOOKAHEAD = 4027
_MONO = 1
# libopus chooses about 250 bytes for 80 ms of speech.
_ENCODED_BYTES = 4096

_Samples = ctypes.POINTER(ctypes.c_float)


class OpusDecoder:
    """Decode one stream of packets, mono or stereo. The state carries over between packets."""

    def __init__(self) -> None:
        self._library = _library()
        self._state = _State(self._library.opus_decoder_create(SAMPLE_RATE, _MONO, None), "opus_decoder_destroy")
        self._samples = np.empty(MAX_PACKET_SAMPLES, np.float32)
        self._address = self._samples.ctypes.data_as(_Samples)

    def decode(self, packet: bytes) -> Floats:
        """Decode one packet to [T] float32 at 24 kHz, 60 to 2880 samples. Raises AudioError for an invalid packet."""
        if not 0 < len(packet) <= MAX_PACKET_BYTES:
            raise AudioError(f"expected an Opus packet of 1 to {MAX_PACKET_BYTES} bytes, got {len(packet)}")
        made = self._library.opus_decode_float(
            self._state.pointer, packet, len(packet), self._address, MAX_PACKET_SAMPLES, 0
        )
        if made < 0:
            raise AudioError(f"expected an Opus packet: {_reason(made)}")
        return self._samples[:made].copy()


class OpusEncoder:
    """Encode one stream of frames as speech, at the bit rate libopus chooses (about 25 kbit/s)."""

    def __init__(self) -> None:
        self._library = _library()
        self._state = _State(self._library.opus_encoder_create(SAMPLE_RATE, _MONO, _VOIP, None), "opus_encoder_destroy")
        self._packet = ctypes.create_string_buffer(_ENCODED_BYTES)

    @property
    def lookahead(self) -> int:
        """Delay of decoded audio in samples at 24 kHz."""
        samples = ctypes.c_int32()
        self._library.opus_encoder_ctl(self._state.pointer, _GET_LOOKAHEAD, ctypes.byref(samples))
        return samples.value

    def encode(self, frame: Floats) -> bytes:
        """Encode a frame [T] float32 at 24 kHz as one packet; T is 1920 or another valid Opus frame length."""
        samples = np.ascontiguousarray(frame, np.float32)
        size = self._library.opus_encode_float(
            self._state.pointer, samples.ctypes.data_as(_Samples), len(samples), self._packet, _ENCODED_BYTES
        )
        if size < 0:
            raise ValueError(f"{len(samples)} samples are no Opus packet: {_reason(size)}")
        return self._packet.raw[:size]


class _State:
    """Memory allocated by libopus, freed with this object."""

    def __init__(self, pointer: int | None, destroy: str) -> None:
        if not pointer:
            raise MemoryError("libopus has no memory for another stream")
        self.pointer = pointer
        self._destroy = getattr(_library(), destroy)

    def __del__(self) -> None:
        if hasattr(self, "_destroy"):
            self._destroy(self.pointer)


def _reason(code: int) -> str:
    return str(_library().opus_strerror(code).decode())


@cache
def _library() -> ctypes.CDLL:
    """Load libopus once and declare its functions."""
    path = _bundled() or ctypes.util.find_library("opus")
    if path is None:
        raise ImportError("libopus is missing: install PyAV's wheel (pip install av), or the system's libopus")
    library = ctypes.CDLL(path)
    state, number = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("opus_decoder_create", state, (number, number, ctypes.c_void_p)),
        ("opus_decode_float", number, (state, ctypes.c_char_p, number, _Samples, number, number)),
        ("opus_decoder_destroy", None, (state,)),
        ("opus_encoder_create", state, (number, number, number, ctypes.c_void_p)),
        ("opus_encode_float", number, (state, _Samples, number, ctypes.c_char_p, number)),
        ("opus_encoder_ctl", number, (state, number)),
        ("opus_encoder_destroy", None, (state,)),
        ("opus_strerror", ctypes.c_char_p, (number,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _bundled() -> str | None:
    """Find libopus in PyAV's wheel: beside the package on Linux, in its .dylibs on macOS."""
    spec = find_spec("av")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    found = [*package.parent.glob("av.libs/libopus*.so*"), *package.glob(".dylibs/libopus*.dylib")]
    return str(found[0]) if found else None
