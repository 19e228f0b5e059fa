"""Limits on real processes where this machine has the cgroups for it, and the files of both cgroup versions."""

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from perf import cgroups
from perf.limits import Affinity, CgroupV2, Group, limited
from perf.usage import Ledger, Usage, of_process_group

SPIN = ["python3", "-S", "-c", "import time; e = time.time() + 1.5\nwhile time.time() < e: pass"]


def spend(group: Group, command: list[str]) -> Usage:
    """What a command used under the group's limit, as the group says just before the end; the most of its memory, which
    is gone before it."""
    process = subprocess.Popen(group.command(command), start_new_session=True)
    used = Usage()
    while process.poll() is None:
        now = group.usage(process.pid)
        used = replace(now, memory_bytes=max(used.memory_bytes, now.memory_bytes))
        time.sleep(0.02)
    group.close()
    return used


def test_a_quota_holds_a_process_to_its_share_and_says_how_long_it_was_kept_waiting() -> None:
    group = limited(f"sous-test-{os.getpid()}", 0, 0.25, 64 * 1024**2)
    if isinstance(group, Affinity):
        pytest.skip("no cgroup of this machine can be written: nothing limits to a fraction of a core")
    used = spend(group, SPIN)
    assert 0.1 < used.cpu_seconds < 0.6  # 1.5 s at a quarter of a core at most, and its start
    assert used.throttled_seconds > 0.1
    assert 1e6 < used.memory_bytes < 64e6
    assert not list(Path("/sys/fs/cgroup").glob(f"*/sous-test-{os.getpid()}"))


def test_affinity_spreads_replicas_over_the_cores() -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert [Affinity(k, 0.5).cores for k in range(len(cores) + 1)] == [[core] for core in [*cores, cores[0]]]
    assert Affinity(0, len(cores) + 1).cores == cores


def test_affinity_measures_a_process_group_by_proc() -> None:
    group = Affinity(0, 1)
    process = subprocess.Popen(group.command(SPIN), start_new_session=True)
    time.sleep(1)
    allowed, used = os.sched_getaffinity(process.pid), group.usage(process.pid)
    process.wait()
    assert allowed == set(group.cores)
    assert 0.1 < used.cpu_seconds < 1.5
    assert used.memory_bytes > 1e6
    assert of_process_group(process.pid) == Usage()


Tree = Callable[[dict[str, str]], Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A root folder with these files."""

    def make(files: dict[str, str]) -> Path:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        return tmp_path

    return make


V1 = {
    "proc/7/cgroup": "5:memory:/docker/abc\n3:cpuacct,cpu:/docker/abc\n0::/\n",
    "sys/fs/cgroup/cpu/docker/abc/cpu.stat": "nr_periods 10\nnr_throttled 5\nthrottled_time 1500000000\n",
    "sys/fs/cgroup/cpuacct/docker/abc/cpuacct.usage": "2500000000\n",
    "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": "1000\n",
    "sys/fs/cgroup/memory/docker/abc/memory.stat": "cache 500\ntotal_inactive_file 400\n",
}
V2 = {
    "proc/7/cgroup": "0::/system.slice/docker-abc.scope\n",
    "sys/fs/cgroup/system.slice/docker-abc.scope/cpu.stat": "usage_usec 2500000\nthrottled_usec 1500000\n",
    "sys/fs/cgroup/system.slice/docker-abc.scope/memory.current": "1000\n",
    "sys/fs/cgroup/system.slice/docker-abc.scope/memory.stat": "anon 600\ninactive_file 400\n",
}


@pytest.mark.parametrize("files", [V1, V2])
def test_usage_is_read_from_either_version_of_cgroups(tree: Tree, files: dict[str, str]) -> None:
    assert cgroups.of_process("7", within="abc", root=tree(files)) == Usage(2.5, 600, 1.5)


def test_another_process_with_that_id_is_not_taken_for_it(tree: Tree) -> None:
    with pytest.raises(ProcessLookupError):
        cgroups.of_process("7", within="def", root=tree(V1))
    with pytest.raises(OSError, match="8/cgroup"):
        cgroups.of_process("8", within="abc", root=tree(V1))


def test_a_v2_group_is_made_beside_our_own_where_both_controllers_are_handed_on(tree: Tree) -> None:
    own = {"proc/self/cgroup": "0::/user/session\n", "sys/fs/cgroup/user/cgroup.subtree_control": "cpu io memory\n"}
    group = limited("sous-x", 0, 0.5, 1024, root=tree(own))
    assert isinstance(group, CgroupV2)
    assert (group.folder / "cpu.max").read_text() == "50000 100000"
    group.set_cpus(2)
    assert (group.folder / "cpu.max").read_text() == "200000 100000"
    assert (group.folder / "memory.max").read_text() == "1024"
    assert group.folder.parent.name == "user"


@pytest.mark.parametrize("handed_on", ["io\n", "memory\n", None])
def test_without_the_controllers_whole_cores_are_all_that_is_left(tree: Tree, handed_on: str | None) -> None:
    files = {"proc/self/cgroup": "0::/user/session\n"}
    if handed_on:
        files["sys/fs/cgroup/user/cgroup.subtree_control"] = handed_on
    assert isinstance(limited("sous-x", 0, 0.5, 1024, root=tree(files)), Affinity)


def test_totals_keep_what_the_ended_have_used() -> None:
    ledger = Ledger()
    assert ledger.update({"a": Usage(1, 100, 0.25), "b": Usage(2, 200, 0.5)}) == Usage(3, 300, 0.75)
    assert ledger.update({"b": Usage(3, 200, 0.5)}) == Usage(4, 200, 0.75)
    assert ledger.update({"b": Usage(0.5, 50, 0)}) == Usage(4.5, 50, 0.75)  # b began again
    assert ledger.update({}) == Usage(4.5, 0, 0.75)
