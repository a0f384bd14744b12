"""Pipecat's serializers of telephone services, which stand where this server stands. Runs in an environment of its own.

Usage: pipecat_phones.py SERVICE AUDIO KEY. AUDIO and KEY: messages of the service, base64 if binary.
Prints one line of JSON: what Pipecat reads, and what it sends for 80 ms of audio at 8 kHz.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from typing import Any

from pipecat.frames.frames import InputAudioRawFrame, InputDTMFFrame, OutputAudioRawFrame
from pipecat.serializers.plivo import PlivoFrameSerializer
from pipecat.serializers.telnyx import TelnyxFrameSerializer
from pipecat.serializers.twilio import TwilioFrameSerializer
from pipecat.serializers.vonage import VonageFrameSerializer

RATE = 8_000


def made(service: str) -> Any:
    if service == "twilio":
        options = TwilioFrameSerializer.InputParams(sample_rate=RATE, auto_hang_up=False)
        return TwilioFrameSerializer("MZ1", params=options)
    if service == "telnyx":
        options = TelnyxFrameSerializer.InputParams(sample_rate=RATE, auto_hang_up=False)
        return TelnyxFrameSerializer("S1", "PCMU", "PCMU", params=options)
    if service == "plivo":
        options = PlivoFrameSerializer.InputParams(sample_rate=RATE, auto_hang_up=False)
        return PlivoFrameSerializer("s", params=options)
    return VonageFrameSerializer(VonageFrameSerializer.InputParams(vonage_sample_rate=RATE, sample_rate=RATE))


class Setup:
    """The part of a pipeline's setup that serializers read."""

    audio_in_sample_rate = audio_out_sample_rate = RATE


async def main(service: str, audio: str, key: str) -> dict[str, Any]:
    serializer = made(service)
    await serializer.setup(Setup())
    heard = await serializer.deserialize(base64.b64decode(audio) if service == "vonage" else audio)
    pressed = await serializer.deserialize(key)
    assert isinstance(heard, InputAudioRawFrame)
    assert isinstance(pressed, InputDTMFFrame)
    frame = OutputAudioRawFrame(audio=bytes(2 * 640), sample_rate=RATE, num_channels=1)
    sent = await serializer.serialize(frame)
    return {
        "heard": base64.b64encode(heard.audio).decode(),
        "key": pressed.button.value,
        "sent": sent if isinstance(sent, str) else base64.b64encode(sent).decode(),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
