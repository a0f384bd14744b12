from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.triton_server import TritonServer
from loadtest.bench.service.libraries import calls_to_triton, largest_message, opus_in_ogg
from loadtest.bench.service.overhead import EchoModels


def test_every_client_of_triton_gets_the_right_answer_and_is_measured(tmp_path: Path) -> None:
    with TritonServer(EchoModels.write(tmp_path)) as server:
        measured = asyncio.run(calls_to_triton(server, calls=2, rounds=1))
    assert list(measured) == [1, 24]
    for clients in measured.values():
        assert set(clients) == {"gateway", "aiohttp", "tritonclient, gRPC"}
        assert all(wall > 0 for wall, _ in clients.values())


def test_ogg_is_read_and_written_by_both() -> None:
    found = opus_in_ogg(frames=3, rounds=1)
    assert set(found) == {"gateway", "sphn"}
    assert all(seconds > 0 for pair in found.values() for seconds in pair)
    assert "s of audio" in largest_message()["gateway"]
