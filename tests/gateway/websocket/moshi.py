"""The PyPI client `moshi.client`, unchanged, with a file for a microphone and a list for a loudspeaker."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

FRAME = 1920

Callback = Callable[[NDArray[np.float32], int, Any, Any], None]


def client_module() -> Any:
    """Import `moshi.client` without the package's `__init__`, which needs torch. Fails if it is not installed.

    `pip install --no-deps moshi==0.2.13 sphn aiohttp` is all it needs.
    """
    try:
        files = importlib.metadata.files("moshi") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.fail("moshi is not installed: pip install --no-deps moshi==0.2.13")
    (package,) = [file.locate() for file in files if str(file) == "moshi/__init__.py"]
    bare = ModuleType("moshi")
    bare.__path__ = [str(Path(str(package)).parent)]
    with mock.patch.dict(sys.modules, {"moshi": bare, "sounddevice": ModuleType("sounddevice")}):
        return importlib.import_module("moshi.client")


class Stream:
    """A sound device: a thread that calls the callback."""

    def __init__(self, work: Callable[[Callback], bool], callback: Callback) -> None:
        self._work = work
        self._callback = callback
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stopped.wait(0.005) and self._work(self._callback):
            pass

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join()


class SoundDevice:
    """The part of `sounddevice` that the client uses."""

    def __init__(self, recording: NDArray[np.float32]) -> None:
        """`recording` [T]: samples of the microphone."""
        self._frames: Iterator[NDArray[np.float32]] = iter(recording.reshape(-1, FRAME, 1))
        self.played: list[NDArray[np.float32]] = []

    def InputStream(self, *, samplerate: int, channels: int, blocksize: int, callback: Callback) -> Stream:  # noqa: N802
        assert (samplerate, channels, blocksize) == (24_000, 1, FRAME)

        def capture(target: Callback) -> bool:
            frame = next(self._frames, None)
            if frame is not None:
                target(frame, FRAME, None, None)
            return frame is not None

        return Stream(capture, callback)

    def OutputStream(self, *, samplerate: int, channels: int, blocksize: int, callback: Callback) -> Stream:  # noqa: N802
        assert (samplerate, channels, blocksize) == (24_000, 1, FRAME)

        def play(ask: Callback) -> bool:
            frame = np.full((FRAME, 1), np.nan, np.float32)
            ask(frame, FRAME, None, None)
            self.played.append(frame[:, 0])
            return True

        return Stream(play, callback)


class Printer:
    """Captures the output of the client."""

    def __init__(self) -> None:
        self.tokens: list[str] = []

    def print_token(self, token: str, color: str | None = None) -> None:
        self.tokens.append(token)

    def log(self, level: str, message: str) -> None:
        assert level != "error", message

    def print_header(self) -> None: ...

    def print_lag(self) -> None: ...

    def print_pending(self) -> None: ...


class Conversation:
    """Output and audio of the client."""

    def __init__(self, recording: NDArray[np.float32]) -> None:
        self.printer = Printer()
        self.device = SoundDevice(recording)

    @contextmanager
    def running(self, url: str) -> Iterator[None]:
        """The client, in a thread of its own, on the server at `url` (http://HOST:PORT)."""
        client = client_module()
        client.sd = self.device
        host, port = url.split("//")[1].split(":")
        asked = argparse.Namespace(host=host, port=int(port), https=False, url=None)
        loop = asyncio.new_event_loop()
        task = loop.create_task(client.run(self.printer, asked))

        def run() -> None:
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(task.cancel)
            thread.join()
            loop.close()
