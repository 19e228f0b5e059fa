"""Bring a stack up, wait until it is ready, take it down: by docker compose, or by local processes."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from perf import compose, local, scaler
from perf.deployment import Deployment, Engine, Kind, StackError
from perf.interrupts import held
from perf.usage import Usage

SUPERVISED_S = 1.0  # between two looks at the replicas


class Running(Protocol):
    """A stack that is up and ready."""

    @property
    def url(self) -> str: ...

    @property
    def limited_by(self) -> str:
        """What holds each replica to its CPU and memory."""

    def replicas(self) -> int:
        """Replicas that are ready now."""

    def usage(self) -> Usage:
        """Of all processes of the stack; counters only grow, also while replicas come and go."""

    def scale(self, replicas: int) -> None:
        """As many replicas, without losing a request."""


@contextlib.contextmanager
def up(kind: Kind, *, model: str, models_dir: Path, engine: Engine, **figures: Any) -> Iterator[Running]:
    """A ready stack, taken down again whatever happens inside; `figures` are those of `Deployment`.

    Raises:
        StackError: no such model, no engine, a port taken, or not ready in time; nothing is left behind.
    """
    wanted = Deployment(kind, model, models_dir, **figures)
    if kind == "scaled" and wanted.metric not in scaler.MANIFESTS:
        raise StackError(f"SCALE_ON={wanted.metric} is no metric: set {' or '.join(scaler.MANIFESTS)}")
    if kind != "plain" and not (models_dir / model).is_dir():
        raise StackError(f"no package {model or '(any)'} in {models_dir}; convert a model or name another folder")
    with ExitStack() as stack:
        yield _by_compose(stack, wanted) if engine == "docker" and kind != "plain" else _local(stack, wanted)


def _by_compose(stack: ExitStack, wanted: Deployment) -> Running:
    project = compose.project(wanted)
    stack.callback(_down, project)
    project.up()
    return project


def _local(stack: ExitStack, wanted: Deployment) -> Running:
    replicas = local.replicas(stack, wanted)
    stack.callback(_down, replicas)
    replicas.up(wanted.first_replicas)
    stack.enter_context(_beside("supervisor", lambda stop: _supervise(replicas, stop)))
    if wanted.kind == "scaled":
        stack.enter_context(_beside("scaler", lambda stop: _follow(replicas, wanted, stop)))
    return replicas


def _down(running: compose.Project | local.Replicas) -> None:
    with held():
        running.down()


def _follow(cluster: scaler.Cluster, wanted: Deployment, stop: threading.Event) -> None:
    """The scaler that compose runs as a container."""
    hpa, interval_s = scaler.rule(wanted.metric, 1, wanted.max_replicas, wanted.faster)
    meter = scaler.Meter(cluster, hpa.metric, wanted.cpus)
    scaler.follow(meter, hpa, interval_s, stop.wait, _say)


def _supervise(replicas: local.Replicas, stop: threading.Event) -> None:
    """Replace replicas that die, as compose's `restart` does."""
    while not stop.wait(SUPERVISED_S):
        try:
            replicas.replace_dead()
        except (StackError, OSError) as error:
            _say(str(error))


@contextlib.contextmanager
def _beside(name: str, work: Callable[[threading.Event], None]) -> Iterator[None]:
    """A thread beside the stack, until the event that it is given is set."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), name=name)
    thread.start()
    try:
        yield
    finally:
        with held():
            stop.set()
            thread.join()


def _say(line: str) -> None:
    sys.stderr.write(f"{threading.current_thread().name}: {line}\n")
