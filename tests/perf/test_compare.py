from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perf import results
from perf.compare import Difference, compare, left_out, table, unlike
from perf.intervals import Interval
from perf.summary import Cell


@pytest.fixture
def cells(finished: Path) -> list[Cell]:
    return results.read(finished)[1]


def faster(cell: Cell, times: float) -> Cell:
    assert cell.rate
    return replace(cell, rate=Interval(*(times * v for v in (cell.rate.value, cell.rate.low, cell.rate.high))))


def exact(value: float) -> Interval:
    return Interval(value, value, value)


def rates(differences: list[Difference]) -> dict[str, str]:
    return {d.name: d.verdict for d in differences if d.figure == "answers/s"}


def test_a_run_shows_no_difference_from_itself(cells: list[Cell]) -> None:
    verdicts = {d.verdict for d in compare(cells, cells)}
    assert verdicts <= {"no difference shown", "no interval"}


def test_conditions_that_differ_are_named(run_facts: dict[str, Any]) -> None:
    other = deepcopy(run_facts)
    other["options"]["cpus"] = 2.0
    other["options"]["stacks"] = ["single"]  # what is missing is said cell by cell
    other["machine"]["cpu"] = "another"
    assert unlike(run_facts, run_facts) == []
    assert unlike(run_facts, other) == ["cpu (Test CPU and another)", f"cpus ({run_facts['options']['cpus']} and 2.0)"]


def test_memory_that_never_moved_is_judged_all_the_same(cells: list[Cell]) -> None:
    def of(mb: float) -> list[Cell]:
        steady = Interval(mb, mb, mb)
        return [replace(c, use=replace(c.use, memory=steady)) for c in cells if c.use]

    assert {d.verdict for d in compare(of(90), of(300)) if d.figure == "memory MB"} == {"worse"}


def test_a_rate_clearly_higher_is_better_and_one_clearly_lower_worse(cells: list[Cell]) -> None:
    changed = [faster(c, 1.5 if c.stack == "single" else 0.5) for c in cells]
    verdicts = rates(compare(cells, changed))
    assert verdicts["single mobilenet_v2"] == "better"
    assert verdicts["balanced mobilenet_v2"] == "worse"


@pytest.mark.parametrize(("failed", "verdict"), [(0, "no difference shown"), (9, "worse")])
def test_requests_that_failed_are_a_difference_however_few(cells: list[Cell], failed: int, verdict: str) -> None:
    before, after = ([replace(c, sent=1000, failed=n) for c in cells] for n in (0, failed))
    assert {d.verdict for d in compare(before, after) if d.figure == "answered %"} == {verdict}


def test_accuracy_is_compared_exactly_for_its_photos_are_the_same(cells: list[Cell]) -> None:
    before, after = ([replace(c, accuracy=top1) for c in cells] for top1 in (0.60, 0.58))
    assert {d.verdict for d in compare(before, after) if d.figure == "top-1 %"} == {"worse"}


def test_a_p99_of_too_few_answers_gets_no_verdict(cells: list[Cell]) -> None:
    def of(n: int, p99: float) -> list[Cell]:
        return [replace(c, latency={"closed": replace(c.latency["closed"], n=n, p99=exact(p99))}) for c in cells]

    def verdicts(n: int) -> set[str]:
        return {d.verdict for d in compare(of(n, 100), of(n, 200)) if d.figure == "p99 ms, closed loop"}

    assert verdicts(380) == {"no interval"}
    assert verdicts(381) == {"worse"}


def test_a_difference_within_the_interval_is_not_called_one(cells: list[Cell]) -> None:
    wide = [replace(c, rate=Interval(c.rate.value, 0.9 * c.rate.value, 1.1 * c.rate.value)) for c in cells if c.rate]
    assert set(rates(compare(wide, [faster(c, 1.05) for c in wide])).values()) == {"no difference shown"}


def test_less_latency_is_better(cells: list[Cell]) -> None:
    def slower(cell: Cell) -> Cell:
        timed = cell.latency["rate"]
        return replace(cell, latency={**cell.latency, "rate": replace(timed, p50=Interval(900, 890, 910))})

    found = [
        d
        for d in compare(cells, [slower(c) for c in cells])
        if d.figure == "p50 ms, constant rate" and d.name == "single mobilenet_v2"
    ]
    assert [d.verdict for d in found] == ["worse"]


def test_memory_and_cpu_are_judged_by_the_noise_of_their_readings(cells: list[Cell]) -> None:
    def more(cell: Cell) -> Cell:
        assert cell.use
        return replace(cell, use=replace(cell.use, memory=Interval(400, 399, 401), cpu=Interval(1, 0.9, 1.1)))

    found = {d.figure: d.verdict for d in compare(cells, [more(c) for c in cells]) if d.name == "single mobilenet_v2"}
    assert (found["memory MB"], found["CPU s/1,000"]) == ("worse", "better")


def test_latencies_at_different_rates_are_not_compared(cells: list[Cell]) -> None:
    other = [
        replace(c, latency={**c.latency, "rate": replace(c.latency["rate"], offered=3.0, answered=3.0)}) for c in cells
    ]
    assert not [d for d in compare(cells, other) if "constant rate" in d.figure]
    named = [text for text in left_out(cells, other) if text.startswith("single mobilenet_v2, constant rate: ")]
    assert len(named) == 1
    assert named[0].endswith(" and 3.0/s are more than 5% apart (--rate makes them one)")


def test_a_rate_that_is_no_longer_kept_up_with_is_named(cells: list[Cell]) -> None:
    late = [replace(c, latency={**c.latency, "rate": replace(c.latency["rate"], answered=0.1)}) for c in cells]
    assert not [d for d in compare(cells, late) if "constant rate" in d.figure]
    assert "single mobilenet_v2, constant rate: did not keep up in the second run" in " ".join(left_out(cells, late))


def test_a_difference_of_under_a_hundredth_is_none_however_narrow_the_intervals(cells: list[Cell]) -> None:
    def verdicts(times: float) -> set[str]:
        def exactly(cell: Cell, times: float) -> Cell:
            assert cell.use
            value = times * cell.use.memory_mb
            return replace(cell, use=replace(cell.use, memory=Interval(value, value, value)))

        found = compare([exactly(c, 1) for c in cells], [exactly(c, times) for c in cells])
        return {d.verdict for d in found if d.figure == "memory MB"}

    assert verdicts(1.004) == {"no difference shown"}
    assert verdicts(1.02) == {"worse"}


def test_invalid_and_missing_cells_are_named(cells: list[Cell]) -> None:
    spoilt = [replace(c, reasons=["x"]) if c.stack == "plain" else c for c in cells if c.stack != "scaled"]
    assert left_out(cells, spoilt) == [
        "plain mobilenet_v2: invalid in the second run (x)",
        "plain resnet101_v2: invalid in the second run (x)",
        "scaled mobilenet_v2: not in the second run",
        "scaled resnet101_v2: not in the second run",
    ]
    assert {d.name.split()[0] for d in compare(cells, spoilt)} == {"single", "balanced"}


def test_the_table_says_what_the_intervals_hold(cells: list[Cell]) -> None:
    made = table(compare(cells, cells))
    assert "repeat a run" in made.note
    assert all(len(row) == len(made.header) for row in made.rows)
