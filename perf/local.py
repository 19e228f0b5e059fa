"""A stack by local processes, for machines without Docker: the service under gunicorn, and nginx, on the same ports."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from perf import replica
from perf.deployment import (
    BALANCER_CPUS,
    BALANCER_MEMORY_MB,
    FORGET_S,
    PLAIN_MEMORY_MB,
    Deployment,
    StackError,
    keras_file,
)
from perf.interrupts import held
from perf.limits import limited
from perf.processes import REPO, Process, refuse_taken, taken
from perf.usage import Ledger, Usage

MOST_PORT = 65536
FIRST_REPLICA_PORT = 8001  # behind nginx, which of them is free does not matter


@dataclass(frozen=True)
class Recipe:
    """How a replica is started: the command for a port, its environment, its limits. Before it is ready it has
    `start_cpus`: nothing is measured then."""

    command: Callable[[int], list[str]]
    environment: dict[str, str]
    cpus: float
    start_cpus: float
    memory_bytes: int


class Replicas:
    """Equal replicas on ports of their own, and nginx before them where `balancer_port` is given."""

    def __init__(self, recipe: Recipe, first_port: int, balancer_port: int | None, folder: Path) -> None:
        self.recipe = recipe
        self.first_port = first_port
        self.balancer_port = balancer_port
        self.folder = folder
        self.running: dict[int, Process] = {}
        self.nginx: Process | None = None
        self.ledger = Ledger()
        self.changing = threading.Lock()  # the scaler and who replaces the dead
        self.counting = threading.Lock()  # the scaler counts what it ends while the meter reads: counters in order

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.balancer_port or self.first_port}"

    @property
    def limited_by(self) -> str:
        return next(process.group.how for process in self.running.values() if process.group)

    def up(self, replicas: int) -> None:
        """Start as many replicas and wait until they answer.

        Raises:
            StackError: a port is taken, nginx is needed and not there, or one does not become ready.
        """
        if self.balancer_port is not None and not shutil.which("nginx"):
            raise StackError("nginx is not installed: install it (Debian package nginx-light), or use Docker")
        self._start(replicas)
        if self.balancer_port is None:
            return
        refuse_taken(self.balancer_port)
        self._configure()
        command = ["nginx", "-e", "stderr", "-c", str(self.folder / "nginx.conf"), "-g", "daemon off;"]
        with held():
            limit = limited(f"sous-{os.getpid()}-nginx", 0, BALANCER_CPUS, BALANCER_MEMORY_MB * 1024**2)
            self.nginx = Process("nginx", command, {}, limit)
        self.nginx.wait_ready(self.url)

    def down(self) -> None:
        """End everything that was started; the balancer first, so that it sees no replica leave."""
        stopping = [self.nginx, *self.running.values()]
        for process in filter(None, stopping):
            process.stop()
        self.running.clear()

    def replicas(self) -> int:
        """Replicas that are ready now."""
        return sum(process.serves() for process in list(self.running.values()))

    def usage(self) -> Usage:
        """Of every process of the stack, those that have ended included in what only grows."""
        with self.counting:
            now = self._usages(ready=False)
            if self.nginx and self.nginx.alive():
                now["nginx"] = self.nginx.usage()
            return self.ledger.update(now)

    def asked(self) -> int:
        """Replicas that run, ready or not."""
        return sum(process.alive() for process in list(self.running.values()))

    def cpu_seconds(self) -> dict[str, float]:
        """CPU used so far by each ready replica."""
        return {name: used.cpu_seconds for name, used in self._usages(ready=True).items()}

    def queue_images(self) -> dict[str, float]:
        """Images that wait at each ready replica."""
        ready = [port for port, process in list(self.running.items()) if process.serves()]
        return replica.waiting({str(port): f"http://127.0.0.1:{port}" for port in ready})

    def scale(self, replicas: int) -> None:
        """As many replicas: new ones are ready before nginx hears of them, old ones leave after it forgot them."""
        with self.changing:
            self._scale(replicas, self._dead())

    def replace_dead(self) -> None:
        """New replicas for those whose process ended, as compose's `restart` does."""
        with self.changing:
            if not (dead := self._dead()):
                return
            if self.balancer_port is not None:
                self._scale(len(self.running), dead)
            else:  # the only port is theirs
                self._leave(dead)
                self._start(len(dead))

    def _dead(self) -> list[int]:
        return [port for port, process in self.running.items() if not process.alive()]

    def _scale(self, replicas: int, dead: list[int]) -> None:
        self._start(replicas - len(self.running) + len(dead))
        alive = [port for port in self.running if port not in dead]
        self._leave([*dead, *alive[replicas:]])

    def roll(self) -> None:
        """Every replica replaced by a new one, one at a time."""
        with self.changing:
            for port in list(self.running):
                self._start(1)
                self._leave([port])

    def _leave(self, ports: list[int]) -> None:
        """nginx gets those that stay, then the others end."""
        self.usage()  # what they used is counted before they go
        leaving = [self.running.pop(port) for port in ports]
        if self.nginx:
            self._configure()
            self.nginx.process.send_signal(signal.SIGHUP)
            time.sleep(FORGET_S)
        for process in leaving:
            process.stop()

    def _usages(self, ready: bool) -> dict[str, Usage]:
        found = {}
        for port, process in list(self.running.items()):
            if process.serves() or not ready:
                with suppress(OSError):  # ended since
                    found[str(port)] = process.usage()
        return found

    def _start(self, count: int) -> None:
        ports = self._ports(count)
        for port in ports:
            name = f"sous-{os.getpid()}-{port}"
            with held():  # one that has started is known
                group = limited(name, len(self.running), self.recipe.cpus, self.recipe.memory_bytes)
                group.set_cpus(self.recipe.start_cpus)
                command = self.recipe.command(port)
                self.running[port] = Process(f"replica {port}", command, self.recipe.environment, group)
        for port in ports:
            self.running[port].wait_ready(f"http://127.0.0.1:{port}")
            if limit := self.running[port].group:
                limit.set_cpus(self.recipe.cpus)

    def _ports(self, count: int) -> list[int]:
        if self.balancer_port is None:
            refuse_taken(self.first_port)
            return [self.first_port]
        busy = {self.balancer_port, *self.running}
        free = (port for port in range(self.first_port, MOST_PORT) if port not in busy and not taken(port))
        return list(islice(free, max(0, count)))

    def _configure(self) -> None:
        servers = " ".join(f"127.0.0.1:{port}" for port in self.running)
        given = {
            "SERVERS": servers,
            "LISTEN": f"127.0.0.1:{self.balancer_port}",
            "RUN": str(self.folder),
            "LOG": "/dev/null",
        }
        rendered = subprocess.run(  # noqa: S603  our own script
            [REPO / "deploy/nginx/render"], env={**os.environ, **given}, check=True, capture_output=True, text=True
        )
        (self.folder / "nginx.conf").write_text(rendered.stdout)


