"""Locust users, one class per API, who hold calls in real time.

    locust -f loadtest/locustfile.py GrpcUser --host https://HOST -u 100 -r 2 --length 30-300

All of Locust works with it: the web UI, `--master` and `--worker`, load shapes. docs/loadtest.md has the options.
`python -m loadtest` runs it against a server that it starts.

These users only begin calls and count: `loadtest.users`, one process per worker, holds the calls. At the end of a run
the workers send their records to the master, which writes the report.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import gevent
from gevent import subprocess
from gevent.event import Event
from locust import User, events, runners, task
from locust.argument_parser import LocustArgumentParser
from locust.exception import StopUser
from locust.runners import LocalRunner, MasterRunner, Runner, WorkerRunner

from gateway.cli.console import CommandError
from loadtest.paths import RECORDING
from loadtest.plan import STARTS, Plan, call_lengths
from loadtest.record import Api
from loadtest.result import RUN_FILE

_END, _RECORDS, _ENDED = "personaplex-end", "personaplex-records", "personaplex-ended"
"""Messages: the master ends the calls of its workers; a worker sends records; it has sent all of them."""

_RECORDS_PER_MESSAGE = 50
# After the drain, for the records to arrive.
_RECORDS_S = 30.0
_POLL_S = 0.5
# Of the seeds of two workers.
_SEEDS = 1_000_000

log = logging.getLogger(__name__)

# Seconds without a heartbeat until a worker is missing, and the run stops. If the machine of a worker is busy, the run
# is to go on and show the lateness of the client.
runners.HEARTBEAT_LIVENESS = 15


class CallFailed(Exception):  # noqa: N818 - Locust shows the name
    """Why a call failed."""


class CallUser(User):
    """Makes calls: one after the other, or at random times."""

    abstract = True
    api: Api

    @task
    def make_calls(self) -> None:
        """Make calls until the user is stopped or has made `--calls`."""
        if self.environment.calls is None:
            raise StopUser
        options = self.environment.parsed_options
        self._own: set[int] = set()
        for number in itertools.count(1):
            if options.calls_per_minute:
                gevent.sleep(self.environment.calls.draw.expovariate(options.calls_per_minute / 60))
                gevent.spawn(self._call)
                continue
            self._call(last=number == options.calls)
            if number == options.calls:
                raise StopUser
            gevent.sleep(options.pause)

    def on_stop(self) -> None:
        """For Locust: end the calls in progress."""
        for number in self._own:
            self.environment.calls.stop(number)

    def _call(self, last: bool = False) -> None:
        """Make a call and wait until its time is over, also if it was refused or failed and is not the last one."""
        calls: Calls = self.environment.calls
        seconds, began = calls.length(), time.monotonic()
        number, over = calls.begin(self.api, seconds)
        self._own.add(number)
        over.wait()
        if not last:
            gevent.sleep(max(0.0, began + seconds - time.monotonic()))
        self._own.discard(number)


class GrpcUser(CallUser):
    """Live calls over gRPC."""

    api = Api.GRPC


class WebSocketUser(CallUser):
    """Live calls over the WebSocket /v1/converse."""

    api = Api.WEBSOCKET


class LiveApiUser(CallUser):
    """Live calls over the OpenAI Live API."""

    api = Api.LIVE


class RealtimeUser(CallUser):
    """Live calls over the OpenAI Realtime API."""

    api = Api.REALTIME


class TwilioUser(CallUser):
    """Telephone calls as Twilio connects them."""

    api = Api.TWILIO


class RestUser(CallUser):
    """Sends recordings, one after the other."""

    api = Api.REST


class Calls:
    """The calls of this process's users: the process that holds them, and what it reports."""

    def __init__(self, plan: Plan, length: str, environment: Any) -> None:
        runner: LocalRunner | WorkerRunner = environment.runner
        self._environment = environment
        self.draw = random.Random(runner.worker_index)
        self.length = call_lengths(length, self.draw)
        self._seed = max(runner.worker_index, 0) * _SEEDS
        self.begun = 0
        self._ending = False
        self._calls: dict[int, tuple[Api, Event]] = {}
        self._records: list[dict[str, Any]] = []
        self._over: dict[str, Any] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.users"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        # Other users of the machine can read a command line, and the plan has the API key.
        self._process.stdin.write(plan.to_json() + "\n")
        self._reading = gevent.spawn(self._read)

    def begin(self, api: Api, seconds: float) -> tuple[int, Event]:
        """Begin a call; return its number, and an event that is set when it is over. None begins once a run ends."""
        number, self.begun = self.begun, self.begun + 1
        over = Event()
        if self._ending:
            over.set()
        else:
            self._calls[number] = api, over
            self._command(call=number, user=self._seed + number, api=api.value, seconds=seconds)
        return number, over

    def stop(self, number: int) -> None:
        """End a call."""
        self._command(stop=number)

    def start(self) -> None:
        """All users are spawned: let the calls start that wait for each other."""
        while self.begun < self._environment.runner.user_count and not self._ending:
            gevent.sleep(_POLL_S / 10)
        self._command(start=True)

    def end(self) -> None:
        """End all calls and send their records to the master."""
        self._ending = True
        self._process.stdin.close()
        self._reading.join()
        if self._records:
            self._send_records()
        self._environment.runner.send_message(_ENDED, self._over)

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.terminate()

    def _command(self, **command: object) -> None:
        # Once the calls end, Locust stops the users too.
        if not self._ending and self._process.poll() is None:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        for line in self._process.stdout:
            event = json.loads(line)
            if event["event"] == "record":
                self._records.append(event["record"])
                if len(self._records) == _RECORDS_PER_MESSAGE:
                    self._send_records()
            elif event["event"] == "over":
                self._over = event
            else:
                self._count(event)
        for api, over in self._calls.values():
            self._fire(api, "call", None, "the process of the calls ended")
            over.set()

    def _send_records(self) -> None:
        self._environment.runner.send_message(_RECORDS, {"records": self._records})
        self._records = []

    def _count(self, event: dict[str, Any]) -> None:
        """Count an event in Locust's statistics."""
        api, over = self._calls[event["call"]]
        error = None
        if event.get("outcome") in ("refused", "failed"):
            error = event["reason"] or event["outcome"]
        elif event.get("missing"):
            error = "frames are missing"
        match event["event"]:
            case "ready":
                self._fire(api, "setup", event["ms"])
            case "frames":
                for ms in event["ms"]:
                    self._fire(api, "frame", ms)
            case "response":
                self._fire(api, "response", event["ms"], error)
            case "done":
                if event.get("first_audio_ms") is not None:
                    self._fire(api, "first audio", event["first_audio_ms"])
                if "outcome" in event:
                    self._fire(api, "call", None, error)
                del self._calls[event["call"]]
                over.set()

    def _fire(self, api: Api, name: str, milliseconds: float | None, error: str | None = None) -> None:
        self._environment.events.request.fire(
            request_type=api.value,
            name=name,
            response_time=milliseconds,
            response_length=0,
            exception=CallFailed(error) if error else None,
            context={},
        )


