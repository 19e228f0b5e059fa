"""A small queueing simulation of a stack: requests wait for one of a replica's slots, first come first served.

A replica is `slots` servers; a request occupies one for its CPU demand divided by the slot's speed. A limit under one
core works as the kernel's does: full speed until the period's quota is used up, then nothing until the next period.
A balancer gives each request to the replica with the fewest requests. What is not modelled: memory, the network
between machines, and slots that wait for each other.
"""

import heapq
from collections.abc import Callable
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PERIOD_S = 0.1  # of the kernel's CPU quota (cpu.cfs_period_us, cpu.max)

Floats = NDArray[np.float64]


class Replicas(NamedTuple):
    """Equal replicas behind a balancer."""

    number: int
    slots: int  # requests in service at once, each replica
    speed: float = 1.0  # cores that one slot has while it runs
    quota: float = 1.0  # part of each period that a replica of one slot may run; 1: always

    @property
    def cores(self) -> float:
        """That all slots together may use; of 1.5 cores a replica uses one."""
        return self.number * self.slots * self.speed * self.quota


class Outcome(NamedTuple):
    """What the simulated requests met."""

    rate: float  # answers a second
    utilisation: float  # of what the replicas may use
    latency_s: Floats

    def percentile_ms(self, p: float) -> float:
        return float(np.percentile(self.latency_s, p)) * 1000


class Pool:
    """Replicas in time: each request goes to the replica with the fewest, of equals to the longest unchanged."""

    def __init__(self, replicas: Replicas) -> None:
        self.free = [[0.0] * replicas.slots for _ in range(replicas.number)]  # when each slot is next free
        self.waiting = [0] * replicas.number  # requests at each replica, waiting or in service
        self.fewest = [(0, r, r) for r in range(replicas.number)]  # (requests, change, replica); outdated ones stay in
        self.latest = list(range(replicas.number))  # change of each replica that holds
        self.quota = replicas.quota
        self.used = [(0, 0.0)] * replicas.number  # (period, time run in it)
        self.ends: list[tuple[float, int]] = []
        self.change = replicas.number

    def serve(self, now: float, duration: float) -> float:
        """Take in one request at `now` (never earlier than the last) and say when its service ends."""
        while self.ends and self.ends[0][0] <= now:
            self._count(heapq.heappop(self.ends)[1], -1)
        while self.fewest[0][1] != self.latest[self.fewest[0][2]]:
            heapq.heappop(self.fewest)
        replica = self.fewest[0][2]
        begin = max(now, heapq.heappop(self.free[replica]))
        end = begin + duration if self.quota >= 1 else self._limited(replica, begin, duration)
        heapq.heappush(self.free[replica], end)
        heapq.heappush(self.ends, (end, replica))
        self._count(replica, 1)
        return end

    def _limited(self, replica: int, now: float, left: float) -> float:
        """When `left` seconds of running are over, with pauses where a period's quota is used up."""
        period, used = self.used[replica]
        if (current := int(now / PERIOD_S + 1e-9)) > period:
            period, used = current, 0.0
        quota_s = self.quota * PERIOD_S
        room = max(0.0, min(quota_s - used, (period + 1) * PERIOD_S - now))
        if left <= room + 1e-12:
            self.used[replica] = (period, used + left)
            return now + left
        whole = ceil((left - room) / quota_s - 1e-9) - 1  # periods from the next one on, used up
        period, used = period + 1 + whole, left - room - whole * quota_s
        self.used[replica] = (period, used)
        return period * PERIOD_S + used

    def _count(self, replica: int, by: int) -> None:
        self.waiting[replica] += by
        self.change += 1
        self.latest[replica] = self.change
        heapq.heappush(self.fewest, (self.waiting[replica], self.change, replica))


def open_loop(arrivals_s: Floats, demand_s: Floats, fixed_s: float, replicas: Replicas) -> Outcome:
    """Requests that come whatever happens.

    Args:
        arrivals_s: moments of arrival, ascending, `[n]`.
        demand_s: CPU seconds of each request, `[n]`.
        fixed_s: what every request takes beside its service (network, parsing), without a slot.
    """
    pool = Pool(replicas)
    requests = zip(arrivals_s.tolist(), (demand_s / replicas.speed).tolist(), strict=True)
    end_s = np.array([pool.serve(now, duration) for now, duration in requests])
    return _outcome(arrivals_s, end_s, demand_s, fixed_s, replicas)


def closed_loop(users: int, demand_s: Floats, fixed_s: float, replicas: Replicas) -> Outcome:
    """Users that send their next request when the last is answered, `fixed_s` after its service ended."""
    pool, ready = Pool(replicas), [0.0] * users
    sent_s, end_s = np.empty(len(demand_s)), np.empty(len(demand_s))
    for k, duration in enumerate((demand_s / replicas.speed).tolist()):
        sent_s[k] = ready[0]
        end_s[k] = pool.serve(ready[0], duration)
        heapq.heapreplace(ready, float(end_s[k]) + fixed_s)
    return _outcome(sent_s, end_s, demand_s, fixed_s, replicas)


def _outcome(sent_s: Floats, end_s: Floats, demand_s: Floats, fixed_s: float, replicas: Replicas) -> Outcome:
    elapsed = float(end_s.max() - sent_s.min())
    busy = float(demand_s.sum()) / elapsed / replicas.cores
    return Outcome(len(end_s) / elapsed, busy, end_s - sent_s + fixed_s)


def poisson(rate: float, n: int, rng: np.random.Generator) -> Floats:
    """n arrivals of independent clients, `rate` a second."""
    return rng.exponential(1 / rate, n).cumsum()


def smallest(enough: Callable[[int], bool], first: int, most: int) -> int | None:
    """The smallest n in [first, most] that is enough, where more is never worse; None if none is."""
    step = 1
    low = high = first
    while not enough(high):
        if high >= most:
            return None
        low, high, step = high + 1, min(most, high + step), step * 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high
