import hashlib
import threading
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perf import results
from perf.compare import compare
from perf.promises import promises
from perf.samples import Second
from perf.summary import Cell, slower, yardstick
from perf.tables import deployments
from perf.yardstick import _WORK, yardstick_ms


def test_the_work_is_no_repetition() -> None:
    assert len(zlib.compress(_WORK)) > 0.6 * len(_WORK)


def middle(times: int = 15) -> float:
    return sorted(yardstick_ms() for _ in range(times))[times // 2]


def test_the_work_of_other_threads_is_not_counted() -> None:
    alone, stop = middle(), threading.Event()

    def burn() -> None:
        while not stop.is_set():
            hashlib.sha256(bytes(1_000_000))  # without the interpreter's lock: both cores are busy

    threads = [threading.Thread(target=burn) for _ in range(4)]
    for thread in threads:
        thread.start()
    beside = middle()
    stop.set()
    for thread in threads:
        thread.join()
    assert 0.2 < alone < 50
    assert beside < 2.5 * alone


def test_a_loads_yardstick_is_the_mean_of_the_seconds_that_have_one(loads: Any) -> None:
    seconds: list[Second] = loads.resources(3)
    assert yardstick(seconds) is None  # of a run that was made before there was one
    assert yardstick([*seconds, *(s._replace(yardstick_ms=float(k)) for k, s in enumerate(seconds))]) == 1.5


def at(cells: list[Cell], **yardsticks: float) -> list[Cell]:
    """The cells with a yardstick for each stack, in both loads."""
    return [
        replace(c, latency={k: replace(v, yardstick_ms=yardsticks.get(c.stack)) for k, v in c.latency.items()})
        for c in cells
    ]


@pytest.fixture
def measured(finished_once: Path) -> tuple[dict[str, Any], list[Cell]]:
    return results.read(finished_once)


def test_a_ratio_is_also_given_as_it_would_be_at_equal_speed(measured: tuple[dict[str, Any], list[Cell]]) -> None:
    run, cells = measured
    drifted = at(cells, plain=2.0, single=3.0, balanced=3.6)
    rows = {row[0]: row[1] for row in promises(run, drifted).rows}
    ours, plain = (next(c for c in cells if (c.stack, c.model) == (s, "mobilenet_v2")) for s in ("single", "plain"))
    assert ours.columns
    assert plain.columns
    times = ours.columns.rate / plain.columns.rate
    against = rows["mobilenet_v2: at least 10 x the plain recipe"]
    assert against.startswith(f"{times:.1f} x (")
    assert against.endswith(f"; {1.5 * times:.1f} x at equal machine speed")
    assert "x at equal machine speed" in rows["mobilenet_v2: balanced at least 1.8 x one replica, where cores allow"]
    alike = {row[0]: row[1] for row in promises(run, cells).rows}
    assert "equal machine speed" not in " ".join(alike.values())


def test_the_table_shows_each_cells_speed_and_the_comparison_both_yardsticks(
    measured: tuple[dict[str, Any], list[Cell]],
) -> None:
    _, cells = measured
    table = deployments(at(cells, plain=2.0, single=3.0))
    speeds = {row[0]: row[table.header.index("Machine, %")] for row in table.rows}
    assert speeds["plain · mobilenet_v2"] == "100"
    assert speeds["single · mobilenet_v2"] == "67"
    assert speeds["balanced · mobilenet_v2"] == "-"
    both = compare(at(cells, single=2.0), at(cells, single=3.0))
    [one] = [d for d in both if d.figure == "yardstick ms" and d.name == "single mobilenet_v2"]
    assert (one.before.value, one.after.value, one.verdict) == (2.0, 3.0, "no interval")


def test_the_machines_speed_is_compared_where_both_loads_have_it(measured: tuple[dict[str, Any], list[Cell]]) -> None:
    _, cells = measured
    halved = at(cells, single=2.0, balanced=4.0)
    single, balanced = (next(c for c in halved if c.stack == stack) for stack in ("single", "balanced"))
    assert slower(balanced, single) == 2.0
    assert slower(single, cells[0]) == 1.0  # one of them has none
