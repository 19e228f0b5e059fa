"""Measured cells as the figures that a choice is made from, what a user demands of them, and which of them count."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor, inf, log
from sys import float_info
from typing import NamedTuple

from perf.deployment import beside_cpus
from perf.summary import Cell

CORE_HOUR_PRICE = 0.04  # a core for an hour in any currency, if no price is given; it moves no ranking
SAME_ACCURACY = 0.005  # half a point of top-1: what the conversion's gate lets int8 lose
SAME = log(1.05)  # of all else: two runs of one thing are that far apart
LEAST = -log(1e9)  # of any figure


@dataclass(frozen=True)
class Constraints:
    """What a choice must meet, and the price of a core."""

    min_accuracy: float = 0.0  # top-1, 0 to 1
    max_p99_ms: float = inf
    max_memory_mb: float = inf
    min_rate: float = 0.0  # answers a second
    core_hour_price: float = CORE_HOUR_PRICE


class Candidate(NamedTuple):
    """A valid cell as the figures a choice is made from."""

    stack: str
    model: str
    accuracy: float
    rate: float
    p99_ms: float
    memory_mb: float
    cost: float  # of a million answers, at full load
    rate_low: float  # 95 % interval of the rate
    rate_high: float
    timed_rate: float  # at which the p99 was measured

    @property
    def name(self) -> str:
        return f"{self.model} on {self.stack}"


class Axis(NamedTuple):
    """One figure of a candidate, as a number where more is better; all but accuracy as logarithms: twice is twice."""

    name: str
    good: Callable[[Candidate], float]
    slack: float = SAME  # differences up to it count as none


AXES = (
    Axis("accuracy", lambda c: c.accuracy, slack=SAME_ACCURACY),
    Axis("rate", lambda c: log(c.rate)),
    Axis("p99", lambda c: -log(c.p99_ms)),
    Axis("memory", lambda c: -log(c.memory_mb)),
    Axis("cost", lambda c: -log(c.cost)),
)


def candidate(cell: Cell, cpus: float, price: float) -> Candidate:
    """A cell's figures; its cores are those reserved for replicas, balancer and scaler, or used where nothing held it
    to them."""
    use, rate = cell.use, cell.rate
    if not use or not rate or cell.accuracy is None:
        raise ValueError(f"{cell.model} on {cell.stack} has no resources, rate or accuracy")
    cores = max(use.replicas * cpus + beside_cpus(cell.stack), use.cores)
    cost = cores * price / 3600 / rate.value * 1e6
    timed = cell.latency.get("rate")
    return Candidate(
        cell.stack,
        cell.model,
        cell.accuracy,
        rate.value,
        cell.p99_ms,
        use.memory_mb,
        cost,
        rate.low,
        rate.high,
        timed.offered if timed else rate.value,
    )


def lacking(cell: Cell) -> str:
    """Which figure a choice needs and a valid cell has not; empty where it has all."""
    if cell.accuracy is None:
        return "its accuracy is not known: convert the model with labelled photos"
    return "" if cell.use and cell.rate else "its resources could not be read"


def rate_within(c: Candidate, limits: Constraints) -> float:
    """The rate that a limit on it is held against."""
    return c.timed_rate if limits.max_p99_ms < inf else c.rate


def refusal(c: Candidate, limits: Constraints) -> str:
    """Which constraints a candidate misses, with figures; empty when it meets them all. A rate and a p99 must hold
    together: where both are given, the rate is that at which the p99 was measured."""
    rate = rate_within(c, limits)
    which = ", at which its p99 was measured," if limits.max_p99_ms < inf else ""
    missed = [
        (c.accuracy < limits.min_accuracy, f"accuracy {c.accuracy:.3f} under {limits.min_accuracy:g}"),
        (rate < limits.min_rate, f"{rate:.1f}/s{which} under {limits.min_rate:g}/s"),
        (c.p99_ms > limits.max_p99_ms, f"p99 {c.p99_ms:.0f} ms over {limits.max_p99_ms:g} ms"),
        (c.memory_mb > limits.max_memory_mb, f"memory {c.memory_mb:.0f} MB over {limits.max_memory_mb:g} MB"),
    ]
    return ", ".join(text for is_missed, text in missed if is_missed)


def front(candidates: list[Candidate]) -> list[Candidate]:
    """Those that none of the others here dominates, as they came. Within their slack figures are no order (a chain of
    half points may dominate link by link): one that is dominated itself dominates nothing."""
    kept: list[Candidate] = []
    for c in sorted(candidates, key=_steps, reverse=True):
        if not dominator(c, kept):
            kept.append(c)
    return [c for c in candidates if c in kept]


def dominator(c: Candidate, candidates: list[Candidate]) -> Candidate | None:
    """The cheapest candidate that is at least as good on every axis, better on one and in sum."""
    better = [o for o in candidates if _at_least(o, c) and any(a.good(o) > a.good(c) + a.slack for a in AXES)]
    return min((o for o in better if _steps(o) > _steps(c)), key=lambda o: (o.cost, o.name), default=None)


def _at_least(a: Candidate, b: Candidate) -> bool:
    return all(axis.good(a) >= axis.good(b) - axis.slack for axis in AXES)


def _steps(c: Candidate) -> float:
    """How good in all, in steps of what counts as equal; a p99 without limit is a bad one here."""
    return sum(max(axis.good(c), LEAST) / axis.slack for axis in AXES)


class Limit(NamedTuple):
    """A constraint at its loosest (a p99 stays limited: without any, rates are other ones), and as one needs it."""

    loosest: float
    needed: Callable[[Candidate, Constraints], float]


LIMITS = {
    "min_accuracy": Limit(0.0, lambda c, _: floor(1000 * c.accuracy) / 1000),
    "max_p99_ms": Limit(float_info.max, lambda c, _: ceil(c.p99_ms)),
    "max_memory_mb": Limit(inf, lambda c, _: ceil(c.memory_mb)),
    "min_rate": Limit(0.0, lambda c, limits: floor(rate_within(c, limits))),
}
