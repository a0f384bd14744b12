"""The simulation: events in the order of time, one balancer at a time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

_WARM_UP_CALLS = 5
"""Mean lengths of a call until the fleet, which is empty at first, is as full as later on."""
_RETURN_S = 60.0
"""Seconds until a pod that failed or drained is replaced."""
_UNUSABLE = np.iinfo(np.int64).max
"""Calls of a pod that takes none."""


@dataclass(frozen=True)
class Load:
    """What a fleet has to carry.

    pods, slots: size of the fleet. load: mean calls in progress over all slots, if none were refused. call: mean length
    in seconds. burst: mean number of calls that arrive together. failures, drains: per pod and hour. calls: simulated.
    """

    pods: int
    slots: int
    load: float
    call: float = 180.0
    burst: float = 1.0
    failures: float = 0.0
    drains: float = 0.0
    calls: int = 100_000


@dataclass
class Refusals:
    """Calls that were refused: `wrong` while a pod had a free slot, `full` while none had. `cut`: ended by failures."""

    calls: int = 0
    full: int = 0
    wrong: int = 0
    cut: int = 0
    attempts: int = 0


class Fleet:
    """The pods: calls in progress, whether each takes calls, and the calls that each balancer's replica knows of."""

    def __init__(self, pods: int, slots: int, replicas: int) -> None:
        self.slots = slots
        self.taken = [0] * pods
        self.usable = np.ones(pods, bool)
        self.known = [np.zeros(pods, np.int64) for _ in range(replicas)]
        self.generation = [0] * pods
        """Counts the failures: calls of an earlier generation have ended."""
        self.free = pods * slots

    def accepts(self, pod: int) -> bool:
        """Whether the pod would take a call."""
        return bool(self.usable[pod]) and self.taken[pod] < self.slots


Attempts = Callable[[Fleet, int, random.Random], Iterator[int]]
"""Yields the pods that a balancer's replica tries, one after the other."""


def at_random(fleet: Fleet, _replica: int, draw: random.Random) -> Iterator[int]:
    """One pod at random. Its readiness is known, so that it is not one that drains."""
    pods = len(fleet.taken)
    while True:
        pod = draw.randrange(pods)
        if fleet.usable[pod]:
            yield pod
            return


def least_connections(retries: int) -> Attempts:
    """The usable pod with the fewest known calls, then again without the pod of the attempt before, as HAProxy does."""

    def attempts(fleet: Fleet, replica: int, draw: random.Random) -> Iterator[int]:
        calls = np.where(fleet.usable, fleet.known[replica], _UNUSABLE)
        others = calls
        for _ in range(retries + 1):
            fewest = others.min()
            if fewest == _UNUSABLE:
                return
            pod = int(draw.choice(np.flatnonzero(others == fewest)))
            yield pod
            others = calls.copy()
            others[pod] = _UNUSABLE

    return attempts


def round_robin(retries: int) -> Attempts:
    """The usable pods in turn. Each replica has a turn of its own."""
    turns: dict[int, int] = {}

    def attempts(fleet: Fleet, replica: int, draw: random.Random) -> Iterator[int]:
        pods = len(fleet.taken)
        at = turns.setdefault(replica, draw.randrange(pods))
        tried = 0
        for _ in range(pods):
            at = (at + 1) % pods
            turns[replica] = at
            if fleet.usable[at]:
                yield at
                tried += 1
                if tried > retries:
                    return

    return attempts


def allocator(fleet: Fleet, _replica: int, draw: random.Random) -> Iterator[int]:
    """A pod with a free slot, if there is one: the first from a random one on."""
    pods = len(fleet.taken)
    start = draw.randrange(pods)
    for step in range(pods):
        if fleet.accepts(pod := (start + step) % pods):
            yield pod
            return


def simulate(load: Load, attempts: Attempts, replicas: int = 2, seed: int = 1) -> Refusals:
    """Simulate `load.calls` calls and count the refused ones."""
    draw, refusals = random.Random(seed), Refusals()
    fleet = Fleet(load.pods, load.slots, replicas)
    events: list[tuple[float, int, str, tuple[int, ...]]] = []
    order = count()

    def schedule(at: float, kind: str, *about: int) -> None:
        heapq.heappush(events, (at, next(order), kind, about))

    bursts = load.load * load.pods * load.slots / load.call / load.burst
    schedule(draw.expovariate(bursts), "arrive")
    for kind, rate in (("fail", load.failures), ("drain", load.drains)):
        if rate:
            schedule(draw.expovariate(rate * load.pods / 3600), kind)
    warm = False
    while not warm or refusals.calls < load.calls:
        now, _, kind, about = heapq.heappop(events)
        if not warm and now > _WARM_UP_CALLS * load.call:
            refusals, warm = Refusals(), True
        if kind == "arrive":
            size = 1 if load.burst == 1 else 1 + int(draw.expovariate(1 / (load.burst - 1)) + 0.5)
            for _ in range(size):
                end = _arrive(fleet, attempts, draw, refusals)
                if end is not None:
                    schedule(now + draw.expovariate(1 / load.call), "end", *end)
            schedule(now + draw.expovariate(bursts), "arrive")
        elif kind == "end":
            pod, replica, generation = about
            if fleet.generation[pod] == generation:
                fleet.taken[pod] -= 1
                fleet.known[replica][pod] -= 1
                fleet.free += bool(fleet.usable[pod])
        elif kind == "return":
            (pod,) = about
            if not fleet.usable[pod]:
                # A new pod has no calls; those of the old one go on elsewhere.
                _reset(fleet, pod)
                fleet.usable[pod] = True
                fleet.free += fleet.slots
        else:
            pod = draw.randrange(load.pods)
            if fleet.usable[pod]:
                fleet.usable[pod] = False
                fleet.free -= fleet.slots - fleet.taken[pod]
                if kind == "fail":
                    refusals.cut += fleet.taken[pod]
                    _reset(fleet, pod)
                schedule(now + _RETURN_S, "return", pod)
            schedule(
                now + draw.expovariate((load.failures if kind == "fail" else load.drains) * load.pods / 3600), kind
            )
    return refusals


def _arrive(fleet: Fleet, attempts: Attempts, draw: random.Random, refusals: Refusals) -> tuple[int, int, int] | None:
    """Place a call. Return its pod, the balancer's replica and the pod's generation, or None if it is refused."""
    refusals.calls += 1
    replica = draw.randrange(len(fleet.known))
    for pod in attempts(fleet, replica, draw) if fleet.usable.any() else ():
        refusals.attempts += 1
        if fleet.accepts(pod):
            fleet.taken[pod] += 1
            fleet.known[replica][pod] += 1
            fleet.free -= 1
            return pod, replica, fleet.generation[pod]
    if fleet.free:
        refusals.wrong += 1
    else:
        refusals.full += 1
    return None


def _reset(fleet: Fleet, pod: int) -> None:
    fleet.generation[pod] += 1
    fleet.taken[pod] = 0
    for known in fleet.known:
        known[pod] = 0


def erlang_b(slots: int, offered: float) -> float:
    """Return the share of calls that a pool of `slots` refuses. `offered`: mean calls in progress without refusals."""
    blocked = 1.0
    for servers in range(1, slots + 1):
        blocked = offered * blocked / (servers + offered * blocked)
    return blocked
