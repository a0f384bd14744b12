"""Locust users, one class per API. Each holds one conversation in real time and then stops.

`python -m loadtest` runs this against a server it starts. Without it:

    locust -f loadtest/locustfile.py --headless -u 32 -r 32 --host http://HOST:8998 --grpc HOST:8999 --api grpc

These users only start conversations and count: `loadtest.users`, one process for all, holds the conversations.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import gevent
from gevent import subprocess
from gevent.queue import Queue
from locust import User, events, task
from locust.argument_parser import LocustArgumentParser
from locust.exception import StopUser
from locust.runners import Runner

from loadtest.paths import RECORDING
from loadtest.plan import Plan, shares
from loadtest.record import Api


class ConversationFailed(Exception):  # noqa: N818 - Locust shows the name
    """Why a conversation failed."""


class ConversationUser(User):
    """Holds one conversation."""

    abstract = True
    api: Api

    @task
    def converse(self) -> None:
        """Start a conversation and count its events until it is over."""
        users: UserProcess = self.environment.user_process
        for event in users.start(self.api):
            self._count(event)
        users.finished()
        raise StopUser

    def _count(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "ready":
                self._fire("setup", event["ms"])
            case "frames":
                for ms in event["ms"]:
                    self._fire("frame", ms)
            case "response":
                self._fire("response", event["ms"], event)
            case "done" if "outcome" in event:
                if event["first_audio_ms"] is not None:
                    self._fire("first audio", event["first_audio_ms"])
                self._fire("conversation", None, event)
            case "lost":
                self._fire("conversation", None, {"reason": "the process of the users ended"})

    def _fire(self, name: str, milliseconds: float | None, event: dict[str, Any] | None = None) -> None:
        error = None
        if event is not None and event.get("outcome") != "completed":
            error = ConversationFailed(event["reason"] or event["outcome"])
        elif event is not None and event.get("missing"):
            error = ConversationFailed("frames are missing")
        self.environment.events.request.fire(
            request_type=self.api.value,
            name=name,
            response_time=milliseconds,
            response_length=0,
            exception=error,
            context={},
        )


class GrpcUser(ConversationUser):
    """A live conversation over gRPC."""

    api = Api.GRPC


class WebSocketUser(ConversationUser):
    """A live conversation over the WebSocket /v1/converse."""

    api = Api.WEBSOCKET


class LiveApiUser(ConversationUser):
    """A live conversation over the OpenAI Live API."""

    api = Api.LIVE


class RealtimeUser(ConversationUser):
    """A live conversation over the OpenAI Realtime API."""

    api = Api.REALTIME


class TwilioUser(ConversationUser):
    """A telephone call as Twilio connects it."""

    api = Api.TWILIO


class RestUser(ConversationUser):
    """Sends recordings, one after the other."""

    api = Api.REST


class UserProcess:
    """The process of `loadtest.users`, and a queue of its events for each user."""

    def __init__(self, plan: Plan, runner: Runner) -> None:
        self._runner = runner
        self._events: dict[int, Queue[dict[str, Any]]] = {}
        self._left = plan.users
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.users", plan.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        gevent.spawn(self._read)

    def start(self, api: Api) -> Any:
        """Start a user; yield its events until it is done."""
        user = len(self._events)
        self._events[user] = events = Queue()
        self._process.stdin.write(json.dumps({"user": user, "api": api.value}) + "\n")
        self._process.stdin.flush()
        while True:
            event = events.get()
            yield event
            if event["event"] in ("done", "lost"):
                return

    def finished(self) -> None:
        """A user has finished; the last one ends the run once the records are written."""
        self._left -= 1
        if not self._left:
            gevent.spawn(self._finish)

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.terminate()

    def _finish(self) -> None:
        self._process.wait()
        self._runner.quit()

    def _read(self) -> None:
        for line in self._process.stdout:
            event = json.loads(line)
            self._events[event["user"]].put(event)
        for queue in self._events.values():
            queue.put({"event": "lost"})


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--grpc", default="127.0.0.1:8999", metavar="HOST:PORT", help="The server's gRPC port.")
    parser.add_argument(
        "--api", default="grpc", choices=[*(api.value for api in Api), "mixed"], help="The API users connect to."
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="How long users send.")
    parser.add_argument("--phases", default="spread", choices=["spread", "together"])
    parser.add_argument("--drain", type=float, default=2.0, help="Seconds for the last frames to arrive.")
    parser.add_argument("--recording", default=str(RECORDING), help="What users send.")
    parser.add_argument("--records", default="records.json", help="File for the records of all users.")
    parser.add_argument("--api-key", default="", env_var="PERSONAPLEX_API_KEY", is_secret=True)


@events.init.add_listener
def _select_users(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    counts = shares(options.api, options.num_users or 1)
    for kind in environment.user_classes:
        kind.fixed_count = counts.get(kind.api, 0)
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
    environment.user_process = UserProcess(plan, environment.runner)


@events.test_stop.add_listener
def _disconnect(environment: Any, **_: Any) -> None:
    environment.user_process.close()
