"""CPU and memory limits of local processes: cgroups v1 or v2 where they can be written, else taskset."""

import contextlib
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from perf import cgroups
from perf.usage import Usage, of_process_group

PERIOD_US = 100_000


class Group:
    """Processes under one limit. `how` says what holds them to it."""

    how: str

    def command(self, command: Sequence[str]) -> list[str]:
        """The command, run under the limit."""
        raise NotImplementedError

    def usage(self, pgid: int) -> Usage:
        """Of all processes of the process group, or of the cgroup they are in."""
        raise NotImplementedError

    def set_cpus(self, cpus: float) -> None:
        """Another CPU limit from now on, where it can be changed."""

    def close(self) -> None:
        """Take the limit away again; the processes have ended."""


class CgroupV1(Group):
    how = "cgroup v1 quota"

    def __init__(self, folders: dict[str, Path], cpus: float, memory_bytes: int) -> None:
        self.folders = folders
        for folder in folders.values():
            folder.mkdir(exist_ok=True)  # controllers may share one
        (folders["cpu"] / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (folders["memory"] / "memory.limit_in_bytes").write_text(str(memory_bytes))
        self.set_cpus(cpus)

    def command(self, command: Sequence[str]) -> list[str]:
        return _joining([folder / "tasks" for folder in self.folders.values()], command)

    def usage(self, _pgid: int) -> Usage:
        return cgroups.v1(self.folders)

    def set_cpus(self, cpus: float) -> None:
        (self.folders["cpu"] / "cpu.cfs_quota_us").write_text(str(round(cpus * PERIOD_US)))

    def close(self) -> None:
        for folder in set(self.folders.values()):
            _remove(folder)


class CgroupV2(Group):
    how = "cgroup v2 quota"

    def __init__(self, folder: Path, cpus: float, memory_bytes: int) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "memory.max").write_text(str(memory_bytes))
        self.set_cpus(cpus)

    def command(self, command: Sequence[str]) -> list[str]:
        return _joining([self.folder / "cgroup.procs"], command)

    def usage(self, _pgid: int) -> Usage:
        return cgroups.v2(self.folder)

    def set_cpus(self, cpus: float) -> None:
        (self.folder / "cpu.max").write_text(f"{round(cpus * PERIOD_US)} {PERIOD_US}")

    def close(self) -> None:
        _remove(self.folder)


class Affinity(Group):
    how = "taskset: whole cores, no memory limit"

    def __init__(self, index: int, cpus: float) -> None:
        cores = sorted(os.sched_getaffinity(0))
        count = max(1, int(cpus))
        self.cores = [cores[(index * count + k) % len(cores)] for k in range(min(count, len(cores)))]

    def command(self, command: Sequence[str]) -> list[str]:
        return ["taskset", "--cpu-list", ",".join(map(str, self.cores)), *command]

    def usage(self, pgid: int) -> Usage:
        return of_process_group(pgid)


def limited(name: str, index: int, cpus: float, memory_bytes: int, root: Path = cgroups.ROOT) -> Group:
    """The strictest limit this machine lets us set, for processes to be started by `Group.command`.

    Args:
        name: names the cgroup; unique among those that live.
        index: which of several equal groups: affinity spreads them over the cores.
    """
    with contextlib.suppress(OSError):
        if folders := _v1_folders(root, name):
            return CgroupV1(folders, cpus, memory_bytes)
    with contextlib.suppress(OSError, KeyError):
        if folder := _v2_folder(root, name):
            return CgroupV2(folder, cpus, memory_bytes)
    return Affinity(index, cpus)


def _v1_folders(root: Path, name: str) -> dict[str, Path] | None:
    own = cgroups.hierarchies("self", root)
    writable = all(c in own and os.access(own[c], os.W_OK) for c in cgroups.CONTROLLERS)
    return {c: own[c] / name for c in cgroups.CONTROLLERS} if writable else None


def _v2_folder(root: Path, name: str) -> Path | None:
    """Beside our own cgroup: a cgroup with processes may not hand controllers to its children."""
    own, top = cgroups.hierarchies("self", root)[""], root / "sys/fs/cgroup"
    parent = own if own == top else own.parent
    handed_on = (parent / "cgroup.subtree_control").read_text().split()
    return parent / name if {"cpu", "memory"} <= set(handed_on) and os.access(parent, os.W_OK) else None


def _joining(files: Sequence[Path], command: Sequence[str]) -> list[str]:
    """The command started by a shell that first puts itself into the cgroups; children follow."""
    joins = "".join(f"echo $$ >{shlex.quote(str(file))} && " for file in dict.fromkeys(files))
    return ["/bin/sh", "-c", f'{joins}exec "$@"', "sh", *command]


def _remove(folder: Path) -> None:
    for _ in range(50):  # the kernel lets go of ended processes a little later
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
        else:
            return
