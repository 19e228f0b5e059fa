"""Stacks by local processes, with real packages, gunicorn and nginx; tests/deploy has the same by docker compose."""

import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from perf import limits, scaler, stacks
from perf.compose import project
from perf.deployment import (
    BALANCER_CPUS,
    BALANCER_MEMORY_MB,
    FORGET_S,
    SCALER_CPUS,
    Deployment,
    Kind,
    StackError,
    beside_cpus,
)
from perf.local import Recipe, Replicas
from perf.manifest import read_hpa
from perf.processes import Process
from perf.replica import ready
from perf.usage import Usage
from tests.deploy.load import load
from tests.service.packages import jpeg, write_package

needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx on this machine")
PHOTO = jpeg("green")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of which a stack serves one."""
    folder = tmp_path_factory.mktemp("packages")
    write_package(folder, "colours")
    write_package(folder, "zebra")
    return folder


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports of this test alone, and a short drain: nothing here is behind a slow balancer."""
    for name in ("SINGLE_PORT", "BALANCER_PORT"):
        monkeypatch.setenv(name, str(free_port()))
    monkeypatch.setenv("SOUS_DRAIN_DELAY_MS", "200")


@pytest.fixture(autouse=True)
def nothing_left(children_end: None) -> Iterator[None]:
    """Neither children (by `children_end`) nor cgroups nor folders outlive a stack, whichever process made them."""
    before = traces()
    yield
    assert traces() <= before


