"""Plans: which are measured, and which is chosen."""

import asyncio
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from convert import timing
from convert.timing import CALLS, ROUNDS, Timed, best, best_of, plan_grid, plans, served
from service.cpu import cores
from tests.service.packages import write_package


@pytest.mark.parametrize("available", [1, 2, 8])
def test_plans_differ_and_use_no_more_slots_than_cores(available: int) -> None:
    found = plans(available)
    assert len(set(found)) == len(found)
    assert all(slots <= available and threads <= available for slots, threads, _ in found)
    assert (available, 1, 1) in found


def test_near_the_best_throughput_the_smallest_batch_wins_then_the_lowest_latency() -> None:
    fast, near = Timed(2, 2, 4, 100.0, 5.0), Timed(2, 1, 2, 96.0, 9.0)
    prompt, slow = Timed(2, 2, 2, 91.0, 5.0), Timed(2, 2, 1, 80.0, 1.0)
    assert best([fast, near, slow]) == near
    assert best([fast, near, prompt, slow]) == prompt
    assert best([fast, slow]) == fast


@pytest.mark.parametrize("slots", [1, 3])
def test_as_many_calls_run_at_once_as_there_are_slots(slots: int) -> None:
    running, most = set[int](), list[int]()

    def work() -> None:
        running.add(threading.get_ident())
        most.append(len(running))
        time.sleep(0.01)
        running.discard(threading.get_ident())

    rate = asyncio.run(served(work, slots, 0.3))
    assert max(most) == slots
    assert 0 < rate <= 100 * slots


def test_a_measurement_ends_after_its_seconds_or_its_calls() -> None:
    calls: list[int] = []
    assert best_of(lambda: calls.append(1), 60) < 1e-3
    assert len(calls) == CALLS
    calls.clear()
    best_of(lambda: calls.append(1), 0)
    assert len(calls) == 3


def test_the_grid_is_measured_and_its_best_is_the_plan(tmp_path: Path) -> None:
    model, ticks = write_package(tmp_path, "colours", 1) / "model.onnx", list[int]()
    found = plan_grid(model, np.zeros((8, 32, 32, 3), np.uint8), lambda: ticks.append(1), seconds=0.05)
    assert len(ticks) == ROUNDS * len(found["grid"]) == ROUNDS * len(plans(cores()))
    assert found["cores"] == cores()
    chosen = {key: found[key] for key in ("slots", "intra_op_threads", "max_batch_size")}
    assert any(chosen.items() <= one.items() for one in found["grid"])
    assert all(one["images_per_s"] > 0 and one["latency_ms"] > 0 for one in found["grid"])


def test_models_are_timed_in_turns_under_one_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CALLS", 1000)
    model = write_package(tmp_path, "colours", 1) / "model.onnx"
    plan = {"slots": 1, "intra_op_threads": 1, "max_batch_size": 4}
    one, other = timing.beside([model, model], plan, np.zeros((2, 32, 32, 3), np.uint8))
    assert (one.slots, one.intra_op_threads, one.max_batch_size) == (1, 1, 4)
    assert 0.2 < one.images_per_s / other.images_per_s < 5


def test_the_machine_is_named() -> None:
    found = timing.machine()
    assert found["cores"] == cores()
    assert found["cpu"]