class Run:
    """At the master, or without one: a run from its start to its report."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._options = environment.parsed_options
        self._began = datetime.now()
        self._records: list[dict[str, Any]] = []
        self._workers: dict[str, dict[str, Any]] = {}
        self._ending = False
        self.spawned = False
        self.page: Path | None = None

    def add_records(self, message: Any) -> None:
        """A worker has sent records."""
        self._records += message.data["records"]

    def add_worker(self, message: Any) -> None:
        """A worker has sent all its records."""
        self._workers[message.node_id] = message.data

    def end(self) -> None:
        """End the calls of all workers, collect the records, and write them and the report."""
        if self._ending:
            return
        self._ending = True
        runner: Runner = self._environment.runner
        # Workers too that Locust takes to be missing: a busy machine delays their heartbeats.
        workers = len(runner.clients) if isinstance(runner, MasterRunner) else 1
        until = time.monotonic() + self._options.drain + _RECORDS_S
        runner.send_message(_END)
        while len(self._workers) < workers and time.monotonic() < until:
            gevent.sleep(_POLL_S / 10)
        if len(self._workers) < workers:
            log.error("%d of %d workers sent no records", workers - len(self._workers), workers)
        self._write()

    def end_with_the_last_user(self) -> None:
        """Stop the run once all users have made their calls."""
        runner: Runner = self._environment.runner
        while not self.spawned or runner.user_count:
            gevent.sleep(_POLL_S)
        if not self._ending:
            _stop(self._environment)

    def _write(self) -> None:
        options = self._options
        folder = _fresh(Path(options.out or f"build/loadtest/{self._began:%Y%m%d-%H%M%S}"))
        plan = _plan(self._environment)
        run = {
            "server": plan.server,
            "grpc": plan.grpc_url,
            "began": f"{self._began:%Y-%m-%d %H:%M:%S}",
            "length": options.length,
            "calls_per_minute": options.calls_per_minute,
            "starts": plan.starts,
            "workers": [
                {name: worker.get(name) for name in ("began", "cpu_seconds")} for worker in self._workers.values()
            ],
            "records": self._records,
        }
        (folder / RUN_FILE).write_text(json.dumps(run))
        if options.records_only:
            return
        # In a process of its own, so that the workers' heartbeats are answered meanwhile.
        if subprocess.run([sys.executable, "-m", "loadtest.report", str(folder)]).returncode == 0:
            self.page = folder / "report.html"
            log.info("report: %s", self.page)


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser) -> None:
    parser.add_argument(
        "--grpc", default="", metavar="HOST:PORT",
        help="The server's gRPC port, or its URL. [default: port 8999 of the host, with TLS if its URL is https]",
    )  # fmt: skip
    parser.add_argument("--length", default="60", help="Seconds of a call: 60, 30-90 (uniform) or ~120 (exponential).")
    parser.add_argument("--calls", type=int, default=0, help="Calls of a user. [default: until the run is stopped]")
    parser.add_argument("--pause", type=float, default=0.0, help="Seconds between two calls of a user.")
    parser.add_argument(
        "--calls-per-minute", type=float, default=0.0,
        help="Each user begins calls at random times (a Poisson process), also while earlier ones last.",
    )  # fmt: skip
    parser.add_argument("--starts", default="admitted", choices=STARTS, help="When calls begin to send.")
    parser.add_argument("--drain", type=float, default=2.0, help="Seconds for the last frames to arrive.")
    parser.add_argument("--recording", default="", help="File that users send. [default: a recorded question]")
    parser.add_argument("--api-key", default="", env_var="PERSONAPLEX_API_KEY", is_secret=True)
    parser.add_argument("--out", default="", metavar="FOLDER", include_in_web_ui=False, help="Folder for the report.")
    parser.add_argument("--records-only", action="store_true", include_in_web_ui=False, help="Write no report.")


def _plan(environment: Any) -> Plan:
    options = environment.parsed_options
    return Plan(
        server=(environment.host or "").rstrip("/"),
        grpc=options.grpc,
        recording=options.recording or str(RECORDING),
        # Calls at random times do not wait for each other.
        starts="admitted" if options.calls_per_minute else options.starts,
        drain=options.drain,
        api_key=options.api_key,
    )


def _stop(environment: Any) -> None:
    if environment.parsed_options.headless:
        environment.runner.quit()
    else:
        environment.runner.stop()


def _fresh(folder: Path) -> Path:
    """Create `folder`, or one with the next number, so that no result is overwritten."""
    for name in itertools.chain([folder.name], (f"{folder.name}-{number}" for number in itertools.count(2))):
        try:
            folder.with_name(name).mkdir(parents=True)
        except FileExistsError:
            if not any(folder.with_name(name).glob("*.json")):
                return folder.with_name(name)
        else:
            return folder.with_name(name)
    raise AssertionError


@events.init.add_listener
def _init(environment: Any, runner: Runner, web_ui: Any, **_: Any) -> None:
    environment.run = environment.calls = None
    environment.begun = Event()
    if not isinstance(runner, WorkerRunner):
        runner.register_message(_RECORDS, lambda msg, **_: environment.run.add_records(msg))
        runner.register_message(_ENDED, lambda msg, **_: environment.run.add_worker(msg))
    if not isinstance(runner, MasterRunner):

        def end(**_: Any) -> None:
            # A short run can end while its process is being started.
            environment.begun.wait()
            environment.calls.end()

        runner.register_message(_END, end, concurrent=True)
    if web_ui is not None:
        _add_page(environment, web_ui)

    def spawned(**_: Any) -> None:
        if environment.run is not None:
            environment.run.spawned = True
        if environment.calls is not None:
            gevent.spawn(environment.calls.start)

    environment.events.spawning_complete.add_listener(spawned)


def _add_page(environment: Any, web_ui: Any) -> None:
    @web_ui.app.route("/report")
    @web_ui.auth_required_if_enabled
    def report() -> Any:
        """The report of the last run."""
        page = environment.run and environment.run.page
        return page.read_text() if page else ("No run has ended yet.", 404)


@events.test_start.add_listener
def _begin(environment: Any, **_: Any) -> None:
    environment.run = environment.calls = None
    environment.begun.clear()
    runner, options = environment.runner, environment.parsed_options
    try:
        plan = _plan(environment)
        plan.check()
        call_lengths(options.length, random.Random())
    except CommandError as error:
        log.error("%s", error)
        environment.process_exit_code = 2
        gevent.spawn(_stop, environment)
        return
    if not isinstance(runner, WorkerRunner):
        environment.run = Run(environment)
        if options.calls:
            gevent.spawn(environment.run.end_with_the_last_user)
    if not isinstance(runner, MasterRunner):
        environment.calls = Calls(plan, options.length, environment)
        environment.begun.set()


@events.test_stopping.add_listener
def _end(environment: Any, **_: Any) -> None:
    if environment.run is not None:
        environment.run.end()


@events.test_stop.add_listener
def _close(environment: Any, **_: Any) -> None:
    if environment.calls is not None:
        environment.calls.close()
