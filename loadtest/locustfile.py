"""For Locust: three kinds of user, each of whom holds one conversation in real time and then goes.

`python -m loadtest` runs this against a server it starts; by itself:

    locust -f loadtest/locustfile.py --headless -u 32 -r 32 --host http://HOST:8998 --grpc HOST:8999 --face grpc

Users here only dial and count: who speaks is the process of `loadtest.callers`, one for all of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gevent
from gevent import subprocess
from gevent.queue import Queue
from locust import User, events, task
from locust.argument_parser import LocustArgumentParser
from locust.exception import StopUser
from locust.runners import Runner

from loadtest.plan import Plan, shares
from loadtest.record import Face

_QUESTION = Path(__file__).parents[1] / "tests" / "data" / "question.wav"


class NotAsItShouldBe(Exception):  # noqa: N818 - Locust shows the name
    """What a conversation failed of."""


class Caller(User):
    """Has one conversation."""

    abstract = True
    face: Face

    @task
    def converse(self) -> None:
        """Dial, and count what happens until it is over."""
        exchange: Exchange = self.environment.exchange
        for told in exchange.dial(self.face):
            self._count(told)
        exchange.hung_up()
        raise StopUser

    def _count(self, told: dict[str, Any]) -> None:
        match told["event"]:
            case "ready":
                self._fire("setup", told["ms"])
            case "frames":
                for ms in told["ms"]:
                    self._fire("frame", ms)
            case "answer":
                self._fire("answer", told["ms"], told)
            case "done" if "outcome" in told:
                if told["first_audio_ms"] is not None:
                    self._fire("first audio", told["first_audio_ms"])
                self._fire("conversation", None, told)
            case "lost":
                self._fire("conversation", None, {"reason": "the callers' process ended"})

    def _fire(self, name: str, milliseconds: float | None, told: dict[str, Any] | None = None) -> None:
        wrong = None
        if told is not None and told.get("outcome") != "completed":
            wrong = NotAsItShouldBe(told["reason"] or told["outcome"])
        elif told is not None and told.get("missing"):
            wrong = NotAsItShouldBe("frames are missing")
        self.environment.events.request.fire(
            request_type=self.face.value,
            name=name,
            response_time=milliseconds,
            response_length=0,
            exception=wrong,
            context={},
        )


class GrpcCaller(Caller):
    """Live, over gRPC."""

    face = Face.GRPC


class WebSocketCaller(Caller):
    """Live, over /v1/converse."""

    face = Face.WEBSOCKET


class RestCaller(Caller):
    """Asks recording by recording."""

    face = Face.REST


class Exchange:
    """The callers' process, and who of Locust's users is on which of its lines."""

    def __init__(self, plan: Plan, runner: Runner) -> None:
        self._runner = runner
        self._lines: dict[int, Queue[dict[str, Any]]] = {}
        self._left = plan.users
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.callers", plan.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        gevent.spawn(self._listen)

    def dial(self, face: Face) -> Any:
        """What is told about a new caller, as it is told, until it is done."""
        user = len(self._lines)
        self._lines[user] = told = Queue()
        self._process.stdin.write(json.dumps({"user": user, "face": face.value}) + "\n")
        self._process.stdin.flush()
        while True:
            event = told.get()
            yield event
            if event["event"] in ("done", "lost"):
                return

    def hung_up(self) -> None:
        """One user less; the last one ends the run, once the records are written."""
        self._left -= 1
        if not self._left:
            gevent.spawn(self._finish)

    def close(self) -> None:
        """End the callers' process."""
        if self._process.poll() is None:
            self._process.terminate()

    def _finish(self) -> None:
        self._process.wait()
        self._runner.quit()

    def _listen(self) -> None:
        for line in self._process.stdout:
            told = json.loads(line)
            self._lines[told["user"]].put(told)
        for line in self._lines.values():
            line.put({"event": "lost"})


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--grpc", default="127.0.0.1:8999", metavar="HOST:PORT", help="The server's gRPC port.")
    parser.add_argument("--face", default="grpc", choices=[*(face.value for face in Face), "mixed"])
    parser.add_argument("--seconds", type=float, default=60.0, help="How long everybody speaks.")
    parser.add_argument("--phases", default="spread", choices=["spread", "together"])
    parser.add_argument("--drain", type=float, default=2.0, help="Seconds for the last answers to come.")
    parser.add_argument("--recording", default=str(_QUESTION), help="What everybody says.")
    parser.add_argument("--records", default="records.json", help="File for what every caller noted down.")
    parser.add_argument("--api-key", default="", env_var="PERSONAPLEX_API_KEY", is_secret=True)


@events.init.add_listener
def _faces(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    wanted = shares(options.face, options.num_users or 1)
    for kind in environment.user_classes:
        kind.fixed_count = wanted.get(kind.face, 0)
    environment.user_classes = [kind for kind in environment.user_classes if kind.fixed_count]


@events.test_start.add_listener
def _connect(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    plan = Plan(
        server=environment.host or options.host,
        grpc=options.grpc,
        recording=options.recording,
        out=options.records,
        users=options.num_users or 1,
        seconds=options.seconds,
        phases=options.phases,
        drain=options.drain,
        api_key=options.api_key,
    )
    environment.exchange = Exchange(plan, environment.runner)


@events.test_stop.add_listener
def _disconnect(environment: Any, **_: Any) -> None:
    environment.exchange.close()
