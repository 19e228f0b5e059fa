"""One process of a stack: started under a limit, waited for, ended with all its children."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from perf.deployment import READY_S, StackError
from perf.limits import Group
from perf.replica import ready
from perf.usage import Usage, of_process_group

REPO = Path(__file__).parents[1]
STOP_S = 20.0  # drain delay, the longest request, and room


class Process:
    """One command under a limit, in a process group of its own, its output kept for when it fails."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str], group: Group | None) -> None:
        self.name = name
        self.group = group
        self.ready = False
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  closed by stop()
        self.process = subprocess.Popen(  # noqa: S603  our own command
            group.command(command) if group else command,
            cwd=REPO,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def usage(self) -> Usage:
        return self.group.usage(self.process.pid) if self.group else of_process_group(self.process.pid)

    def alive(self) -> bool:
        return self.process.poll() is None

    def serves(self) -> bool:
        return self.ready and self.alive()

    def wait_ready(self, url: str) -> None:
        """Return once the service at `url` is ready.

        Raises:
            StackError: the process ended, or READY_S passed.
        """
        deadline = time.monotonic() + READY_S
        while not ready(url):
            if not self.alive() or time.monotonic() > deadline:
                raise StackError(f"{self.name} is not ready at {url}: {self.last_words()}")
            time.sleep(0.05)
        self.ready = True

    def last_words(self) -> str:
        self.log.seek(0)
        return " / ".join(self.log.read().decode(errors="replace").strip().splitlines()[-5:]) or "it said nothing"

    def stop(self) -> None:
        """Ask it to end, wait for what is in flight, then end what is left of its group."""
        with suppress(ProcessLookupError):
            self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.group:
            self.group.close()
        self.log.close()


def taken(port: int) -> bool:
    """Whether something listens on the port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def refuse_taken(port: int) -> None:
    """Raises StackError where something listens on the port already."""
    if taken(port):
        raise StackError(f"port {port} is taken; stop what listens there and retry")
