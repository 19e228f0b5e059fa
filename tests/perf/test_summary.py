from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest

from perf.samples import Part, Sample
from perf.summary import Cell, Columns, Use, columns, idle, latencies, notes, resources_used, summarise, timeline

FOUR = [
    Sample(0, 100, 200, 1000, 0),
    Sample(0, 300, 200, 1000, 1),
    Sample(1, 1000, 503, 200, 0),
    Sample(1, 600, 200, 1000, 1),
]


def test_the_twelve_columns_of_four_requests() -> None:
    made = columns(FOUR)
    assert made == Columns(
        transactions=4, availability=75.0, elapsed_s=2.0, transferred_mb=0.0032, response_s=0.5, rate=1.5,
        throughput_mb_s=0.0016, concurrency=1.0, successful=3, failed=1, longest_s=1.0, shortest_s=0.1,
    )  # fmt: skip
    assert len(fields(Columns)) == 12


def test_latency_is_that_of_the_answered() -> None:
    made = latencies(FOUR, offered=0)
    assert made.p50.value == pytest.approx(300)
    assert dict(made.curve)[100] == 600


def test_a_stack_that_falls_behind_the_constant_rate_has_no_p99(loads: SimpleNamespace) -> None:
    behind = [s._replace(latency_ms=100 * k) for k, s in enumerate(loads.closed(20, 0, 10))]  # answers 10 a second
    made = latencies(behind, offered=20)
    assert not made.kept_up
    assert Cell("single", "m", [], latency={"rate": made}).p99_ms == float("inf")
    assert latencies(loads.closed(20, 50, 10), offered=20).kept_up
    little = [s._replace(latency_ms=10 + 4.5 * k) for k, s in enumerate(loads.closed(20, 0, 30))]  # 18.3 of 20 a second
    assert not latencies(little, offered=20).kept_up


def test_use_is_measured_between_the_first_and_last_reading(loads: SimpleNamespace) -> None:
    made = resources_used(loads.closed(100, 10, 10), loads.resources(11, cores=0.5, memory=90_000_000), cores=2)
    assert made is not None
    assert made.memory_mb == 90
    assert made.cpu_s_per_1000 == pytest.approx(5.0)
    assert made.cores == pytest.approx(0.5, rel=0.01)
    assert made.generator_cores == pytest.approx(0.2)
    assert made.other == 0


def test_other_programs_on_the_machine_are_noticed(loads: SimpleNamespace) -> None:
    read = [s._replace(busy_s=s.busy_s + 0.5 * s.at_s) for s in loads.resources(11)]
    made = resources_used(loads.closed(100, 10, 10), read, cores=2)
    assert made is not None
    assert made.other == pytest.approx(0.25)


def test_replicas_over_time_stand_beside_the_rate(loads: SimpleNamespace) -> None:
    sent = [*loads.closed(2, 10, 3), *(s._replace(at_s=s.at_s + 3) for s in loads.closed(8, 10, 3))]
    read = [s._replace(replicas=1 if s.at_s < 4.5 else 3) for s in loads.resources(8)]
    points = timeline(sent, read)
    assert [p["offered"] for p in points] == [2, 2, 2, 8, 8]
    assert [p["replicas"] for p in points] == [1, 1, 1, 1, 3]


def test_idle_time_is_kept_by_photo(loads: SimpleNamespace) -> None:
    sent = [s._replace(latency_ms=10 if s.photo == 0 else 30) for s in loads.closed(20, 0, 2)]
    found = idle(sent, ["small.jpg", "large.jpg", "unsent.jpg"])
    assert {name: photo["mean_ms"] for name, photo in found.items()} == {"small.jpg": 10, "large.jpg": 30}


def test_plain_serves_the_keras_file_and_ours_the_package(run_facts: dict[str, Any], loads: SimpleNamespace) -> None:
    sent = {Part(c["stack"], c["model"], "closed"): loads.closed(50, 10) for c in run_facts["cells"]}
    cells = {(c.stack, c.model): c for c in summarise(run_facts, sent, {})}
    assert (cells["plain", "mobilenet_v2"].accuracy, cells["plain", "mobilenet_v2"].disk_mb) == (0.589, 9.7)
    assert (cells["single", "mobilenet_v2"].accuracy, cells["single", "mobilenet_v2"].disk_mb) == (0.588, 2.5)


def test_a_cell_that_failed_keeps_its_reason(run_facts: dict[str, Any]) -> None:
    run_facts["cells"] = [{"stack": "single", "model": "mobilenet_v2", "phases": {}, "reason": "failed: port taken"}]
    (cell,) = summarise(run_facts, {}, {})
    assert cell.reasons == ["failed: port taken"]
    assert cell.columns is None


def test_a_p99_of_few_answers_is_said_to_be_the_slowest(loads: SimpleNamespace) -> None:
    few, many = (latencies(loads.closed(rate, 10, 10), offered=rate) for rate in (5, 50))
    assert any("its p99 is of 50 answers" in note for note in notes({"rate": few}, None))
    assert not any("its p99 is of" in note for note in notes({"rate": many}, None))


def test_a_constant_rate_without_one_answer_has_no_latency(run_facts: dict[str, Any], loads: SimpleNamespace) -> None:
    part = Part("single", "mobilenet_v2", "closed")
    sent = {part: loads.closed(50, 10), part._replace(phase="rate"): loads.closed(5, 10, status=503)}
    cells = {(c.stack, c.model): c for c in summarise(run_facts, sent, {})}
    assert cells["single", "mobilenet_v2"].latency.keys() == {"closed"}


def test_a_cell_without_one_answer_is_invalid(run_facts: dict[str, Any], loads: SimpleNamespace) -> None:
    sent = {Part("single", "mobilenet_v2", "closed"): loads.closed(5, 10, status=0)}
    cells = {(c.stack, c.model): c for c in summarise(run_facts, sent, {})}
    assert cells["single", "mobilenet_v2"].reasons == ["no request was answered"]


def test_use_without_readings_is_none(loads: SimpleNamespace) -> None:
    assert resources_used(loads.closed(5, 10), [], cores=2) is None
    assert {f.name for f in fields(Use)} >= {"memory_mb", "cpu_s_per_1000", "throttled", "replicas"}
