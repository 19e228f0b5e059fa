"""How many cores this process really has, and the plan of a model that follows from it."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

MEMBERS = ("slots", "intra_op_threads", "max_batch_size")
SLOW_IMAGE_MS = 10.0  # one image on one thread above this: a session run gains from all cores


def cores(root: Path = Path("/")) -> int:
    """Whole cores of this process: the least of its cgroup quotas and its affinity, rounded down to at least 1."""
    return max(1, int(min([float(len(os.sched_getaffinity(0))), *quotas(root)])))


def quotas(root: Path) -> Iterator[float]:
    """CPU quotas in cores of this process's cgroups and their parents, v1 and v2; none where nothing is limited."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _walk(root / "sys/fs/cgroup", path, _quota_v2)
        elif "cpu" in controllers.split(","):
            for mount in {controllers, "cpu"}:
                yield from _walk(root / "sys/fs/cgroup" / mount, path, _quota_v1)


def _walk(mount: Path, path: str, read: Callable[[Path], float | None]) -> Iterator[float]:
    """Quotas from the cgroup up to the mount: in a container the path may be of the host, and only the mount exists."""
    folder = mount / path.strip("/")
    for level in [folder, *folder.parents]:
        if level.is_relative_to(mount) and (quota := read(level)) is not None:
            yield quota


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None


@dataclass(frozen=True)
class Plan:
    """How a model is run: `slots` batches at once, each of up to `max_batch_size` images on `intra_op_threads`."""

    slots: int
    intra_op_threads: int
    max_batch_size: int
    origin: str  # "measured" at conversion, "rule", or "settings" where one of them overrides


def stored_plan(stored: Mapping[str, Any], cores: int) -> Plan | None:
    """The plan of a report, if it was measured on as many cores. KeyError, TypeError, ValueError: it is no plan."""
    members = {member: stored[member] for member in MEMBERS}
    if min(members.values()) < 1:
        raise ValueError(f"{members} are not all positive")
    return Plan(**members, origin="measured") if stored["cores"] == cores else None


def choose_plan(cores: int, stored: Plan | None, image_ms: Callable[[], float], overrides: Mapping[str, int]) -> Plan:
    """The stored plan, else the rule; `overrides` come before either.

    Args:
        cores: cores of this worker; no plan has more slots than that.
        stored: measured on as many cores, or None.
        image_ms: measures one image on one thread, in ms; called only when the rule needs it.
        overrides: `slots`, `intra_op_threads`, `max_batch_size`; 0 or absent leaves them to the plan.
    """
    given = {member: overrides[member] for member in MEMBERS if overrides.get(member)}
    if stored:
        found = stored
    elif "intra_op_threads" in given or cores == 1:
        found = Plan(cores, 1, 1, origin="rule")
    else:
        found = Plan(cores, cores if image_ms() > SLOW_IMAGE_MS else 1, 1, origin="rule")
    if given:
        found = replace(found, **given, origin="settings")
    return replace(found, slots=min(found.slots, cores))
