"""What processes use, and its totals over processes that come and go."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """What processes have used: CPU and time kept from running since they began, working set (no page cache) now."""

    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    throttled_seconds: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.cpu_seconds + other.cpu_seconds,
            self.memory_bytes + other.memory_bytes,
            self.throttled_seconds + other.throttled_seconds,
        )


class Ledger:
    """Totals of what comes and goes: counters of the ended are kept, their memory is not."""

    def __init__(self) -> None:
        self.ended = Usage()
        self.last: dict[str, Usage] = {}

    def update(self, now: dict[str, Usage]) -> Usage:
        """The total, given what each that runs has used; a counter that fell has begun again."""
        for name, last in self.last.items():
            if name not in now or now[name].cpu_seconds < last.cpu_seconds:
                self.ended += replace(last, memory_bytes=0)
        self.last = now
        return sum(now.values(), start=self.ended)


def of_process_group(pgid: int) -> Usage:
    """CPU and resident memory of a process group's members; memory that they share is counted in each."""
    return sum(map(_process_usage, _members(pgid)), start=Usage())


def _members(pgid: int) -> Iterator[Path]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(_stat(process)[2]) == pgid:
                yield process


def _stat(process: Path) -> list[str]:
    """Fields of /proc/PID/stat from the third on; the second, a name in brackets, may hold spaces."""
    return (process / "stat").read_text().rpartition(")")[2].split()


def _process_usage(process: Path) -> Usage:
    try:
        fields = _stat(process)
        resident = int((process / "statm").read_text().split()[1]) * PAGE
    except OSError:  # ended meanwhile
        return Usage()
    return Usage((int(fields[11]) + int(fields[12])) / TICKS, resident)
