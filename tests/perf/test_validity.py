"""Each way a measurement is spoilt is noticed, by its figure and its limit."""

from types import SimpleNamespace
from typing import Any

import pytest

from perf.limits import Affinity
from perf.samples import Part
from perf.summary import summarise
from perf.validity import reasons

FACTS: dict[str, Any] = {"stack": "single", "model": "m", "phases": {}}


def judged(run_facts: dict[str, Any], sent: list[Any], read: list[Any], **facts: Any) -> list[str]:
    return reasons(run_facts, FACTS | facts, {"closed": sent, "rate": []}, {"closed": read, "rate": []})


def test_a_sound_cell_has_no_reason(run_facts: dict[str, Any], loads: SimpleNamespace) -> None:
    assert judged(run_facts, loads.closed(50, 20), loads.resources()) == []


def test_a_saturated_generator(run_facts: dict[str, Any], loads: SimpleNamespace) -> None:
    read = loads.resources(generator=0.95)
    (reason,) = judged(run_facts, loads.closed(50, 20), read)
    assert reason == "closed loop: the load generator was saturated (0.95 cores, limit 0.85)"
    run_facts["options"]["threads"] = 2
    assert judged(run_facts, loads.closed(50, 20), read) == []
    run_facts["options"] |= {"threads": 8, "users": 1}  # one process all the same
    assert judged(run_facts, loads.closed(50, 20), read) == [reason]


def test_a_host_that_takes_the_cpu_away(run_facts: dict[str, Any], loads: SimpleNamespace) -> None:
    read = [s._replace(steal_s=0.2 * s.at_s) for s in loads.resources()]
    (reason,) = judged(run_facts, loads.closed(50, 20), read)
    assert reason == "closed loop: the host took 10% of the CPU time (limit 5%)"


def test_a_machine_that_ran_at_little_of_its_speed(run_facts: dict[str, Any], loads: SimpleNamespace) -> None:
    run_facts["cells"] = [FACTS | {"stack": stack} for stack in ("plain", "single", "balanced")]
    parts = [Part(stack, "m", "closed") for stack in ("plain", "single", "balanced")]
    read = [[s._replace(yardstick_ms=ms) for s in loads.resources()] for ms in (2.0, 1.55, 1.2)]
    sent = dict.fromkeys(parts, loads.closed(50, 20))
    cells = summarise(run_facts, sent, dict(zip(parts, read, strict=True)))
    slow = "closed loop: the machine ran at 60% of its speed in this run's fastest cell (limit 75%)"
    assert [slow in cell.reasons for cell in cells] == [True, False, False]


def test_other_programs_on_the_machine(run_facts: dict[str, Any], loads: SimpleNamespace) -> None:
    read = [s._replace(busy_s=s.busy_s + 0.8 * s.at_s) for s in loads.resources()]
    (reason,) = judged(run_facts, loads.closed(50, 20), read)
    assert reason == "closed loop: other programs took 40% of the CPU time (limit 30%)"


@pytest.mark.parametrize(("status", "kind"), [(0, "no answer"), (503, "status 503"), (429, "status 429")])
def test_too_many_errors(run_facts: dict[str, Any], loads: SimpleNamespace, status: int, kind: str) -> None:
    sent = [*loads.closed(50, 20), *loads.closed(1, 20, status=status)]
    (reason,) = judged(run_facts, sent, loads.resources())
    assert reason == f"closed loop: 2.0% of the requests failed ({kind}; limit 1%)"


def test_no_replica_ready(run_facts: dict[str, Any], loads: SimpleNamespace) -> None:
    read = [s._replace(replicas=0) if s.at_s == 5 else s for s in loads.resources()]
    assert judged(run_facts, loads.closed(50, 20), read) == ["closed loop: only 0 of 1 replicas were ready for a time"]


def test_a_balanced_replica_that_was_not_ready(run_facts: dict[str, Any], loads: SimpleNamespace) -> None:
    two = loads.resources(replicas=2)
    one = [s._replace(replicas=1) if s.at_s == 5 else s for s in two]
    assert judged(run_facts, loads.closed(50, 20), two, stack="balanced") == []
    (reason,) = judged(run_facts, loads.closed(50, 20), one, stack="balanced")
    assert reason == "closed loop: only 1 of 2 replicas were ready for a time"
    assert judged(run_facts, loads.closed(50, 20), one, stack="scaled") == []


def test_the_constant_rate_is_judged_too(run_facts: dict[str, Any], loads: SimpleNamespace) -> None:
    sent = {"closed": loads.closed(50, 20), "rate": loads.closed(50, 20, status=500)}
    (reason,) = reasons(run_facts, FACTS, sent, {"closed": loads.resources(), "rate": loads.resources()})
    assert reason.startswith("constant rate: 100.0% of the requests failed")


def test_what_a_cell_died_of_is_a_reason(run_facts: dict[str, Any], loads: SimpleNamespace) -> None:
    assert judged(run_facts, loads.closed(50, 20), loads.resources(), reason="interrupted") == ["interrupted"]


def test_a_plain_recipe_that_has_more_cores_than_the_containers(
    run_facts: dict[str, Any], loads: SimpleNamespace
) -> None:
    def judge(engine: str, cpus: float) -> list[str]:
        run_facts["options"] |= {"engine": engine, "cpus": cpus}
        facts = {"stack": "plain", "limited_by": Affinity(0, 1).how}
        return judged(run_facts, loads.closed(50, 20), loads.resources(), **facts)

    assert judge("docker", 0.5) == ["held to whole cores, where other stacks have 0.5: run as root, or with --cpus 1"]
    assert judge("docker", 1.0) == judge("local", 0.5) == []


def test_a_varying_load_that_was_not_answered(run_facts: dict[str, Any], loads: SimpleNamespace) -> None:
    sent = {"closed": loads.closed(50, 20), "rate": [], "varying": loads.closed(5, 20, status=503)}
    read = {"closed": loads.resources(), "rate": [], "varying": [s._replace(replicas=0) for s in loads.resources()]}
    assert reasons(run_facts, FACTS, sent, read) == [
        "varying load: 100.0% of the requests failed (status 503; limit 1%)",
        "varying load: only 0 of 1 replicas were ready for a time",
    ]
