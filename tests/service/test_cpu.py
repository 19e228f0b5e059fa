"""Cores by cgroup files of both versions, and the plan that follows."""

import os
from pathlib import Path
from typing import Any

import pytest

from service import cpu
from service.cpu import Plan

STORED = {"cores": 2, "slots": 1, "intra_op_threads": 2, "max_batch_size": 8}
MEASURED = Plan(1, 2, 8, "measured")


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("399999 100000", 3),
        ("3200000 100000", 8),
        ("garbage", 8),
    ],
)
def test_cgroup_v2_quota(tmp_path: Path, limit: str, cores: int) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": limit + "\n"}
    assert cpu.cores(write(tmp_path, files)) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("200000", 2), ("50000", 1), ("250000", 2)])
def test_cgroup_v1_quota(tmp_path: Path, quota: str, cores: int) -> None:
    folder = "sys/fs/cgroup/cpu,cpuacct/docker/abc/"
    files = {
        "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n",
        folder + "cpu.cfs_quota_us": quota,
        folder + "cpu.cfs_period_us": "100000",
    }
    assert cpu.cores(write(tmp_path, files)) == cores


def test_in_a_container_the_v1_path_of_the_host_falls_back_to_the_mount(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:cpu,cpuacct:/docker/not-visible-here\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    assert cpu.cores(write(tmp_path, files)) == 3


def test_the_least_quota_of_the_cgroup_and_its_parents_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/pod/container\n",
        "sys/fs/cgroup/pod/container/cpu.max": "max 100000",
        "sys/fs/cgroup/pod/cpu.max": "400000 100000",
        "sys/fs/cgroup/cpu.max": "max 100000",
    }
    assert cpu.cores(write(tmp_path, files)) == 4


def test_affinity_counts_where_it_is_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6})
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000"}
    assert cpu.cores(write(tmp_path, files)) == 3


def test_without_cgroups_affinity_alone_counts(tmp_path: Path) -> None:
    assert cpu.cores(tmp_path) == 8


def no_timing() -> float:
    pytest.fail("nothing had to be measured")


def test_the_stored_plan_is_used_where_the_cores_match() -> None:
    assert cpu.stored_plan(STORED, 2) == MEASURED
    assert cpu.stored_plan(STORED, 4) is None
    assert cpu.choose_plan(2, MEASURED, no_timing, {}) == MEASURED


@pytest.mark.parametrize("stored", [{}, [], None, {**STORED, "slots": 0}, {**STORED, "intra_op_threads": "two"}])
def test_a_stored_plan_that_cannot_be_followed_is_an_error_on_any_machine(stored: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        cpu.stored_plan(stored, 4)


@pytest.mark.parametrize(("image_ms", "threads"), [(9.9, 1), (10.1, 4)])
def test_without_one_the_rule_goes_by_the_time_of_one_image(image_ms: float, threads: int) -> None:
    assert cpu.choose_plan(4, None, lambda: image_ms, {}) == Plan(4, threads, 1, "rule")


def test_one_core_needs_no_timing() -> None:
    assert cpu.choose_plan(1, None, no_timing, {}) == Plan(1, 1, 1, "rule")


def test_settings_override_and_0_leaves_it_to_the_plan() -> None:
    overrides = {"slots": 2, "intra_op_threads": 0, "max_batch_size": 4}
    assert cpu.choose_plan(2, MEASURED, no_timing, overrides) == Plan(2, 2, 4, "settings")
    assert cpu.choose_plan(4, None, no_timing, {"intra_op_threads": 3}) == Plan(4, 3, 1, "settings")


def test_no_plan_has_more_slots_than_cores() -> None:
    assert cpu.choose_plan(2, Plan(6, 1, 1, "measured"), no_timing, {}).slots == 2
    assert cpu.choose_plan(2, MEASURED, no_timing, {"slots": 6}).slots == 2
