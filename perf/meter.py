"""Drive one load at a running stack and read its resources once a second, more seldom at a constant rate.

Counters of cgroups and `/proc` are read as they are: nothing here burns CPU that would be measured, but for the
yardstick's 4 ms.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

from perf.adapters import Load, Tool
from perf.interrupts import held
from perf.samples import Sample, Second
from perf.yardstick import yardstick_ms

TICK_S = 1.0
CONSTANT_READS = 6  # in a load of constant rate: what each disturbs would be its slowest hundredth
OVERTIME_S = 45.0  # a request may take 30 s to fail; then the generator has written and left
FAREWELL_S = 5.0  # a generator whose last words are older hangs
TRIES = 5  # of a load whose generator hangs: of 100 users' sieges one in five did
ROOT = Path(__file__).parents[1]
CLOCK = os.sysconf("SC_CLK_TCK")


class Usage(Protocol):
    """What all processes of a stack have used."""

    @property
    def cpu_seconds(self) -> float: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def throttled_seconds(self) -> float: ...


class Running(Protocol):
    """A stack that is up and ready."""

    @property
    def url(self) -> str: ...
    def replicas(self) -> int: ...
    def usage(self) -> Usage: ...


Keep = Callable[[list[Sample], list[Second]], None]


def drive(tool: Tool, load: Load, stack: Running, keep: Keep, tick: Callable[[float], None]) -> None:
    """Run one load to its end; what was measured goes to `keep` also when the load is interrupted.

    A generator that hangs when its time is up takes part of what it measured with it: its load is run again as a whole.

    Args:
        tick: called about once a second with the seconds that have passed since the last call.

    Raises:
        RuntimeError: the generator failed.
    """
    for _ in range(TRIES):
        with tempfile.TemporaryDirectory(prefix="sous-perf-") as name:
            folder, seconds, hung = Path(name), list[Second](), False
            try:
                with generators(tool.commands(load, folder), folder) as processes:
                    hung = watch(processes, load, stack, seconds, tick, hung=partial(hangs, tool, folder))
            finally:
                if not hung:
                    keep(tool.samples(load, folder), seconds)
            if not hung:
                return check(processes, folder)
    raise RuntimeError(f"the load generator hung when its time was up, {TRIES} times")


@contextlib.contextmanager
def generators(commands: list[list[str]], folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The load tool's processes, each printing to `N.out`; none is left when the block ends, however it ends."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number, command in enumerate(commands, 1):
            # a session of its own: Ctrl-C at the terminal reaches us, and we end it and read what it measured
            with (folder / f"{number}.out").open("wb") as out, held():  # one that has started is known
                process = subprocess.Popen(  # noqa: S603 - the tools' own commands
                    command,
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                processes.append(process)
        yield processes
    finally:
        with held():
            for process in processes:
                stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a generator: asked first, so that it writes what it has, then killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def watch(
    processes: list["subprocess.Popen[bytes]"],
    load: Load,
    stack: Running,
    seconds: list[Second],
    tick: Callable[[float], None],
    *,
    hung: Callable[[], bool],
) -> bool:
    """Append readings until the generators have ended or are long overdue, or one has hung: then True."""
    began = last = due = time.monotonic()
    planned = sum(s for _, s in load.schedule) or load.seconds
    every_s = max(TICK_S, planned / CONSTANT_READS) if len(load.schedule) == 1 else TICK_S
    used: dict[int, float] = {}
    while True:
        now = time.monotonic()
        tick(now - last)
        last = now
        used.update({p.pid: cpu for p in processes if (cpu := cpu_seconds(p.pid)) is not None})
        ended = all(p.poll() is not None for p in processes) or now - began > planned + OVERTIME_S
        if ended or now >= due:
            seconds += read(stack, now - began, sum(used.values()))
            due += every_s
        if ended:
            return False
        if hung():
            return True
        wait(processes, TICK_S - (time.monotonic() - now))


def hangs(tool: Tool, folder: Path) -> bool:
    """Whether the generator, which still runs, has said its last words and then nothing for FAREWELL_S."""
    out = folder / "1.out"
    quiet = time.time() - out.stat().st_mtime > FAREWELL_S
    return bool(tool.farewell) and quiet and tool.farewell in out.read_bytes()[-4096:]


def wait(processes: list["subprocess.Popen[bytes]"], seconds: float) -> None:
    """Sleep, but no longer than the first process lives."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        processes[0].wait(max(0.01, seconds))


def read(stack: Running, at_s: float, generator_cpu_s: float) -> list[Second]:
    """All counters now; none where a replica that comes or goes has none at this moment."""
    try:
        replicas, usage = stack.replicas(), stack.usage()
    except (OSError, ValueError, RuntimeError, subprocess.SubprocessError):
        return []
    return [
        Second(
            at_s,
            replicas,
            usage.memory_bytes,
            usage.cpu_seconds,
            usage.throttled_seconds,
            generator_cpu_s,
            *machine_seconds(),
            yardstick_ms(),
        )
    ]


def cpu_seconds(pid: int) -> float | None:
    """User and system time of a process (proc(5), fields 14 and 15), None when it is gone or only a zombie."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else (int(fields[10]) + int(fields[11])) / CLOCK


def machine_seconds() -> tuple[float, float]:
    """Steal and busy time of all CPUs (proc(5): user nice system idle iowait irq softirq steal)."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    return steal / CLOCK, (user + nice + system + irq + softirq + steal) / CLOCK


def check(processes: list["subprocess.Popen[bytes]"], folder: Path) -> None:
    """Raise RuntimeError with the tool's last words when it failed."""
    for number, process in enumerate(processes, 1):
        if process.returncode not in (0, -signal.SIGINT):
            words = (folder / f"{number}.out").read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"the load generator ended with {process.returncode}: {' | '.join(words[-3:])}")
