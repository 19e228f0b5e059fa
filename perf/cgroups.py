"""What a cgroup has used, v1 and v2: a few reads that cost microseconds."""

from pathlib import Path

from perf.usage import Usage

ROOT = Path("/")
CONTROLLERS = ("cpu", "cpuacct", "memory")


def hierarchies(process: str, root: Path = ROOT) -> dict[str, Path]:
    """The cgroup of a process (`self` or its id) by v1 controller, and by "" for v2; the folders need not exist."""
    found = {}
    for line in (root / "proc" / process / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = root / "sys/fs/cgroup" / controller / path.lstrip("/")
    return found


def of_process(process: str, within: str, root: Path = ROOT) -> Usage:
    """What the cgroup of a process has used; its path must name `within`, for another may have that id here.

    Raises:
        OSError: no such process, or its cgroup cannot be seen from here.
    """
    folders = hierarchies(process, root)
    if not any(within in str(folder) for folder in folders.values()):
        raise ProcessLookupError(f"process {process} is none of {within}")
    return v1(folders) if "cpuacct" in folders else v2(folders[""])


def v1(folders: dict[str, Path]) -> Usage:
    """What the cgroup with these folders has used."""
    cached = _pairs(folders["memory"] / "memory.stat")["total_inactive_file"]
    return Usage(
        _number(folders["cpuacct"] / "cpuacct.usage") / 1e9,
        max(0, _number(folders["memory"] / "memory.usage_in_bytes") - cached),
        _pairs(folders["cpu"] / "cpu.stat")["throttled_time"] / 1e9,
    )


def v2(folder: Path) -> Usage:
    """What the cgroup has used."""
    cpu = _pairs(folder / "cpu.stat")
    cached = _pairs(folder / "memory.stat")["inactive_file"]
    working_set = max(0, _number(folder / "memory.current") - cached)
    return Usage(cpu["usage_usec"] / 1e6, working_set, cpu.get("throttled_usec", 0) / 1e6)


def _number(file: Path) -> int:
    return int(file.read_text())


def _pairs(file: Path) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split() for line in file.read_text().splitlines())}
