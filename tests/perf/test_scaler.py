"""The loop around the decision, with a cluster whose figures are known."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from perf import replica, scaler
from perf.deployment import StackError
from perf.hpa import Hpa
from perf.scaler import MANIFESTS, Meter, follow, rule

FAST = Hpa("cpu", 40, 1, 5).faster(1e6)  # no window holds anything back


@dataclass
class Cluster:
    """Replicas that each use `cpu` cores and have `queue` images waiting; time is the test's."""

    cpu: float = 0.0
    queue: float = 0.0
    running: int = 1
    ready: int = 1
    now: float = 0.0
    asks: list[int] = field(default_factory=list)
    refuse: Exception | None = None

    def asked(self) -> int:
        return self.running

    def cpu_seconds(self) -> dict[str, float]:
        return {str(k): self.cpu * self.now for k in range(self.ready)}

    def queue_images(self) -> dict[str, float]:
        return {str(k): self.queue for k in range(self.ready)}

    def scale(self, replicas: int) -> None:
        self.asks.append(replicas)
        if self.refuse:
            raise self.refuse
        self.running = self.ready = replicas


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def ticks(cluster: Cluster, count: int) -> Callable[[float], bool]:
    """A wait that lets time pass and says stop after so many."""
    end = cluster.now + count

    def wait(seconds: float) -> bool:
        cluster.now += seconds
        return cluster.now > end

    return wait


def run(cluster: Cluster, seconds: int, hpa: Hpa = FAST, cpus: float = 0.5) -> list[str]:
    said: list[str] = []
    meter = Meter(cluster, hpa.metric, cpus, clock=lambda: cluster.now)
    follow(meter, hpa, 1.0, ticks(cluster, seconds), said.append)
    return said


def test_replicas_follow_cpu_in_percent_of_their_limit(cluster: Cluster) -> None:
    cluster.cpu = 0.4  # of 0.5 cores: 80 %, twice the target
    said = run(cluster, 2)
    assert cluster.asks == [2]
    assert "1 -> 2 replicas (cpu 80; target 40)" in said[0]
    cluster.cpu = 0.2
    run(cluster, 5)
    assert cluster.running == 2
    cluster.cpu = 0.01
    run(cluster, 5)
    assert cluster.running == 1


def test_a_replica_seen_for_the_first_time_has_no_figure_yet(cluster: Cluster) -> None:
    cluster.cpu = 0.5
    run(cluster, 1)
    assert cluster.asks == []


def test_a_replica_that_has_begun_again_has_no_figure_yet(cluster: Cluster) -> None:
    meter = Meter(cluster, "cpu", 0.5, clock=lambda: cluster.now)
    for used in ({"a": 0.0, "b": 7.0}, {"a": 0.4, "b": 0.1}):  # b: another process under the same name
        cluster.now += 1
        cluster.cpu_seconds = lambda used=used: used  # type: ignore[method-assign]
        seen = meter.read()
    assert seen.values == pytest.approx([80])


def test_replicas_follow_images_that_wait(cluster: Cluster) -> None:
    cluster.queue = 9.0
    run(cluster, 1, Hpa("sous_queue_images", 4, 1, 5).faster(1e6))
    assert cluster.asks == [math.ceil(9 / 4)]


def test_a_replica_that_is_not_ready_holds_a_scale_up_back(cluster: Cluster) -> None:
    cluster.cpu, cluster.running, cluster.ready = 0.4, 2, 1
    run(cluster, 3)
    assert cluster.asks == []  # (80 + 0) / 2 = 40 %


@pytest.mark.parametrize("failure", [StackError, OSError])
def test_a_change_that_failed_is_said_and_tried_again(failure: type[Exception], cluster: Cluster) -> None:
    cluster.cpu, cluster.refuse = 0.4, failure("the engine is away")
    said = run(cluster, 4)
    assert cluster.asks == [2, 2, 2]
    assert said.count("the engine is away") == 3


@pytest.mark.parametrize("metric", MANIFESTS)
def test_the_rule_is_the_deployed_one_within_the_bounds_of_this_machine(metric: str) -> None:
    hpa, interval_s = rule(metric, 1, 3, faster=1)
    assert (hpa.min_replicas, hpa.max_replicas, interval_s) == (1, 3, 15)
    assert hpa.down.window_s == 300
    assert rule(metric, 1, 3, faster=30)[0].down.window_s == 10
    assert rule(metric, 1, 3, faster=30)[1] == 1


def test_the_queue_of_all_models_is_read_from_prometheus_text() -> None:
    lines = ["# HELP sous_queue_images x", 'sous_queue_images{model="a"} 3.0', 'sous_queue_images{model="b"} 4']
    assert replica.total("\n".join([*lines, "sous_queue_images_other 9"])) == 7
    assert replica.total("") == 0


def test_a_replica_that_does_not_answer_is_left_out() -> None:
    assert replica.waiting({"gone": "http://127.0.0.1:9"}) == {}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("--cpus=0", "0 is no number above zero"),
        ("--faster=0", "0 is no number above zero"),
        ("--min=0", "must be 1 or more"),
        ("--max=0", "must be 1 or more"),
    ],
)
def test_a_figure_that_cannot_be_is_refused_in_one_line(
    given: str, complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scaler", given])
    with pytest.raises(SystemExit, match="2"):
        scaler.main()
    assert complaint in capsys.readouterr().err
