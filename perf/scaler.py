"""Replicas that follow the load: `python -m perf.scaler` asks docker compose for as many as the rule wants.

The rule's figures are those of deploy/k8s/overlays, whose CPU percentage is of the replica's CPU limit here.
"""

import argparse
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from perf.compose import Project, opened_as
from perf.deployment import StackError
from perf.engine import EngineError
from perf.hpa import History, Hpa, Observed, decide
from perf.manifest import ManifestError, read_hpa

OVERLAYS = Path(__file__).parents[1] / "deploy/k8s/overlays"
MANIFESTS = {"cpu": OVERLAYS / "scaled/hpa.yaml", "queue": OVERLAYS / "scaled-queue/hpa.yaml"}
INTERVAL_S = 15.0  # Kubernetes' own
LEAST_INTERVAL_S = 1.0  # shorter ones measure CPU quotas of 100 ms unevenly

Wait = Callable[[float], bool]  # True: stop


class Cluster(Protocol):
    """Replicas that can be counted, measured and asked for."""

    def asked(self) -> int: ...
    def cpu_seconds(self) -> dict[str, float]: ...
    def queue_images(self) -> dict[str, float]: ...
    def scale(self, replicas: int) -> None: ...


def follow(meter: "Meter", hpa: Hpa, interval_s: float, wait: Wait, say: Callable[[str], None]) -> None:
    """Decide every `interval_s` until `wait` says stop; what the cluster cannot do now is said and tried again."""
    history = History()
    while not wait(interval_s):
        try:
            seen = meter.read()
            wanted, after = decide(hpa, history, meter.clock(), seen)
            if wanted != seen.current:
                shown = " ".join(f"{value:.3g}" for value in seen.values)
                say(f"{seen.current} -> {wanted} replicas ({hpa.metric} {shown}; target {hpa.target:g})")
                meter.cluster.scale(wanted)
            history = after  # a change that failed was none
        except (EngineError, StackError, OSError, subprocess.SubprocessError) as error:
            say(str(error))


class Meter:
    """The metric of each ready replica since the last reading."""

    def __init__(self, cluster: Cluster, metric: str, cpus: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`cpus` is the CPU limit of a replica in cores: the 100 % of a CPU target."""
        self.cluster = cluster
        self.metric = metric
        self.cpus = cpus
        self.clock = clock
        self.at = clock()
        self.before: dict[str, float] = {}

    def read(self) -> Observed:
        """CPU in percent of the limit, or images that wait; a replica first seen now has no CPU figure yet."""
        if self.metric == "cpu":
            used = self.cluster.cpu_seconds()
            return self._observed(self._percent(used), ready=len(used))
        waiting = self.cluster.queue_images()
        return self._observed(list(waiting.values()), ready=len(waiting))

    def _observed(self, values: list[float], ready: int) -> Observed:
        current = self.cluster.asked()
        return Observed(current, values, unready=max(0, current - ready))

    def _percent(self, used: dict[str, float]) -> list[float]:
        now, before = self.clock(), self.before
        span = (now - self.at) * self.cpus / 100
        self.at, self.before = now, used
        known = [name for name in used if name in before and used[name] >= before[name]]  # others began since
        return [(used[name] - before[name]) / span for name in known]


def rule(metric: str, low: int, high: int, faster: float) -> tuple[Hpa, float]:
    """The rule for a metric with these bounds, and the interval of its decisions in seconds."""
    hpa = replace(read_hpa(MANIFESTS[metric]), min_replicas=low, max_replicas=high)
    return hpa.faster(faster), max(LEAST_INTERVAL_S, INTERVAL_S / faster)


def above_zero(text: str) -> float:
    """A finite number of a command line."""
    if not 0 < (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number above zero")
    return number


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m perf.scaler", description=__doc__)
    add = parser.add_argument
    add("--metric", choices=MANIFESTS, default="cpu", help="what the replicas follow")
    add("--min", type=int, default=1, help="least replicas")
    add("--max", type=int, default=3, help="most replicas that fit the machine")
    add("--cpus", type=above_zero, default=0.5, help="CPU limit of a replica, in cores")
    add("--faster", type=above_zero, default=1.0, help="divide every window and period by this")
    add("--mounted", type=Path, help="where the project's folder is seen, for a scaler in a container")
    given = parser.parse_args()
    if not 1 <= given.min <= given.max:
        parser.error(f"--min {given.min} and --max {given.max} must be 1 or more, and --max the larger")
    project = os.environ.get("COMPOSE_PROJECT_NAME", "sous")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        hpa, interval_s = rule(given.metric, given.min, given.max, given.faster)
        options = opened_as(project, given.mounted)
    except (ManifestError, StackError, EngineError) as error:
        parser.error(str(error))
    say(f"{project}: {given.min} to {given.max} replicas, {hpa.metric} target {hpa.target:g}, every {interval_s:g} s")
    meter = Meter(Project(project, "scaled", {}, options=options), hpa.metric, given.cpus)
    follow(meter, hpa, interval_s, stop.wait, say)


if __name__ == "__main__":
    main()
