from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perf import results
from perf.findings import needs
from perf.plan import CLOSE, Check, Service, check, demands, need, service
from perf.summary import CURVE, SPREAD
from perf.tables import checks

ONE = Service(
    demand_s=0.010,
    photos={"small.jpg": 0.006, "large.jpg": 0.014},
    spread=[1.0] * len(SPREAD),
    idle_s=0.020,
    idle_demand_s=0.010,
    late_s=[0.0] * len(CURVE),
)


def planned(rate: float = 100, max_p99_ms: float = 200, cpus: float = 1.0, one: Service = ONE, **given: Any) -> Any:
    return need("m", one, rate=rate, max_p99_ms=max_p99_ms, cpus=cpus, price=0.04, **given)


def test_a_plan_has_room_for_the_work_and_no_replica_too_many() -> None:
    made = planned(rate=1000)
    assert made.cores >= 1000 * 0.010 / 0.8
    assert made.cores <= 1000 * 0.010 / 0.8 + 1
    assert made.p99_ms <= 200
    assert made.price_hour == pytest.approx(made.cores * 0.04)
    assert made.price_million == pytest.approx(made.price_hour / 3.6)


def test_more_replicas_than_are_simulated_are_none_and_a_lonely_request_has_its_own() -> None:
    assert planned(rate=1e9) is None
    assert planned(rate=1e-300, cpus=0.5).replicas == 1


def test_several_replicas_are_planned_with_what_an_answer_takes_behind_a_balancer() -> None:
    made = planned(rate=1000, beside=1.2)
    assert made.utilisation == pytest.approx(1000 * 0.012 / made.cores, rel=0.02)
    assert made.replicas > planned(rate=1000).replicas
    assert planned(rate=10, beside=1.2) == planned(rate=10)  # one is enough


def test_the_work_drawn_is_in_all_that_which_was_measured() -> None:
    spread = [0.5 + (p / 100) ** 4 for p in SPREAD]  # a long tail, cut at the outer quantiles
    work = demands(replace(ONE, spread=spread), 200_000, None, np.random.default_rng(0))
    assert work.mean() == pytest.approx(ONE.demand_s, rel=0.01)


def test_a_tighter_limit_needs_more() -> None:
    assert planned(max_p99_ms=34).replicas > planned(max_p99_ms=200).replicas


def test_half_a_core_more_is_no_second_slot() -> None:
    one, more = planned(rate=1000, cpus=1.0), planned(rate=1000, cpus=1.5)
    assert (more.replicas, more.utilisation) == (one.replicas, one.utilisation)
    assert more.cores == 1.5 * one.cores


def test_what_an_answer_takes_beside_its_service_is_that_of_the_replica_measured() -> None:
    paused = replace(ONE, cpus=0.05)  # 10 ms of work are two periods' quota
    assert planned(one=ONE, cpus=2.0).p50_ms - planned(one=paused, cpus=2.0).p50_ms == pytest.approx(10, abs=1)


def test_a_limit_under_the_service_time_cannot_be_met() -> None:
    assert planned(max_p99_ms=10) is None


def test_a_mix_of_large_photos_needs_more() -> None:
    small, large = planned(rate=2000, mix={"small.jpg": 1.0}), planned(rate=2000, mix={"large.jpg": 1.0})
    assert large.cores / small.cores == pytest.approx(14 / 6, rel=0.1)


def test_drawn_work_has_the_measured_mean_and_spread() -> None:
    spread = np.linspace(0.8, 1.2, len(SPREAD)).tolist()
    work = demands(replace(ONE, spread=spread), 20_000, None, np.random.default_rng(0))
    assert work.mean() == pytest.approx(0.010, rel=0.02)
    assert work.max() == pytest.approx(0.014 * 1.2)


def test_service_times_come_from_cpu_and_idle_answers(finished: Path) -> None:
    _, cells = results.read(finished)
    one = service(next(c for c in cells if (c.stack, c.model) == ("single", "mobilenet_v2")), 0.5)
    assert one is not None
    assert one.demand_s == pytest.approx(0.0055, rel=0.05)  # 11 s at half a core for 1,000 answers
    assert set(one.photos) == {"a.jpg", "b.jpg"}


def test_a_system_that_follows_the_model_is_predicted_closely(finished: Path) -> None:
    run, cells = results.read(finished)
    for name in ("single", "balanced"):
        rates = [c for c in check(run, cells) if c.name == f"{name} mobilenet_v2" and c.figure.startswith("closed")]
        assert len(rates) == 2
        assert all(abs(c.error) < CLOSE for c in rates)


def test_an_idle_answer_of_a_slower_machine_is_not_taken_for_a_wait(finished: Path) -> None:
    slow = replace(ONE, idle_s=0.020, idle_demand_s=0.020)  # all of its time is service
    waits = replace(ONE, idle_s=0.020, idle_demand_s=0.010)
    assert planned(rate=10, one=waits).p50_ms - planned(rate=10, one=slow).p50_ms == pytest.approx(10, abs=1)
    cells = results.read(finished)[1]
    assert {c.idle_cpu_s for c in cells if c.stack == "single"} == {
        11 * 0.5 / 40
    }  # the fixture's counters and requests


