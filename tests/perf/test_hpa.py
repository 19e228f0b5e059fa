"""The decision against the examples and rules of the Kubernetes documentation (Horizontal Pod Autoscaling)."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from perf.hpa import DOWN, UP, History, Hpa, Observed, Policy, Rules, decide, limit, recommend, stabilise

HPA = Hpa("cpu", target=40, min_replicas=1, max_replicas=1000)
FREE = replace(HPA, down=Rules((Policy("Percent", 100, 15),), window_s=0))


@pytest.mark.parametrize(
    ("current", "values", "target", "wanted"),
    [
        (1, [200], 100, 2),  # "if the current metric value is 200m, and the desired 100m, the number is doubled"
        (4, [200] * 4, 100, 8),
        (2, [50] * 2, 100, 1),  # "if the current value is instead 50m, you'll halve the number of replicas"
        (10, [50] * 10, 100, 5),
        (3, [109] * 3, 100, 3),  # within the tolerance of 0.1 nothing moves
        (3, [110] * 3, 100, 3),
        (3, [91] * 3, 100, 3),
        (3, [111] * 3, 100, 4),
        (10, [89] * 10, 100, 9),
        (3, [0, 0, 300], 100, 3),  # the mean decides, not the largest
        (1, [305], 50, 7),  # the walkthrough: CPU 305 % of a 50 % target asks for 7
        (5, [0] * 5, 40, 0),  # bounds come later
        (3, [], 100, 3),  # no metric at all: stay
    ],
)
def test_replicas_follow_the_ratio_of_metric_and_target(
    current: int, values: list[float], target: float, wanted: int
) -> None:
    assert recommend(Observed(current, values), target) == wanted


@pytest.mark.parametrize(
    ("current", "values", "unready", "wanted"),
    [
        (3, [20, 20], 0, 2),  # missing counts as 100 % of the target going down: (20 + 20 + 100) / 3 = 47 %
        (2, [80], 0, 2),  # 90 % with the missing one at its target: within the tolerance
        (4, [150, 150, 150], 0, 5),  # missing counts as 0 going up: 450 / 4 = 112.5 %
        (2, [150], 0, 2),  # 150 / 2 = 75 % would turn the move round: stay
        (4, [300, 300], 2, 6),  # not ready counts as 0 going up: 600 / 4 = 150 %
        (2, [150], 1, 2),
        (3, [50, 50], 1, 1),  # going down, one not ready yet is left out
    ],
)
def test_silent_replicas_damp_the_move(current: int, values: list[float], unready: int, wanted: int) -> None:
    assert recommend(Observed(current, values, unready), 100) == wanted


def test_a_replica_without_cpu_figures_counts_as_its_whole_request_going_down() -> None:
    seen = Observed(3, [10, 10])
    assert decide(FREE, History(), 0.0, seen)[0] == 3  # (10 + 10 + 100) / 3 is the target of 40
    assert decide(replace(FREE, metric="queue"), History(), 0.0, seen)[0] == 2  # (10 + 10 + 40) / 3 is half of it


def test_replicas_out_of_bounds_are_brought_back_at_once_whatever_the_policies_say() -> None:
    slow = Rules((Policy("Pods", 1, 60),), window_s=300)
    hpa = replace(HPA, min_replicas=2, max_replicas=3, up=slow, down=slow)
    assert decide(hpa, History(), 0.0, Observed(8, [40] * 8))[0] == 3
    assert decide(hpa, History(), 0.0, Observed(1, []))[0] == 2


def test_the_documented_scale_down_takes_ten_percent_above_forty_replicas_and_four_below() -> None:
    down = Rules((Policy("Pods", 4, 60), Policy("Percent", 10, 60)), window_s=0)
    hpa, history, replicas, steps = replace(HPA, min_replicas=10, down=down), History(), 80, [80]
    for minute in range(1, 20):
        replicas, history = decide(hpa, history, minute * 61.0, Observed(replicas, [1] * replicas))
        steps.append(replicas)
    assert steps[:3] == [80, 72, 64]  # "10 % of the pods is 7.2 but the number is rounded up to 8"
    assert all(a - b == max(4, math.ceil(a / 10 - 1e-9)) for a, b in pairwise(steps) if b > 10)
    assert steps[-1] == 10


def test_min_selects_the_policy_of_least_change_and_disabled_forbids_it() -> None:
    policies = (Policy("Pods", 4, 60), Policy("Percent", 10, 60))
    least = replace(HPA, down=Rules(policies, 0, "Min"), up=Rules(policies, 0, "Min"))
    never = replace(HPA, down=Rules(policies, 0, "Disabled"), up=Rules(policies, 0, "Disabled"))
    assert [limit(least, (), 0, n, 1) for n in (80, 20)] == [76, 18]
    assert [limit(least, (), 0, n, 999) for n in (80, 20)] == [84, 22]
    assert [limit(never, (), 0, 20, n) for n in (1, 999)] == [20, 20]


def test_the_default_scale_up_doubles_or_adds_four_within_fifteen_seconds() -> None:
    hpa, history, replicas = replace(HPA, max_replicas=100), History(), 1
    seen = []
    for tick in range(6):
        replicas, history = decide(hpa, history, tick * 16.0, Observed(replicas, [4000] * replicas))
        seen.append(replicas)
    assert seen == [5, 10, 20, 40, 80, 100]


def test_a_period_counts_what_was_changed_within_it() -> None:
    hpa = replace(HPA, up=Rules((Policy("Pods", 4, 60),), 0))
    assert limit(hpa, ((10.0, 3),), 30, 8, 99) == 9
    assert limit(hpa, ((10.0, 3),), 71, 8, 99) == 12
    assert limit(hpa, ((10.0, 3), (20.0, -1)), 30, 7, 99) == 9
    assert limit(hpa, ((10.0, 9),), 30, 14, 99) == 14  # never back below what is there


def test_scaling_down_waits_for_the_highest_recommendation_of_its_window() -> None:
    recommended = ((0.0, 5), (100.0, 3), (200.0, 2))
    assert stabilise(HPA, recommended, 250, 5, 1) == 5
    assert stabilise(HPA, recommended, 301, 5, 1) == 3
    assert stabilise(HPA, recommended, 401, 5, 1) == 2
    assert stabilise(HPA, recommended, 501, 5, 1) == 1


def test_scaling_up_waits_for_the_lowest_recommendation_of_its_window() -> None:
    hpa = replace(HPA, up=replace(UP, window_s=60))
    assert stabilise(hpa, ((0.0, 2), (30.0, 4)), 50, 2, 8) == 2
    assert stabilise(hpa, ((0.0, 2), (30.0, 4)), 70, 2, 8) == 4
    assert stabilise(hpa, ((0.0, 2), (30.0, 4)), 100, 2, 8) == 8


def test_the_window_of_scaling_down_holds_from_the_first_decision_on() -> None:
    wanted, history = decide(HPA, History(), 0.0, Observed(3, [0.0] * 3))
    assert wanted == 3
    assert decide(HPA, history, 299.0, Observed(3, [0.0] * 3))[0] == 3
    assert decide(HPA, history, 301.0, Observed(3, [0.0] * 3))[0] < 3


def test_a_dip_shorter_than_the_window_moves_nothing() -> None:
    history, replicas, seen = History(), 4, []
    for tick in range(30):  # 15 s a tick: idle for five minutes less one tick, then busy again
        load = 1.0 if 2 <= tick < 20 else 40.0
        replicas, history = decide(HPA, history, tick * 15.0, Observed(replicas, [load] * replicas))
        seen.append(replicas)
    assert set(seen) == {4}


def test_bounds_hold_whatever_the_metric_says() -> None:
    hpa = replace(FREE, min_replicas=2, max_replicas=5)
    assert decide(hpa, History(), 0, Observed(3, [4000] * 3))[0] == 5
    assert decide(hpa, History(), 0, Observed(3, [0] * 3))[0] == 2
    assert decide(hpa, History(), 0, Observed(9, [40] * 9))[0] == 5
    assert decide(hpa, History(), 0, Observed(1, [40]))[0] == 2


def test_a_deployment_scaled_to_nothing_is_left_alone() -> None:
    assert decide(HPA, History(), 0, Observed(0, [])) == (0, History())


def test_history_is_kept_no_longer_than_its_windows() -> None:
    history, replicas = History(), 2
    for tick in range(200):
        replicas, history = decide(HPA, history, tick * 15.0, Observed(replicas, [40 + (tick % 7) * 20] * replicas))
    assert len(history.recommended) <= DOWN.window_s / 15 + 1
    assert len(history.changed) <= 1


def test_faster_divides_every_window_and_period() -> None:
    fast = HPA.faster(10)
    assert (fast.down.window_s, fast.down.policies[0].period_s, fast.up.policies[1].period_s) == (30, 1.5, 1.5)
    assert fast.target == HPA.target
