"""A real gunicorn that serves packages."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

CHECKOUT = Path(__file__).resolve().parents[2]
T = TypeVar("T")
CLIENT = httpx.Client(timeout=20)  # one for all: a client reads certificates when it is made


@dataclass
class Server:
    """A running service: its gunicorn master, its address, its log."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def worker(self) -> int | None:
        """The process id of its first worker; None while there is none."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def metric(self, line_start: str) -> float:
        """Sum of the samples whose line starts so."""
        lines = CLIENT.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(line_start))

    def terminate(self) -> int:
        """Exit status after SIGTERM."""
        self.process.terminate()
        return self.process.wait(20)


def environment(models: Path, settings: Mapping[str, object]) -> dict[str, str]:
    """This one without settings, then the given ones."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SOUS_", "PROMETHEUS_", "COV_"))}
    given = {f"SOUS_{name.upper()}": str(value) for name, value in settings.items()}
    return clean | {"SOUS_MODELS_DIR": str(models), "SOUS_DRAIN_DELAY_MS": "0"} | given


@contextmanager
def serving(models: Path, *arguments: str, ready: bool = True, **settings: object) -> Iterator[Server]:
    log = models.parent / f"{models.name}.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "--bind", "127.0.0.1:0", *arguments],
            cwd=CHECKOUT,
            env=environment(models, settings),
            stderr=stderr,
            start_new_session=True,
        )
    server = Server(process, f"http://127.0.0.1:{_port(process, log)}", log)
    try:
        if ready:
            until(lambda: httpx.get(f"{server.url}/health/ready").status_code == 200)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with suppress(ProcessLookupError):  # its workers too, if it could not stop them
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> str:
    def listening() -> str | None:
        assert process.poll() is None, log.read_text()
        found = [line for line in log.read_text().splitlines() if "Listening at: http://" in line]
        return found[0].split("127.0.0.1:")[1].split()[0] if found else None

    return until(listening)


def until(condition: Callable[[], T], timeout_s: float = 15.0) -> T:
    """The condition's first true value; the last error or a failure when there is none in time."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            if value := condition():
                return value
        except httpx.TransportError:
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)
