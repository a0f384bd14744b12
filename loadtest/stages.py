"""A load shape for Locust: numbers of users in stages.

    locust -f loadtest/locustfile.py,loadtest/stages.py --stages 0-40:120,40:60,80:60

A stage is USERS:SECONDS, a step, or FROM-TO:SECONDS, a ramp. The run ends after the last stage. With
`--calls-per-minute` stages are of the rate at which calls arrive.
"""

from __future__ import annotations

import logging
from typing import Any

from locust import LoadTestShape, events
from locust.argument_parser import LocustArgumentParser

from loadtest.plan import Stage, users_at

# Faster than Locust recommends to spawn: a stage is a number of users, and a ramp has a stage's own rate.
_SPAWN_RATE = 100.0

log = logging.getLogger(__name__)


class Stages(LoadTestShape):
    """The stages of `--stages`."""

    def tick(self) -> tuple[int, float] | None:
        """For Locust."""
        assert self.runner is not None  # noqa: S101 - Locust sets it before the first tick
        try:
            options: Any = self.runner.environment.parsed_options
            stages = Stage.parse(options.stages)
        except ValueError as error:
            log.error("%s", error)
            self.runner.environment.process_exit_code = 2
            return None
        users = users_at(stages, self.get_run_time())  # type: ignore[no-untyped-call]
        return None if users is None else (users, _SPAWN_RATE)


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser) -> None:
    parser.add_argument(
        "--stages", default="1-10:60,10:60", help="Users in stages: USERS:SECONDS or FROM-TO:SECONDS, with commas."
    )
