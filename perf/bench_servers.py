"""Servers under measurement: started, waited for, read through `/proc`, ended."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from perf.bench_load import is_ready
from perf.meter import cpu_seconds

CHECKOUT = Path(__file__).resolve().parents[1]
READY_TIMEOUT_S = 180.0  # TensorFlow takes its time


@dataclass(frozen=True)
class Server:
    """A process tree that answers on a port of 127.0.0.1."""

    pid: int
    port: int
    ready_s: float  # from its start to the first 200 of /health/ready

    def cpu_s(self) -> float:
        """User and system time of all its processes."""
        return sum(cpu_seconds(pid) or 0.0 for pid in tree(self.pid))

    def rss_mb(self) -> float:
        """Resident memory of its largest process: the one that serves, where a master watches it."""
        return max(resident_mb(pid) for pid in tree(self.pid))


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()
    ]
    return [pid, *(each for child in children for each in tree(child))]


def resident_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def service(models_dir: Path) -> contextlib.AbstractContextManager[Server]:
    """This project's service with every package in a folder."""
    return _running(["-m", "service", "--bind", "127.0.0.1:{port}"], {"SOUS_MODELS_DIR": str(models_dir)})


def plain(source: Path) -> contextlib.AbstractContextManager[Server]:
    """The plain recipe with one Keras file."""
    return _running(["-m", "perf.plain", "--source", str(source), "--port", "{port}"], {})


@contextlib.contextmanager
def only(models_dir: Path, names: list[str]) -> Iterator[Path]:
    """A models folder with some of the packages of another."""
    with tempfile.TemporaryDirectory(prefix="sous-bench-") as folder:
        for name in names:
            (Path(folder) / name).symlink_to((models_dir / name).resolve())
        yield Path(folder)


@contextlib.contextmanager
def _running(arguments: list[str], settings: Mapping[str, str]) -> Iterator[Server]:
    port = _free_port()
    command = [sys.executable, *(argument.format(port=port) for argument in arguments)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SOUS_")}
    with tempfile.TemporaryFile() as log:
        begun = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603  our own programs
            command, cwd=CHECKOUT, env={**inherited, **settings}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while not is_ready(port):
                if process.poll() is not None or time.perf_counter() - begun > READY_TIMEOUT_S:
                    log.seek(0)
                    raise RuntimeError(f"{' '.join(command)} does not answer: {_last_words(log.read())}")
                time.sleep(0.005)
            yield Server(process.pid, port, time.perf_counter() - begun)
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_words(log: bytes) -> str:
    """The critical line of a log, or its last one."""
    lines = log.decode(errors="replace").strip().splitlines() or ["it said nothing"]
    return next((line for line in lines if "CRITICAL" in line), lines[-1])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
