"""CPU and memory limits of local processes: cgroups v1 or v2 where they can be written, else taskset."""

import contextlib
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from perf.usage import Usage, of_process_group

ROOT = Path("/")
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

    def close(self) -> None:
        """Take the limit away again; the processes have ended."""


class CgroupV1(Group):
    how = "cgroup v1 quota"

    def __init__(self, folders: dict[str, Path], cpus: float, memory_bytes: int) -> None:
        self.folders = folders
        for folder in folders.values():
            folder.mkdir(exist_ok=True)  # controllers may share one
        (folders["cpu"] / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (folders["cpu"] / "cpu.cfs_quota_us").write_text(str(round(cpus * PERIOD_US)))
        (folders["memory"] / "memory.limit_in_bytes").write_text(str(memory_bytes))

    def command(self, command: Sequence[str]) -> list[str]:
        return _joining([folder / "tasks" for folder in self.folders.values()], command)

    def usage(self, _pgid: int) -> Usage:
        memory = self.folders["memory"]
        cached = _pairs(memory / "memory.stat")["total_inactive_file"]
        return Usage(
            int((self.folders["cpuacct"] / "cpuacct.usage").read_text()) / 1e9,
            max(0, int((memory / "memory.usage_in_bytes").read_text()) - cached),
            _pairs(self.folders["cpu"] / "cpu.stat")["throttled_time"] / 1e9,
        )

    def close(self) -> None:
        for folder in set(self.folders.values()):
            _remove(folder)


class CgroupV2(Group):
    how = "cgroup v2 quota"

    def __init__(self, folder: Path, cpus: float, memory_bytes: int) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "cpu.max").write_text(f"{round(cpus * PERIOD_US)} {PERIOD_US}")
        (folder / "memory.max").write_text(str(memory_bytes))

    def command(self, command: Sequence[str]) -> list[str]:
        return _joining([self.folder / "cgroup.procs"], command)

    def usage(self, _pgid: int) -> Usage:
        cpu = _pairs(self.folder / "cpu.stat")
        cached = _pairs(self.folder / "memory.stat")["inactive_file"]
        memory = max(0, int((self.folder / "memory.current").read_text()) - cached)
        return Usage(cpu["usage_usec"] / 1e6, memory, cpu["throttled_usec"] / 1e6)

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


def limited(name: str, index: int, cpus: float, memory_bytes: int, root: Path = ROOT) -> Group:
    """The strictest limit this machine lets us set, for processes to be started by `Group.command`.

    Args:
        name: names the cgroup; unique among those that live.
        index: which of several equal groups: affinity spreads them over the cores.
    """
    with contextlib.suppress(OSError):
        if folders := _v1_folders(root, name):
            return CgroupV1(folders, cpus, memory_bytes)
    with contextlib.suppress(OSError):
        if folder := _v2_folder(root, name):
            return CgroupV2(folder, cpus, memory_bytes)
    return Affinity(index, cpus)


def _own(root: Path) -> Iterator[tuple[list[str], Path]]:
    """(controllers, path below the mount) of each hierarchy this process is in; v2's has no controllers."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        yield controllers.split(",") if controllers else [], Path(path.lstrip("/"))


def _v1_folders(root: Path, name: str) -> dict[str, Path] | None:
    found: dict[str, Path] = {}
    for controllers, path in _own(root):
        for controller in controllers:
            found[controller] = root / "sys/fs/cgroup" / controller / path / name
    wanted: dict[str, Path] = {
        c: found[c] for c in ("cpu", "cpuacct", "memory") if c in found and os.access(found[c].parent, os.W_OK)
    }
    return wanted if len(wanted) == 3 else None


def _v2_folder(root: Path, name: str) -> Path | None:
    """Beside our own cgroup: a cgroup with processes may not hand controllers to its children."""
    for controllers, path in _own(root):
        if controllers:
            continue
        parent = root / "sys/fs/cgroup" / (path.parent if path.parts else path)
        handed_on = (parent / "cgroup.subtree_control").read_text().split()
        if {"cpu", "memory"} <= set(handed_on) and os.access(parent, os.W_OK):
            return parent / name
    return None


def _joining(files: Sequence[Path], command: Sequence[str]) -> list[str]:
    """The command started by a shell that first puts itself into the cgroups; children follow."""
    joins = "".join(f"echo $$ >{shlex.quote(str(file))} && " for file in dict.fromkeys(files))
    return ["/bin/sh", "-c", f'{joins}exec "$@"', "sh", *command]


def _pairs(file: Path) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split() for line in file.read_text().splitlines())}


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
