"""The Kubernetes Horizontal Pod Autoscaler as a pure decision: from a metric and what was decided before.

https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/, sections "Algorithm details" and
"Configurable scaling behavior".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

TOLERANCE = 0.1  # default of --horizontal-pod-autoscaler-tolerance


@dataclass(frozen=True)
class Policy:
    """At most `value` pods, or percent of the pods, may be added (removed) within `period_s`."""

    kind: Literal["Pods", "Percent"]
    value: int
    period_s: float


@dataclass(frozen=True)
class Rules:
    """How fast the replicas may move in one direction."""

    policies: tuple[Policy, ...]
    window_s: float  # stabilisation window
    select: Literal["Max", "Min", "Disabled"] = "Max"


UP = Rules((Policy("Percent", 100, 15), Policy("Pods", 4, 15)), window_s=0)
DOWN = Rules((Policy("Percent", 100, 15),), window_s=300)


@dataclass(frozen=True)
class Hpa:
    """One HorizontalPodAutoscaler with one metric: `target` is percent of the CPU request, or a value a pod."""

    metric: str  # "cpu" or the name of a pods metric
    target: float
    min_replicas: int
    max_replicas: int
    up: Rules = UP
    down: Rules = DOWN
    tolerance: float = TOLERANCE

    def faster(self, times: float) -> "Hpa":
        """The same with every window and period divided by `times`, for a load compressed in time."""
        return replace(self, up=_faster(self.up, times), down=_faster(self.down, times))


Events = tuple[tuple[float, int], ...]  # (time in seconds, replicas or change of replicas)


@dataclass(frozen=True)
class History:
    """What was decided before: replicas recommended, and changes carried out."""

    recommended: Events = ()
    changed: Events = ()


@dataclass(frozen=True)
class Observed:
    """Replicas asked for, the metric of each ready one that reported it, and how many are not ready yet."""

    current: int
    values: Sequence[float]
    unready: int = 0


def decide(hpa: Hpa, history: History, now: float, seen: Observed) -> tuple[int, History]:
    """Replicas wanted at `now` (seconds on a clock that does not go back), and the history for the next decision."""
    if seen.current == 0:
        return 0, history  # scaled to nothing by hand: autoscaling is off
    within = min(max(seen.current, hpa.min_replicas), hpa.max_replicas)
    if within != seen.current:  # at once, whatever metrics and policies say
        return within, replace(history, changed=(*history.changed, (now, within - seen.current)))
    silent = max(100.0, hpa.target) if hpa.metric == "cpu" else hpa.target
    raw = recommend(seen, hpa.target, hpa.tolerance, silent)
    bounded = min(max(raw, hpa.min_replicas), hpa.max_replicas)
    recommended = history.recommended or ((now, seen.current),)  # as Kubernetes: the windows hold from the start
    stable = stabilise(hpa, recommended, now, seen.current, bounded)
    wanted = limit(hpa, history.changed, now, seen.current, stable)
    window = max(hpa.up.window_s, hpa.down.window_s)
    period = max((policy.period_s for rules in (hpa.up, hpa.down) for policy in rules.policies), default=0)
    change = ((now, wanted - seen.current),) if wanted != seen.current else ()
    return wanted, History(
        (*_since(recommended, now - window), (now, bounded)),
        (*_since(history.changed, now - period), *change),
    )


def recommend(seen: Observed, target: float, tolerance: float = TOLERANCE, silent: float | None = None) -> int:
    """ceil(replicas x metric / target), with replicas that say nothing counted so that they damp the move.

    A replica without a metric counts as `silent` (its target; of CPU all of its request, if that is more) when the rest
    would scale down and as idle when they would scale up; one not ready yet counts as idle when they would scale up.
    """
    current, values, unready = seen.current, seen.values, seen.unready
    if not values:
        return current
    ratio = sum(values) / len(values) / target
    missing = max(0, current - len(values) - unready)
    if not missing and not (unready and ratio > 1):
        return current if _rounded(abs(ratio - 1)) <= tolerance else math.ceil(_rounded(ratio * len(values)))
    counted = len(values) + missing + (unready if ratio > 1 else 0)
    damped = (sum(values) + ((silent or target) * missing if ratio < 1 else 0)) / counted / target
    if _rounded(abs(damped - 1)) <= tolerance or (ratio < 1) != (damped < 1):
        return current
    wanted = math.ceil(_rounded(damped * counted))
    return current if (damped < 1) != (wanted < current) else wanted


def stabilise(hpa: Hpa, recommended: Events, now: float, current: int, wanted: int) -> int:
    """The least change asked for in the window of each direction: the lowest going up, the highest going down."""
    lowest = min([wanted, *(n for at, n in recommended if at > now - hpa.up.window_s)])
    highest = max([wanted, *(n for at, n in recommended if at > now - hpa.down.window_s)])
    return min(max(current, lowest), highest)


def limit(hpa: Hpa, changed: Events, now: float, current: int, wanted: int) -> int:
    """As much of the change as the scaling policies allow, within the bounds of the replicas."""
    if wanted > current:
        return min(wanted, hpa.max_replicas, max(current, _ceiling(hpa.up, changed, now, current)))
    if wanted < current:
        return max(wanted, hpa.min_replicas, min(current, _floor(hpa.down, changed, now, current)))
    return wanted


def _ceiling(rules: Rules, changed: Events, now: float, current: int) -> int:
    if rules.select == "Disabled":
        return current
    reach = [
        start + policy.value if policy.kind == "Pods" else math.ceil(_rounded(start * (1 + policy.value / 100)))
        for policy, start in _starts(rules, changed, now, current)
    ]
    return max(reach) if rules.select == "Max" else min(reach)


def _floor(rules: Rules, changed: Events, now: float, current: int) -> int:
    if rules.select == "Disabled":
        return current
    reach = [
        start - policy.value if policy.kind == "Pods" else math.floor(_rounded(start * (1 - policy.value / 100)))
        for policy, start in _starts(rules, changed, now, current)
    ]
    return min(reach) if rules.select == "Max" else max(reach)


def _starts(rules: Rules, changed: Events, now: float, current: int) -> list[tuple[Policy, int]]:
    """Each policy with the replicas there were when its period began."""
    return [(policy, current - sum(n for _, n in _since(changed, now - policy.period_s))) for policy in rules.policies]


def _since(events: Events, cutoff: float) -> Events:
    return tuple(event for event in events if event[0] > cutoff)


def _rounded(number: float) -> float:
    return round(number, 9)  # 3 x 1.1 is 3.3000000000000003, and 100 x 1.1 must not become 111


def _faster(rules: Rules, times: float) -> Rules:
    policies = tuple(replace(policy, period_s=policy.period_s / times) for policy in rules.policies)
    return replace(rules, window_s=rules.window_s / times, policies=policies)
