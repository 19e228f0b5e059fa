"""Which model on which stack: constraints first, then a choice a priority, with reasons and what would change it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from math import ceil, floor, inf, log
from sys import float_info
from typing import NamedTuple

from perf.deployment import beside_cpus
from perf.summary import Cell

CORE_HOUR_PRICE = 0.04  # a core for an hour in any currency, if no price is given; it moves no ranking
SAME_ACCURACY = 0.005  # half a point of top-1: what the conversion's gate lets int8 lose
STEPS = 10  # weights of the balance are tried in steps of 1 / STEPS


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


@dataclass(frozen=True)
class Choice:
    """The answer to one priority."""

    priority: str
    candidate: Candidate
    reasons: list[str]
    change: list[str]  # what would change it


@dataclass(frozen=True)
class Recommendation:
    """The four choices, and why everything else was left out."""

    constraints: Constraints
    choices: list[Choice] = field(default_factory=list)
    front: list[Candidate] = field(default_factory=list)  # Pareto: nothing is as good in everything and better in one
    dominated: list[tuple[Candidate, Candidate]] = field(default_factory=list)  # (candidate, one that dominates it)
    refused: list[tuple[str, str]] = field(default_factory=list)  # (name, reason): constraints
    unknown: list[tuple[str, str]] = field(default_factory=list)  # (name, reason): a figure that a choice needs
    invalid: list[tuple[str, str]] = field(default_factory=list)  # (name, reason): measurement


class Axis(NamedTuple):
    """One figure of a candidate, as a number where more is better."""

    name: str
    good: Callable[[Candidate], float]
    slack: float = 0.0  # differences up to it count as none


AXES = (
    Axis("accuracy", lambda c: c.accuracy, slack=SAME_ACCURACY),
    Axis("rate", lambda c: log(c.rate)),  # logarithms: twice is twice, wherever it starts
    Axis("p99", lambda c: -log(c.p99_ms)),
    Axis("memory", lambda c: -log(c.memory_mb)),
    Axis("cost", lambda c: -log(c.cost)),
)


def recommend(cells: list[Cell], constraints: Constraints, cpus: float) -> Recommendation:
    """Choose among the valid cells.

    Args:
        cpus: CPU limit of one replica, cores; what a replica costs whether it works or waits.
    """
    valid = [c for c in cells if not c.reasons]
    candidates = [candidate(c, cpus, constraints.core_hour_price) for c in valid if not lacking(c)]
    open_ = [c for c in candidates if not refusal(c, constraints)]
    choices, best = _choose(candidates, constraints), front(open_)
    chosen = {choice.candidate for choice in choices}
    return Recommendation(
        constraints=constraints,
        choices=[_loosened(choice, candidates, constraints) for choice in choices],
        front=best,
        dominated=[(c, by) for c in open_ if c not in chosen and (by := dominator(c, best))],
        refused=[(c.name, why) for c in candidates if (why := refusal(c, constraints))],
        unknown=[(f"{c.model} on {c.stack}", why) for c in valid if (why := lacking(c))],
        invalid=[(f"{c.model} on {c.stack}", "; ".join(c.reasons)) for c in cells if c.reasons],
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


def refusal(c: Candidate, limits: Constraints) -> str:
    """Which constraints a candidate misses, with figures; empty when it meets them all. A rate and a p99 must hold
    together: where both are given, the rate is that at which the p99 was measured."""
    rate, which = c.rate, ""
    if limits.max_p99_ms < inf:
        rate, which = c.timed_rate, ", at which its p99 was measured,"
    missed = [
        (c.accuracy < limits.min_accuracy, f"accuracy {c.accuracy:.3f} under {limits.min_accuracy:g}"),
        (rate < limits.min_rate, f"{rate:.1f}/s{which} under {limits.min_rate:g}/s"),
        (c.p99_ms > limits.max_p99_ms, f"p99 {c.p99_ms:.0f} ms over {limits.max_p99_ms:g} ms"),
        (c.memory_mb > limits.max_memory_mb, f"memory {c.memory_mb:.0f} MB over {limits.max_memory_mb:g} MB"),
    ]
    return ", ".join(text for is_missed, text in missed if is_missed)


def front(candidates: list[Candidate]) -> list[Candidate]:
    """Those that none of the others here dominates, as they came. Within its slack accuracy is no order (a chain of
    half points may dominate link by link): one that is dominated itself dominates nothing."""
    kept: list[Candidate] = []
    for c in sorted(candidates, key=lambda c: (c.rate / c.memory_mb / c.cost, -c.p99_ms, c.accuracy), reverse=True):
        if not dominator(c, kept):
            kept.append(c)
    return [c for c in candidates if c in kept]


def dominator(c: Candidate, candidates: list[Candidate]) -> Candidate | None:
    """The cheapest candidate that is at least as good on every axis and better on one."""
    better = [o for o in candidates if _at_least(o, c) and any(a.good(o) > a.good(c) + a.slack for a in AXES)]
    return min(better, key=lambda o: (o.cost, o.name), default=None)


def _at_least(a: Candidate, b: Candidate) -> bool:
    return all(axis.good(a) >= axis.good(b) - axis.slack for axis in AXES)


def _choose(candidates: list[Candidate], limits: Constraints) -> list[Choice]:
    """A choice a priority among those that meet the limits; none where nothing does."""
    open_ = [c for c in candidates if not refusal(c, limits)]
    return list(_choices(open_)) if open_ else []


def _loosened(choice: Choice, candidates: list[Candidate], limits: Constraints) -> Choice:
    """The choice, with what would win instead if one of the given limits were looser, and how much looser."""
    found = []

    def winner(**looser: float) -> Candidate:
        chosen = _choose(candidates, replace(limits, **looser))
        return next(c.candidate for c in chosen if c.priority == choice.priority)

    for name, (loosest, least) in LIMITS.items():
        if getattr(limits, name) == getattr(Constraints(), name):
            continue
        other = winner(**{name: loosest})
        if other != choice.candidate and winner(**{name: least(other)}) == other:
            found.append(f"{other.name} would win with --{name.replace('_', '-')} {least(other):g}")
    return replace(choice, change=[*choice.change, *found])


# A limit at its loosest (a p99 stays limited: without any, rates are other ones), and as a candidate needs it.
LIMITS: dict[str, tuple[float, Callable[[Candidate], float]]] = {
    "min_accuracy": (0.0, lambda c: floor(1000 * c.accuracy) / 1000),
    "max_p99_ms": (float_info.max, lambda c: ceil(c.p99_ms)),
    "max_memory_mb": (inf, lambda c: ceil(c.memory_mb)),
    "min_rate": (0.0, lambda c: floor(min(c.rate, c.timed_rate))),
}


def _choices(open_: list[Candidate]) -> Iterator[Choice]:
    yield _cheapest(open_)
    yield _fastest(open_)
    yield _balanced(open_)
    yield _most_accurate(open_)


def _cheapest(open_: list[Candidate]) -> Choice:
    lowest = min(open_, key=lambda c: (c.cost, -c.accuracy, c.name))
    # costs whose rates' 95 % intervals reach each other are no reason to give up accuracy
    same = [c for c in open_ if c.cost * c.rate / c.rate_high <= lowest.cost * lowest.rate / lowest.rate_low]
    best = _more_accurate(same, lowest)
    rest = sorted((c for c in open_ if c != best), key=lambda c: (c.cost, -c.accuracy, c.name))
    reasons = [f"{best.cost:.3f} for a million answers at full load, the lowest of {len(open_)}"]
    change = []
    if best != lowest:
        points = 100 * (best.accuracy - lowest.accuracy)
        reasons[0] = (
            f"{best.cost:.3f} for a million answers at full load; {lowest.name} at {lowest.cost:.3f} is no cheaper "
            f"within the 95 % intervals of their rates, and {points:.1f} points less accurate"
        )
    if rest := [c for c in rest if c.cost > best.cost]:
        other = rest[0]
        reasons.append(f"next: {other.name} at {other.cost:.3f} (x {other.cost / best.cost:.2f})")
        change.append(
            f"{other.name} would win if its cost fell by {1 - best.cost / other.cost:.0%}, as it would at "
            f"{other.rate * other.cost / best.cost:.0f}/s"
        )
    if above := [c for c in rest if c.accuracy > best.accuracy + SAME_ACCURACY]:
        c = above[0]
        points, extra = 100 * (c.accuracy - best.accuracy), c.cost - best.cost
        change.append(
            f"worth changing if {points:.1f} points of accuracy are worth {extra:.3f} a million answers: {c.name}"
        )
    return Choice(
        "lowest cost", best, reasons, [*change, "the price of a core moves every cost alike: it changes no ranking"]
    )


def _more_accurate(same: list[Candidate], leader: Candidate) -> Candidate:
    """The most accurate of those that a run does not tell apart from the leader, where that is over half a point."""
    better = [c for c in same if c.accuracy > leader.accuracy + SAME_ACCURACY]
    return max(better, key=lambda c: (c.accuracy, -c.cost), default=leader)


def _fastest(open_: list[Candidate]) -> Choice:
    by_rate = sorted(open_, key=lambda c: (-c.rate, c.cost, c.name))
    # rates whose 95 % intervals reach each other are no reason to give up accuracy
    same = [c for c in open_ if c.rate_high >= by_rate[0].rate_low]
    best = _more_accurate(same, by_rate[0])
    reasons = [f"{best.rate:.0f} answers a second, the most of {len(open_)}; p99 {_ms(best.p99_ms)}"]
    if best != by_rate[0]:
        points = 100 * (best.accuracy - by_rate[0].accuracy)
        reasons[0] = (
            f"{best.rate:.0f} answers a second; p99 {_ms(best.p99_ms)}; {by_rate[0].name} at {by_rate[0].rate:.0f}/s "
            f"is no faster within their 95 % intervals, and {points:.1f} points less accurate"
        )
    change = []
    if rest := [c for c in by_rate if c != best and c.rate <= best.rate]:
        other = rest[0]
        reasons.append(f"next: {other.name} at {other.rate:.0f}/s ({other.rate / best.rate - 1:+.0%})")
        change.append(f"{other.name} would win if the leader's rate were {1 - other.rate / best.rate:.0%} lower")
        if other.rate_high > best.rate_low:
            change.append("their 95 % intervals overlap: another run may swap them")
    if cheaper := [c for c in rest if c.cost < best.cost]:
        c = min(cheaper, key=lambda o: o.cost)
        change.append(f"if {c.rate:.0f}/s is enough, {c.name} costs {1 - c.cost / best.cost:.0%} less an answer")
    return Choice("highest throughput", best, reasons, change)


def _most_accurate(open_: list[Candidate]) -> Choice:
    highest = max(c.accuracy for c in open_)
    same = [c for c in open_ if c.accuracy >= highest - SAME_ACCURACY]
    best = min(same, key=lambda c: (c.cost, c.name))
    reasons = [f"top-1 {100 * best.accuracy:.1f} %; the highest of {len(open_)} is {100 * highest:.1f} %"]
    if len(same) > 1:
        reasons.append(f"of {len(same)} deployments within half a point of it the cheapest ({best.cost:.2f} a million)")
    faster = max(same, key=lambda c: c.rate)
    change = []
    if faster.rate > 1.1 * best.rate:
        change.append(
            f"if throughput matters beside accuracy: {faster.name}, {faster.rate:.0f}/s at {faster.cost:.2f} a million"
        )
    if cheaper := [c for c in open_ if c not in same and c.cost < best.cost]:
        other = min(cheaper, key=lambda c: (-c.accuracy, c.cost))
        change.append(
            f"{other.name} has {100 * (best.accuracy - other.accuracy):.1f} points less, at x "
            f"{other.rate / best.rate:.2f} the rate and x {other.cost / best.cost:.2f} the cost"
        )
    return Choice("highest accuracy", best, reasons, change)


def _balanced(open_: list[Candidate]) -> Choice:
    among = front(open_)
    wins = _wins(among)
    best = max(among, key=lambda c: (_score(c, among, [1.0] * len(AXES)), -c.cost))
    total = sum(len(weights) for weights in wins.values())
    share = len(wins[best]) / total
    figures = (
        f"top-1 {100 * best.accuracy:.1f} %, {best.rate:.0f}/s, p99 {_ms(best.p99_ms)}, {best.memory_mb:.0f} MB, "
        f"{best.cost:.2f} a million"
    )
    reasons = [
        f"the best mean place between the worst and the best of the front, all {len(AXES)} figures weighing alike: "
        f"{figures}",
        f"first in {share:.0%} of {total} other weightings of accuracy, rate, p99, memory and cost",
    ]
    rivals = sorted((c for c in among if c != best and wins[c]), key=lambda c: -len(wins[c]))
    return Choice("balance", best, reasons, [_swing(c, wins[c], total) for c in rivals[:2]])


def _wins(among: list[Candidate]) -> dict[Candidate, list[tuple[int, ...]]]:
    """For each candidate the weightings (tenths that add up to one) under which it comes first."""
    wins: dict[Candidate, list[tuple[int, ...]]] = {c: [] for c in among}
    for weights in product(range(STEPS + 1), repeat=len(AXES)):
        if sum(weights) == STEPS:
            wins[max(among, key=lambda c: (_score(c, among, list(weights)), -c.cost))].append(weights)
    return wins


def _score(c: Candidate, among: list[Candidate], weights: "list[float] | list[int]") -> float:
    """Weighted mean of the candidate's places, 0 (worst of `among`) to 1 (best), on every axis."""
    return sum(w * _place(axis, c, among) for axis, w in zip(AXES, weights, strict=True)) / sum(weights)


def _place(axis: Axis, c: Candidate, among: list[Candidate]) -> float:
    values = [v for o in among if (v := axis.good(o)) != -inf]
    if axis.good(c) == -inf or not values:
        return 0.0
    span = max(values) - min(values)
    return (axis.good(c) - min(values)) / span if span else 1.0


def _swing(c: Candidate, weights: list[tuple[int, ...]], total: int) -> str:
    """Which weights bring a rival to the front: the axis it leans on most."""
    mean = [sum(w[k] for w in weights) / len(weights) / STEPS for k in range(len(AXES))]
    k = max(range(len(AXES)), key=lambda j: mean[j])
    share = len(weights) / total
    return f"{c.name} in {share:.0%} of the weightings: {AXES[k].name} weighs {mean[k]:.0%} in them on average"


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if value != inf else "without limit (it did not keep up)"