def traces() -> set[Path]:
    return {*Path("/sys/fs/cgroup").rglob("sous-*"), *Path(tempfile.gettempdir()).glob("sous-stack-*")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def predict(url: str) -> dict[str, object]:
    answer = httpx.post(f"{url}/predict", content=PHOTO, headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 200
    found: dict[str, object] = answer.json()
    return found


def local(kind: Kind, packages: Path, **figures: float) -> AbstractContextManager[stacks.Running]:
    return stacks.up(kind, model="colours", models_dir=packages, engine="local", **{"cpus": 1.0, **figures})


@pytest.mark.parametrize(("kind", "replicas"), [("single", 1), pytest.param("balanced", 2, marks=needs_nginx)])
def test_a_stack_answers_while_it_is_up(kind: Kind, replicas: int, packages: Path) -> None:
    with local(kind, packages) as running:
        assert predict(running.url)["model"] == "colours"
        assert running.replicas() == replicas
        assert running.limited_by
        served = httpx.get(f"{running.url}/models").json()["models"]
        assert [model["name"] for model in served] == ["colours"]  # its memory is that of one model
    with pytest.raises(httpx.ConnectError):
        httpx.get(running.url)


@pytest.mark.parametrize(("limit", "cores"), [(0.5, 1), (1, 1), (2, 2)])
def test_the_service_plans_by_its_cpu_limit(limit: float, cores: int, packages: Path) -> None:
    if limit > len(os.sched_getaffinity(0)):
        pytest.skip("this machine has fewer cores")
    with local("single", packages, cpus=limit) as running:
        plan = httpx.get(f"{running.url}/models/colours").json()["versions"][0]["plan"]
    assert plan["slots"] * plan["intra_op_threads"] == cores


def test_usage_counts_what_the_replicas_do(packages: Path) -> None:
    with local("single", packages) as running:
        before = running.usage()
        with load(running.url, PHOTO) as answers:
            answers.wait_for(100)
        after = running.usage()
    assert 0.02 < after.cpu_seconds - before.cpu_seconds < 5
    assert 30e6 < after.memory_bytes < 300e6
    assert after.throttled_seconds >= before.throttled_seconds >= 0


@pytest.mark.parametrize("kind", ["single", pytest.param("scaled", marks=needs_nginx)])
def test_the_only_replica_is_replaced_when_it_dies(kind: Kind, packages: Path) -> None:
    with local(kind, packages, max_replicas=2, faster=100) as running:
        assert isinstance(running, Replicas)
        [victim] = running.running.values()
        os.killpg(victim.process.pid, signal.SIGKILL)
        until(lambda: running.replicas() == 1 and victim not in running.running.values())
        time.sleep(FORGET_S)  # nginx's old worker knew the dead one alone
        with load(running.url, PHOTO) as answers:
            answers.wait_for(50)
    assert answers.failed() == {}


@pytest.mark.parametrize("balancer", [80, 8000, 8002])
def test_replicas_find_ports_wherever_the_balancer_listens(balancer: int, tmp_path: Path) -> None:
    ports = Replicas(Recipe(lambda _: [], {}, 1, 1, 1), 8001, balancer, tmp_path)._ports(3)
    assert len(ports) == 3
    assert min(ports) >= 8001
    assert balancer not in ports


def test_each_kind_of_stack_is_a_project_of_its_own(packages: Path) -> None:
    kinds: list[Kind] = ["single", "balanced", "scaled"]
    assert len({project(Deployment(kind, "colours", packages)).name for kind in kinds}) == 3


def test_counters_that_two_threads_read_are_totalled_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler counts what it ends while the meter reads: an older reading behind a newer one would count twice."""
    running = Replicas(Recipe(lambda _: [], {}, 1, 1, 1), 0, None, tmp_path)
    seconds = itertools.count(1)

    def read(*, ready: bool) -> dict[str, Usage]:
        now = next(seconds)
        time.sleep(0.004 if now % 2 else 0)
        return {"replica": Usage(now, 1, 0)}

    monkeypatch.setattr(running, "_usages", read)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: running.usage(), range(40)))
    assert running.usage().cpu_seconds == 41


@needs_nginx
def test_replicas_come_and_go_without_losing_a_request_and_what_they_used_stays_counted(packages: Path) -> None:
    with local("balanced", packages, replicas=1) as running, load(running.url, PHOTO) as answers:
        answers.wait_for(20)
        running.scale(3)
        assert running.replicas() == 3
        answers.wait_for(40)
        with_three = running.usage()
        running.scale(1)
        assert running.replicas() == 1
        answers.wait_for(20)
        assert running.usage().cpu_seconds > with_three.cpu_seconds
        assert running.usage().memory_bytes < with_three.memory_bytes
    assert answers.failed() == {}


@needs_nginx
def test_no_request_is_lost_with_a_replica_that_is_killed(packages: Path) -> None:
    with local("balanced", packages) as running, load(running.url, PHOTO) as answers:
        assert isinstance(running, Replicas)
        answers.wait_for(20)
        killed = next(iter(running.running.values()))
        os.killpg(killed.process.pid, signal.SIGKILL)
        until(lambda: running.replicas() == 1)
        answers.wait_for(60)
        assert running.usage().cpu_seconds > 0
        until(lambda: running.replicas() == 2)  # as compose's `restart` does
        assert killed not in running.running.values()
        answers.wait_for(20)
    assert answers.failed() == {}


@needs_nginx
def test_no_request_is_lost_with_a_worker_that_is_killed_and_gunicorn_starts_another(packages: Path) -> None:
    with local("balanced", packages) as running, load(running.url, PHOTO) as answers:
        assert isinstance(running, Replicas)
        answers.wait_for(20)
        master = next(iter(running.running.values())).process.pid
        (killed,) = workers(master)
        os.kill(killed, signal.SIGKILL)
        answers.wait_for(60)
        until(lambda: workers(master) not in ([], [killed]))
        until(lambda: all(ready(f"http://127.0.0.1:{port}") for port in running.running))
        answers.wait_for(20)
    assert answers.failed() == {}


def workers(master: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{master}/task/{master}/children").read_text().split()]


@needs_nginx
def test_no_request_is_lost_while_every_replica_is_replaced(packages: Path) -> None:
    with local("balanced", packages) as running, load(running.url, PHOTO) as answers:
        assert isinstance(running, Replicas)
        before = {process.process.pid for process in running.running.values()}
        running.roll()
        answers.wait_for(20)
        after = {process.process.pid for process in running.running.values()}
    assert len(after) == 2
    assert not before & after
    assert answers.failed() == {}


@needs_nginx
def test_a_scaled_stack_follows_the_load(packages: Path) -> None:
    with local("scaled", packages, cpus=0.3, max_replicas=2, faster=300) as running:
        assert running.replicas() == 1
        with load(running.url, PHOTO, users=12) as answers:
            until(lambda: running.replicas() == 2)
        until(lambda: running.replicas() == 1)
    assert answers.failed() == {}


def test_the_scaled_stack_follows_the_metric_that_compose_would(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = list[str]()
    monkeypatch.setattr(scaler, "follow", lambda meter, hpa, *_: followed.append(hpa.metric))
    monkeypatch.setenv("SCALE_ON", "queue")
    with local("scaled", packages):
        until(lambda: followed == [read_hpa(scaler.MANIFESTS["queue"]).metric])
    monkeypatch.setenv("SCALE_ON", "memory")
    with pytest.raises(StackError, match="SCALE_ON=memory is no metric: set cpu or queue"), local("scaled", packages):
        pass


class Interrupted(BaseException):
    """As KeyboardInterrupt, which pytest takes for its own."""


@needs_nginx
def test_an_interrupted_run_leaves_nothing_behind(packages: Path) -> None:
    with pytest.raises(Interrupted), local("balanced", packages):
        raise Interrupted


def test_a_port_that_is_taken_is_named(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("SINGLE_PORT", str(port))
        with pytest.raises(StackError, match=f"port {port} is taken"), local("single", packages):
            pass


def test_a_model_that_is_not_there_is_named(packages: Path) -> None:
    asked = stacks.up("single", model="nothing", models_dir=packages, engine="local")
    with pytest.raises(StackError, match="no package nothing"), asked:
        pass


@needs_nginx
def test_a_replica_that_cannot_start_says_why(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUS_TOP_K", "none")
    with pytest.raises(StackError, match="bad setting"), local("balanced", packages):
        pass


def test_the_plain_recipe_needs_a_keras_file(tmp_path: Path) -> None:
    asked = stacks.up("plain", model="colours", models_dir=tmp_path, engine="local")
    with pytest.raises(StackError, match=r"colours\.keras"), asked:
        pass


@needs_nginx
def test_an_interrupt_while_a_stack_is_taken_down_waits_until_it_is(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Process.stop

    def impatient(process: Process) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        stop(process)

    monkeypatch.setattr(Process, "stop", impatient)
    asked = stacks.up("balanced", model="colours", models_dir=packages, engine="local")
    with pytest.raises(KeyboardInterrupt), asked:
        pass  # `nothing_left` looks for processes and cgroups


def test_without_nginx_the_balanced_stack_says_what_to_install(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    asked = stacks.up("balanced", model="colours", models_dir=packages, engine="local")
    with pytest.raises(StackError, match="nginx is not installed: install it"), asked:
        pass


@needs_nginx
def test_the_balancer_is_limited_as_in_compose(packages: Path) -> None:
    with stacks.up("balanced", model="colours", models_dir=packages, engine="local", replicas=1) as running:
        assert isinstance(running, Replicas)
        assert running.nginx
        assert quota_of(running.nginx) == BALANCER_CPUS


def test_a_replica_starts_on_more_cores_than_it_is_measured_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = "import http.server, sys; http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]))"
    (tmp_path / "health").mkdir()
    (tmp_path / "health/ready").touch()
    command = ["env", "-C", str(tmp_path), sys.executable, "-c", server]
    recipe = Recipe(lambda port: [*command, str(port)], {}, cpus=0.5, start_cpus=2, memory_bytes=1 << 28)
    replicas = Replicas(recipe, free_port(), None, tmp_path)
    quotas = list[float]()

    def look(process: Process, url: str) -> None:
        quotas.append(quota_of(process))
        wait_ready(process, url)

    wait_ready = Process.wait_ready
    monkeypatch.setattr(Process, "wait_ready", look)
    try:
        replicas.up(1)
        (process,) = replicas.running.values()
        quotas.append(quota_of(process))
    finally:
        replicas.down()
    assert quotas == [2, 0.5]


def quota_of(process: Process) -> float:
    """Cores that its cgroup grants now."""
    if isinstance(process.group, limits.CgroupV1):
        return int((process.group.folders["cpu"] / "cpu.cfs_quota_us").read_text()) / limits.PERIOD_US
    if isinstance(process.group, limits.CgroupV2):
        return int((process.group.folder / "cpu.max").read_text().split()[0]) / limits.PERIOD_US
    pytest.skip("no cgroup of this machine can be written")


def test_the_defaults_fit_two_cores_and_are_those_of_compose() -> None:
    lines = (Path(__file__).parents[2] / ".env").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    default = Deployment("balanced", "", Path())
    assert (default.cpus, default.replicas, default.max_replicas) == (
        float(given["REPLICA_CPUS"]),
        int(given["REPLICAS"]),
        int(given["MAX_REPLICAS"]),
    )
    assert given["REPLICA_MEMORY"] == f"{default.memory_mb}M"
    generator = 0.1  # of a core, for some 100 requests a second
    assert default.max_replicas * default.cpus + BALANCER_CPUS + SCALER_CPUS + generator <= 2
    assert (given["BALANCER_CPUS"], given["BALANCER_MEMORY"]) == (str(BALANCER_CPUS), f"{BALANCER_MEMORY_MB}M")
    assert given["SCALER_CPUS"] == str(SCALER_CPUS)
    compose = (Path(__file__).parents[2] / "docker-compose.yml").read_text()
    limits = re.findall(r"limits: \{cpus: (\S+), memory: (\S+)\}", compose)
    assert limits == [(f'"${{{kind}_CPUS}}"', f'"${{{kind}_MEMORY}}"') for kind in ("REPLICA", "BALANCER", "SCALER")]
    kinds = ("plain", "single", "balanced", "scaled")
    assert [beside_cpus(kind) for kind in kinds] == [0, 0, BALANCER_CPUS, BALANCER_CPUS + SCALER_CPUS]


def test_compose_listens_where_the_load_goes_whatever_its_env_file_says(tmp_path: Path) -> None:
    single, scaled = (Deployment(kind, "m", tmp_path) for kind in ("single", "scaled"))
    assert project(single).environment["SINGLE_PORT"] == str(single.port)
    assert project(scaled).environment["BALANCER_PORT"] == str(scaled.port)
    assert project(scaled).environment["BIND"] == "127.0.0.1"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stack_stands_until_it_is_told_to_end_and_leaves_nothing(
    sent: signal.Signals, packages: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{os.environ['SINGLE_PORT']}"
    command = [sys.executable, "-m", "perf", "up", "single", "--engine", "local", "--models-dir", str(packages)]
    with subprocess.Popen(command, cwd=ROOT) as running:
        until(lambda: ready(url), 30)
        assert {model["name"] for model in httpx.get(f"{url}/models").json()["models"]} == {"colours", "zebra"}
        running.send_signal(sent)
        assert running.wait(20) == 0
    assert capfd.readouterr().out.startswith(f"single answers at {url}; Ctrl-C ends it (")
    assert not ready(url)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_takes_its_stack_down_and_reports_what_it_has(sent: signal.Signals, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{os.environ['SINGLE_PORT']}"
    given = ["--stacks", "single,balanced", "--models", "mobilenet_v2", "--quick", "-d", "60s"]
    command = [sys.executable, "-m", "perf", "run", "--engine", "local", "--out", str(tmp_path / "out"), *given]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as running:
        until((tmp_path / "out/samples.csv").exists, 60)  # it has begun to load
        running.send_signal(sent)
        assert running.wait(60) == 130
    assert not ready(url)
    assert "interrupted" in (tmp_path / "out/report.md").read_text()