def replicas(stack: ExitStack, wanted: Deployment) -> Replicas:
    """The deployment's replicas, not started yet; their folders end with `stack`."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sous-stack-")))
    folder.chmod(0o755)  # nginx's worker is another user
    if wanted.kind == "plain":
        return Replicas(_plain(wanted), wanted.port, None, folder)
    recipe = _service(wanted, folder / "models")
    if wanted.kind == "single":
        return Replicas(recipe, wanted.port, None, folder)
    return Replicas(recipe, FIRST_REPLICA_PORT, wanted.port, folder)


def _service(wanted: Deployment, folder: Path) -> Recipe:
    """The service, with a folder that holds links to the packages it is to serve."""
    folder.mkdir()
    for package in [wanted.models_dir / wanted.model] if wanted.model else wanted.models_dir.iterdir():
        (folder / package.name).symlink_to(package.resolve())
    return Recipe(
        lambda port: [sys.executable, "-m", "service", "--bind", f"127.0.0.1:{port}"],
        {"SOUS_MODELS_DIR": str(folder), "SOUS_DEFAULT_MODEL": wanted.model},
        wanted.cpus,
        wanted.cpus,  # it plans its threads by the limit it finds
        wanted.memory_mb * 1024**2,
    )


def _plain(wanted: Deployment) -> Recipe:
    """The plain recipe with a Keras file."""
    source = keras_file(wanted.models_dir, wanted.model)
    if source is None:
        raise StackError(
            f"no {wanted.model}.keras or .h5 in {wanted.models_dir}; name the folder of the Keras files (--sources),"
            " or leave plain out (--stacks)"
        )
    command = [sys.executable, str(REPO / "perf/plain.py"), "--source", str(source)]
    memory_mb = max(wanted.memory_mb, PLAIN_MEMORY_MB)
    cores = len(os.sched_getaffinity(0))
    return Recipe(lambda port: [*command, "--port", str(port)], {}, wanted.cpus, cores, memory_mb * 1024**2)
