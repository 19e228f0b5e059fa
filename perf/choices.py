"""The answer to each priority, among candidates that meet every limit: reasons in numbers, and what would change it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import ceil, inf
from operator import mul

from perf.candidates import AXES, SAME_ACCURACY, Axis, Candidate, front

STEPS = 10  # weights of the balance are tried in steps of 1 / STEPS


@dataclass(frozen=True)
class Choice:
    """The answer to one priority."""

    priority: str
    candidate: Candidate
    reasons: list[str]
    change: list[str]  # what would change it


def choices(open_: list[Candidate]) -> Iterator[Choice]:
    """One a priority."""
    yield _cheapest(open_)
    yield _fastest(open_)
    yield _balanced(open_)
    yield _most_accurate(open_)


def _cheapest(open_: list[Candidate]) -> Choice:
    order = sorted(open_, key=lambda c: (c.cost, -c.accuracy, c.name))
    best = _first(order, _cheap)
    reasons, change = [f"{best.cost:.3f} for a million answers at full load, the lowest of {len(open_)}"], []
    if best != order[0]:
        reasons[0] = (
            f"{best.cost:.3f} for a million answers at full load; {order[0].name} at {order[0].cost:.3f} is no cheaper "
            f"within the 95 % intervals of their rates, and {_points(best, order[0])} points less accurate"
        )
    if rest := [c for c in order if c != best]:
        reasons.append(f"next: {rest[0].name} at {rest[0].cost:.3f} (x {rest[0].cost / best.cost:.2f})")
    if rival := _rival(order, best, _cheap):
        change.append(f"{rival.name} would win if it cost {rival.cost:.3f}, as it would at {_at_least(rival.rate)}/s")
    if above := [c for c in rest if c.cost > best.cost and c.accuracy > best.accuracy + SAME_ACCURACY]:
        c, extra = above[0], above[0].cost - best.cost
        change.append(
            f"worth changing if {_points(c, best)} points of accuracy are worth {extra:.3f} a million answers: {c.name}"
        )
    return Choice(
        "lowest cost", best, reasons, [*change, "the price of a core moves every cost alike: it changes no ranking"]
    )


def _fastest(open_: list[Candidate]) -> Choice:
    order = sorted(open_, key=lambda c: (-c.rate, c.cost, c.name))
    best = _first(order, _fast)
    reasons = [f"{best.rate:.0f} answers a second, the most of {len(open_)}; p99 {_ms(best.p99_ms)}"]
    if best != order[0]:
        reasons[0] = (
            f"{best.rate:.0f} answers a second; p99 {_ms(best.p99_ms)}; {order[0].name} at {order[0].rate:.0f}/s "
            f"is no faster within their 95 % intervals, and {_points(best, order[0])} points less accurate"
        )
    change = []
    if rest := [c for c in order if c != best]:
        reasons.append(f"next: {rest[0].name} at {rest[0].rate:.0f}/s ({rest[0].rate / best.rate - 1:+.0%})")
    if rival := _rival(order, best, _fast):
        change.append(f"{rival.name} would win if it gave {_at_least(rival.rate)}/s")
    if rest and rest[0].rate_high > best.rate_low:
        change.append(f"its 95 % interval and that of {rest[0].name} overlap: another run may swap them")
    if cheaper := [c for c in rest if c.cost < best.cost and c.rate < best.rate]:
        c = min(cheaper, key=lambda o: o.cost)
        change.append(f"if {c.rate:.0f}/s is enough, {c.name} costs {1 - c.cost / best.cost:.0%} less an answer")
    return Choice("highest throughput", best, reasons, change)


Figure = Callable[[Candidate], float]  # more is better, and goes with the rate


def _cheap(c: Candidate) -> float:
    return 1 / c.cost


def _fast(c: Candidate) -> float:
    return c.rate


def _first(order: list[Candidate], figure: Figure) -> Candidate:
    """The first of an order by a figure. What the 95 % intervals of the rates do not tell from it is no reason to give
    up more than half a point of accuracy: the first of those within half a point of the most accurate."""
    leader = order[0]
    same = [c for c in order if _highest(c, figure) >= _lowest(leader, figure)]
    better = [c for c in same if c.accuracy > leader.accuracy + SAME_ACCURACY]
    enough = max((c.accuracy for c in better), default=leader.accuracy) - SAME_ACCURACY
    return next((c for c in better if c.accuracy >= enough), leader)


def _lowest(c: Candidate, figure: Figure) -> float:
    return figure(c) * c.rate_low / c.rate


def _highest(c: Candidate, figure: Figure) -> float:
    return figure(c) * c.rate_high / c.rate


def _rival(order: list[Candidate], best: Candidate, figure: Figure) -> Candidate | None:
    """The one that would win with the least more answers a second, as it would be then."""

    def needed(other: Candidate) -> float:
        if best.accuracy > other.accuracy + SAME_ACCURACY:
            return _highest(best, figure) / _lowest(other, figure)
        if other.accuracy > best.accuracy + SAME_ACCURACY:
            return _lowest(order[0], figure) / _highest(other, figure)
        return figure(best) / figure(other)

    for other in sorted((c for c in order if c != best), key=needed):
        raised = _faster(other, needed(other) * (1 + 1e-9))
        if _first(sorted([raised, *(c for c in order if c != other)], key=figure, reverse=True), figure) == raised:
            return raised
    return None


def _faster(c: Candidate, times: float) -> Candidate:
    return c._replace(
        rate=c.rate * times, rate_low=c.rate_low * times, rate_high=c.rate_high * times, cost=c.cost / times
    )


def _points(c: Candidate, other: Candidate) -> str:
    return f"{100 * (c.accuracy - other.accuracy):.1f}"


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
    places = _places(among)
    best = max(among, key=lambda c: (sum(places[c]), -c.cost))
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
    places = _places(among)
    for weights in _weightings():
        scores = {c: sum(map(mul, weights, places[c])) for c in among}
        wins[max(among, key=lambda c: (scores[c], -c.cost))].append(weights)
    return wins


@cache
def _weightings() -> list[tuple[int, ...]]:
    return [weights for weights in product(range(STEPS + 1), repeat=len(AXES)) if sum(weights) == STEPS]


def _places(among: list[Candidate]) -> dict[Candidate, list[float]]:
    """Each candidate's places on the axes, 0 (worst of `among`) to 1 (best)."""
    return {c: [_place(axis, c, among) for axis in AXES] for c in among}


def _place(axis: Axis, c: Candidate, among: list[Candidate]) -> float:
    values = [v for o in among if (v := axis.good(o)) != -inf]
    if axis.good(c) == -inf or not values:
        return 0.0
    span = max(values) - min(values)
    return (axis.good(c) - min(values)) / span if span > axis.slack else 1.0  # what counts as equal is no step


def _swing(c: Candidate, weights: list[tuple[int, ...]], total: int) -> str:
    """Which weights bring a rival to the front: the axis it leans on most."""
    mean = [sum(w[k] for w in weights) / len(weights) / STEPS for k in range(len(AXES))]
    k = max(range(len(AXES)), key=lambda j: mean[j])
    share = len(weights) / total
    return f"{c.name} in {share:.0%} of the weightings: {AXES[k].name} weighs {mean[k]:.0%} in them on average"


def _at_least(rate: float) -> str:
    """A rate that is enough, rounded up."""
    return f"{ceil(rate)}" if rate >= 20 else f"{ceil(10 * rate) / 10:.1f}"


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if value != inf else "without limit (it did not keep up)"