def test_stalls_that_one_replica_met_are_in_every_plan() -> None:
    stalls = [0.0 if percentile < 98 else 0.030 for percentile in CURVE]
    without, made = planned(), planned(one=replace(ONE, late_s=stalls))
    assert made.p50_ms == pytest.approx(without.p50_ms)
    assert made.p99_ms - without.p99_ms == pytest.approx(30, abs=3)
    assert planned(max_p99_ms=50, one=replace(ONE, late_s=stalls)) is None  # 14 ms of work, 10 ms of way, 30 ms late


def test_stalls_are_those_of_the_limit_that_was_measured_whatever_limit_is_planned_for(finished: Path) -> None:
    run, cells = results.read(finished)
    (cell,) = (c for c in cells if (c.stack, c.model) == ("single", "mobilenet_v2"))
    timed = cell.latency["rate"]
    late = replace(timed, curve=[(percentile, ms + 30) for percentile, ms in timed.curve])
    stalled = replace(cell, latency=cell.latency | {"rate": late})
    # simulated with so little of a core, the measured answers would show no stall
    made = [needs(run, [c], rate=1, max_p99_ms=9000, price=0.04, cpus=0.02).rows[0] for c in (cell, stalled)]
    assert int(made[1][4]) - int(made[0][4]) == pytest.approx(30, abs=3)


def test_the_tail_of_several_replicas_is_checked_and_that_of_one_is_what_the_model_is_made_from(finished: Path) -> None:
    run, cells = results.read(finished)
    tails = {c.name.split()[0]: c for c in check(run, cells) if c.figure == "constant rate, p99 ms"}
    assert tails.keys() == {"balanced", "scaled"}
    measured = {f"{c.stack} {c.model}": c.latency["rate"].p99 for c in cells if c.latency.get("rate")}
    assert all((tail.low, tail.high) == (measured[tail.name].low, measured[tail.name].high) for tail in tails.values())


def test_each_load_is_simulated_at_the_cpu_time_of_an_answer_in_it_and_says_how_that_differs(finished: Path) -> None:
    run, cells = results.read(finished)
    single, balanced = (c for c in cells if c.model == "mobilenet_v2" and c.stack in ("single", "balanced"))

    def checked(**factors: float) -> dict[str, Check]:
        """With answers of the balanced stack that took `factors` of the single stack's CPU time, by load."""
        costly = {
            load: replace(latency, cpu_s=(single.latency[load].cpu_s or nan) * factors[load])
            for load, latency in balanced.latency.items()
        }
        return {c.figure: c for c in check(run, [single, replace(balanced, latency=costly)]) if "balanced" in c.name}

    alike, closed, rate = checked(closed=1, rate=1), checked(closed=1.5, rate=1), checked(closed=1, rate=1.5)
    answers, mean = "closed loop, answers/s", "constant rate, mean ms"
    assert closed[answers].simulated == pytest.approx(alike[answers].simulated / 1.5, rel=0.02)
    assert closed[mean] == alike[mean]
    work_ms = single.use.cpu_s_per_1000 if single.use else 0
    assert rate[mean].simulated - alike[mean].simulated >= work_ms * 0.5 * 0.9
    assert rate[answers] == alike[answers]
    assert (closed[answers].cost, closed[mean].cost, rate[mean].cost) == pytest.approx((1.5, 1.0, 1.5))
    table = checks([*closed.values()])
    assert table.rows[0][table.header.index("CPU, x single")] == "1.50"


def test_a_simulated_figure_is_trusted_near_the_measured_one_or_within_its_noise() -> None:
    assert Check("single m", "mean", 100.0, 110.0).within
    assert not Check("single m", "mean", 100.0, 120.0).within
    assert Check("single m", "p99", 100.0, 120.0, low=80.0, high=125.0).within


def test_replicas_that_came_and_went_are_not_simulated(finished: Path) -> None:
    run, cells = results.read(finished)
    moved = [replace(c, use=replace(c.use, replicas=1.4)) if c.use and c.stack == "scaled" else c for c in cells]
    assert {c.name.split()[0] for c in check(run, cells)} == {"single", "balanced", "scaled"}
    assert {c.name.split()[0] for c in check(run, moved)} == {"single", "balanced"}


def test_a_constant_rate_on_a_filled_machine_is_shown_and_not_compared(finished: Path) -> None:
    run, cells = results.read(finished)
    assert not any(c.filled for c in check(run, cells))
    made = check({**run, "machine": {**run["machine"], "cores": 0.5}}, cells)
    assert {c.figure for c in made if c.filled} == {"constant rate, mean ms", "constant rate, p99 ms"}
    assert {c.figure for c in made if not c.filled} == {"closed loop, answers/s", "closed loop, mean ms"}
    table = checks(made)
    assert {row[-1] for row in table.rows if row[1].startswith("constant")} == {"not compared"}
    assert "can fill the cores" in table.note
    assert "can fill the cores" not in checks(check(run, cells)).note
