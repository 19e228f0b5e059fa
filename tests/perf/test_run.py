"""A run's cells one after the other, on a stack that is a small server, with the real load generator."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perf import results
from perf.run import QUICK, STACKS, STUDY_ORDER, Options, Times, cell_s, length_s, run, settle, start
from perf.samples import Part, Sample

SHORT = Times(warm=0.1, idle=0.2, closed=1, rate=1, level=0.5)


@pytest.fixture
def options(tmp_path: Path, models_dir: Path, photos_dir: Path) -> Options:
    out = tmp_path / "out"
    out.mkdir()
    return Options(
        stacks=("single", "scaled"),
        models=("mobilenet_v2",),
        tool="locust",
        threads=1,
        users=4,
        rate=None,
        times=SHORT,
        engine="local",
        replicas=2,
        max_replicas=3,
        cpus=0.5,
        memory_mb=512,
        models_dir=models_dir,
        sources=tmp_path,
        photos=photos_dir,
        out=out,
    )


class Stacks:
    """`up` for tests: every stack is the same server; counts what is up and notes what was asked for."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.standing = 0
        self.broken: set[str] = set()

    @contextlib.contextmanager
    def up(self, kind: str, **given: Any) -> Iterator[Any]:
        self.asked.append((kind, given))
        if kind in self.broken:
            raise RuntimeError("port 8000 is taken")
        self.standing += 1
        try:
            yield self.server
        finally:
            self.standing -= 1


def measured(options: Options, stacks: Stacks) -> tuple[dict[str, Any], list[Any]]:
    facts, told = start(options, ["a.jpg", "b.jpg"]), []
    run(options, facts, stacks.up, lambda name, seconds: None, lambda cell, sent: told.append((cell, len(sent))))
    return facts, told


def test_every_cell_is_measured_in_all_its_parts(options: Options, server: Any, children_end: None) -> None:
    stacks = Stacks(server)
    _, told = measured(options, stacks)
    run_facts, cells = results.read(options.out)
    assert [(c.stack, sorted(c.latency)) for c in cells] == [
        ("single", ["closed", "rate"]),
        ("scaled", ["closed", "rate"]),
    ]
    assert [c.columns.availability for c in cells if c.columns] == [100, 100]
    assert not cells[0].timeline
    assert cells[1].timeline
    assert set(cells[0].idle) == {"a.jpg", "b.jpg"}
    offered, peak = cells[0].latency["rate"].offered, cells[0].columns.rate if cells[0].columns else 0
    assert offered == pytest.approx(0.6 * peak, rel=1e-3)  # samples.csv has milliseconds to three places
    levels = [rate for rate, _ in run_facts["cells"][1]["phases"]["varying"]["levels"]]
    assert levels[0] == levels[3] < levels[1] < levels[2]  # low, medium, high, low
    assert [n > 10 for _, n in told] == [True, True]
    assert stacks.standing == 0
    assert stacks.asked[0][1]["cpus"] == 0.5


def test_a_stack_that_does_not_come_up_costs_only_its_own_cell(options: Options, server: Any) -> None:
    stacks = Stacks(server)
    stacks.broken = {"single"}
    measured(replace(options, stacks=("single", "balanced")), stacks)
    _, (single, balanced) = results.read(options.out)
    assert single.reasons == ["failed: port 8000 is taken"]
    assert balanced.columns


def test_counters_that_vanish_for_a_moment_cost_no_cell(
    options: Options, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks, usage, calls = Stacks(server), server.usage, iter(range(1000))

    def going() -> Any:
        if next(calls) < 2:  # before and after the idle answers
            raise FileNotFoundError("the replica is gone")
        return usage()

    monkeypatch.setattr(server, "usage", going)
    measured(replace(options, stacks=("single",)), stacks)
    _, (single,) = results.read(options.out)
    assert [reason for reason in single.reasons if "the host took" not in reason] == []  # it may, here
    assert single.idle_cpu_s is None
    assert single.columns


def test_a_run_of_which_nothing_came_up_says_why(options: Options, server: Any) -> None:
    stacks = Stacks(server)
    stacks.broken = {"single"}
    measured(replace(options, stacks=("single",)), stacks)
    _, (single,) = results.read(options.out)
    assert single.reasons == ["failed: port 8000 is taken"]


def test_an_interrupted_run_keeps_what_was_measured_and_takes_the_stack_down(
    options: Options, server: Any, children_end: None
) -> None:
    def interrupt() -> None:
        while ",closed," not in (options.out / "samples.csv").read_text():
            time.sleep(0.1)
        time.sleep(4)
        os.kill(os.getpid(), signal.SIGINT)

    (options.out / "samples.csv").write_text(",".join((*Part._fields, *Sample._fields)) + "\n")
    stacks, thread = Stacks(server), threading.Thread(target=interrupt)
    long = replace(options, times=Times(0.1, 0.2, 1, 60, 1), rate=20.0)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        measured(long, stacks)
    thread.join()
    _, (single,) = results.read(options.out)
    assert single.reasons[0] == "interrupted"
    assert single.columns
    assert single.latency["rate"].offered == 20
    assert stacks.standing == 0


def test_the_plain_recipe_is_given_the_keras_files(options: Options, server: Any) -> None:
    stacks = Stacks(server)
    stacks.broken = {"plain", "single"}
    measured(replace(options, stacks=("plain", "single")), stacks)
    assert [given["models_dir"] for _, given in stacks.asked] == [options.sources, options.models_dir]


def test_the_length_is_that_of_all_cells(options: Options) -> None:
    assert length_s(options) == cell_s(options, "single") + cell_s(options, "scaled")
    assert cell_s(options, "scaled") > cell_s(options, "single") > 2.3
    assert length_s(replace(options, stacks=STACKS, models=STUDY_ORDER, times=QUICK)) < 300


def test_the_varying_load_begins_with_one_replica_or_when_its_time_is_over() -> None:
    left = iter([3, 3, 2, 1, 1])
    leaving, staying = SimpleNamespace(replicas=lambda: next(left)), SimpleNamespace(replicas=lambda: 3)
    settle(leaving, 30)
    assert list(left) == [1]
    began = time.monotonic()
    settle(staying, 0.6)
    assert 0.5 < time.monotonic() - began < 5
