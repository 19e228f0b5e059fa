"""The three stacks in real containers."""

import http.client
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from perf import compose, engine, replica, stacks
from perf.compose import REPO, Project
from perf.deployment import StackError
from tests.deploy.containers import bases, docker, inspect, missing, open_to_all, tag
from tests.deploy.load import Answers, load
from tests.service.packages import jpeg, write_package

pytestmark = pytest.mark.docker
PHOTO = jpeg("green")
MIB = 2**20


@pytest.fixture(scope="module", autouse=True)
def images() -> None:
    """The images, from this checkout."""
    if reason := missing():
        pytest.skip(reason)
    compose.build()


@pytest.fixture(scope="module", autouse=True)
def apart() -> Iterator[None]:
    """Ports of these tests alone, and a container for everything that ends with them."""
    patch = pytest.MonkeyPatch()
    for name in ("SINGLE_PORT", "BALANCER_PORT"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            patch.setenv(name, str(probe.getsockname()[1]))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return readable(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 1.5 GFLOP: a few users make a queue on any machine."""
    return readable(tmp_path_factory.mktemp("slow"), size=64, work=10, golden_images=1)


def readable(folder: Path, **figures: int) -> Path:
    open_to_all(folder)
    write_package(folder, "colours", **figures)
    return folder


@pytest.fixture(scope="module")
def balanced(packages: Path, images: None, apart: None) -> Iterator[Project]:
    """Up from its first use until the last test: those that bring up a stack on the same port come before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUS_DRAIN_DELAY_MS", "3000")  # the balancer looks every second
        with stacks.up("balanced", model="colours", models_dir=packages, engine="docker") as running:
            assert isinstance(running, Project)
            yield running


def service_image() -> str:
    return f"sous/service:{tag()}"


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.2)


def predict(url: str, model: str = "") -> dict[str, Any]:
    answer = httpx.post(
        f"{url}/predict?model={model}", content=PHOTO, headers={"Content-Type": "image/jpeg"}, timeout=30
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refuses(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 503
    except httpx.TransportError:
        return False


@contextmanager
def idling(url: str) -> Iterator[http.client.HTTPConnection]:
    """A connection that was kept after an answer."""
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection:
        assert ask(connection)[1] == "keep-alive"
        yield connection


def ask(connection: http.client.HTTPConnection) -> tuple[int, str | None]:
    """Status of an answer, and what becomes of its connection."""
    connection.request("POST", "/predict", PHOTO, {"Content-Type": "image/jpeg"})
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.headers["Connection"]


def replicas(project: Project) -> dict[str, dict[str, Any]]:
    """Replicas of a project by id."""
    return {found["Id"]: found for found in engine.containers(project.name, "replica")}


def all_take_part(project: Project, answers: Answers) -> bool:
    """Whether each replica worked for the next answers."""
    before = project.cpu_seconds()
    answers.wait_for(100)
    after = project.cpu_seconds()
    return min(after[name] - before[name] for name in before) > 0.02


def left(project: str) -> str:
    label = f"label=com.docker.compose.project={project}"
    return docker("ps", "--all", "--quiet", "--filter", label) + docker("network", "ls", "--quiet", "--filter", label)


def test_the_image_is_small_and_holds_what_serves_and_nothing_else() -> None:
    image, base = inspect(service_image()), inspect(bases()["SERVICE_BASE"])
    assert image
    assert base
    assert image["Size"] - base["Size"] <= 250 * 10**6
    assert image["Config"]["User"] == "10001:10001"
    code = (
        "import shutil, importlib.util as i\n"
        "print([m for m in ('tensorflow', 'keras', 'onnx', 'pip', 'convert', 'perf', 'tests') if i.find_spec(m)],"
        " [t for t in ('gcc', 'cc', 'pip', 'curl', 'make') if shutil.which(t)])"
    )
    assert docker("run", "--rm", "--network", "none", service_image(), "python3", "-c", code) == "[] []"


@pytest.mark.parametrize("before", ["http://a.mirror/{}", "https://a.snapshot/archive/{}/20250101T000000Z/"])
def test_images_are_made_of_the_packages_of_a_day(before: str) -> None:
    """With either format of apt's sources: that of the official images, and debootstrap's."""

    def sources(address: str) -> str:
        names = [address.format(name) for name in ("debian", "debian-security")]
        return "\n".join(f"URIs: {one}\nSuites: trixie\ndeb [trusted=yes] {one} trixie main" for one in names)

    after = "http://b.snapshot/archive/{}/20261101T000000Z"
    program = (
        'apt-get() { :; }; export -f apt-get; cd /etc/apt; echo "$BEFORE" >sources.list; /apt-install; cat s*.list'
    )
    given = {"DEBIAN_SNAPSHOT": after.format("debian"), "BEFORE": sources(before)}
    options = [f"--env={name}={value}" for name, value in given.items()]
    script = f"--volume={REPO}/deploy/apt-install:/apt-install:ro"
    said = docker("run", "--rm", "--network=none", script, *options, bases()["SERVICE_BASE"], "bash", "-ec", program)
    assert said == sources(after)


def test_a_run_says_what_its_images_hold() -> None:
    found = compose.versions()
    assert {"docker", "nginx", "python", *compose.PACKAGES} == found.keys()
    assert all(re.match(r"\d+(\.\d+)+", version) for version in found.values()), found


@pytest.mark.parametrize(("limit", "cores"), [("0.5", 1), ("1", 1), ("2", 2)])
def test_the_service_plans_by_the_cpu_limit_of_its_container(limit: str, cores: int, packages: Path) -> None:
    if float(limit) > (os.cpu_count() or 1):
        pytest.skip("the engine allows no more cores than the machine has")
    mount = f"{packages}:/opt/sous/models:ro"
    name = docker(
        "run", "--rm", "--detach", "--publish", "127.0.0.1::8000", "--cpus", limit, "--volume", mount, service_image()
    )
    try:
        url = f"http://{docker('port', name, '8000')}"
        until(lambda: replica.ready(url))
        plan = httpx.get(f"{url}/models/colours").json()["versions"][0]["plan"]
        assert plan["slots"] * plan["intra_op_threads"] == cores
        assert predict(url)["model"] == "colours"
    finally:
        docker("kill", name)


def test_compose_up_serves_the_models_in_the_image_hardened_and_stops_gracefully(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOUS_DRAIN_DELAY_MS", "1000")
    port = int(os.environ["SINGLE_PORT"])
    project = Project(f"sous-test-{os.getpid()}", "single", {}, port)
    try:
        project.up()
        names = [path.name for path in sorted(REPO.glob("models/*"))]
        served = httpx.get(f"{project.url}/models").json()["models"]
        assert [model["name"] for model in served] == names
        assert [predict(project.url, name)["model"] for name in names] == names
        [container] = engine.containers(project.name)
        host = engine.ask(f"/containers/{container['Id']}/json")["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert (host["NanoCpus"], host["Memory"]) == (500_000_000, 640 * MIB)
        assert host["RestartPolicy"]["Name"] == "unless-stopped"
        docker("stop", container["Id"])
        assert engine.ask(f"/containers/{container['Id']}/json")["State"]["ExitCode"] == 0
    finally:
        project.down()
    assert left(project.name) == ""


def test_a_balancer_stops_although_a_client_keeps_its_connection() -> None:
    options = ["--env=SOUS_REQUEST_TIMEOUT_MS=500", "--env=REPLICAS=localhost:9", "--publish=127.0.0.1::8080"]
    name = docker("run", "--detach", *options, f"sous/balancer:{tag()}")
    try:
        url = f"http://{docker('port', name, '8080')}"
        until(lambda: refuses(url))
        with idling(url):
            docker("stop", "--time=20", name)
        assert engine.ask(f"/containers/{name}/json")["State"]["ExitCode"] == 0
    finally:
        docker("rm", "--force", name)


def test_the_scaled_stack_follows_the_load(slow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUS_DRAIN_DELAY_MS", "3000")
    figures = {"max_replicas": 2, "faster": 300, "cpus": 0.4}
    with stacks.up("scaled", model="colours", models_dir=slow, engine="docker", **figures) as running:
        assert running.replicas() == 1
        with load(running.url, PHOTO, users=12) as answers:
            until(lambda: running.replicas() == 2)
            answers.wait_for(50)
        until(lambda: running.replicas() == 1)
        assert predict(running.url)["model"] == "colours"
    assert answers.failed() == {}


def test_a_roll_to_an_image_that_is_not_there_says_so_and_changes_nothing() -> None:
    for profile, image in (("balanced", "sous/service:none"), ("scaled", "sous/service:none")):
        rolled = subprocess.run(
            ["deploy/roll", profile],
            cwd=REPO,
            env={**os.environ, "TAG": "none"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert rolled.returncode == 1
        assert rolled.stderr == f"roll: there is no image {image}; docker compose --profile {profile} build first\n"


def test_the_scaled_stack_is_rolled_and_scales_on_with_the_new_image(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUS_DRAIN_DELAY_MS", "3000")
    new = f"{tag()}-next-{os.getpid()}"
    for name in ("service", "scaler"):
        docker("tag", f"sous/{name}:{tag()}", f"sous/{name}:{new}")
    with stacks.up("scaled", model="colours", models_dir=packages, engine="docker", max_replicas=2) as running:
        assert isinstance(running, Project)
        environment = {**running.environment, "TAG": new}
        try:
            with load(running.url, PHOTO, kept=2) as answers, idling(running.url) as kept:
                answers.wait_for(20)
                subprocess.run(["deploy/roll", "scaled"], cwd=REPO, env=environment, check=True)
                answers.wait_for(20)
                assert ask(kept) == (200, "close")  # by the new replica: it knew the old one only
            assert answers.failed() == {}
            assert [one["Image"] for one in replicas(running).values()] == [f"sous/service:{new}"]
            assert_reads_cgroups(running)
            [scaler] = engine.containers(running.name, "scaler")
            assert f"TAG={new}" in engine.ask(f"/containers/{scaler['Id']}/json")["Config"]["Env"]
            assert predict(running.url)["model"] == "colours"
        finally:
            running.down()
            docker("rmi", *(f"sous/{name}:{new}" for name in ("service", "scaler")))


def assert_reads_cgroups(running: Project) -> None:
    """The scaler reads what a replica uses from its cgroup: asking the engine would disturb what it scales."""
    [scaler], [replica] = (engine.containers(running.name, name) for name in ("scaler", "replica"))
    ours = engine.usage(replica["Id"]).cpu_seconds
    read = f"engine.statistics = None; print(engine.usage('{replica['Id']}').cpu_seconds)"
    seen = docker("exec", scaler["Id"], "python3", "-c", f"from perf import engine; {read}")
    assert float(seen) == pytest.approx(ours, abs=0.5)


class Interrupted(BaseException):
    """As KeyboardInterrupt, which pytest takes for its own."""


def test_a_run_that_is_interrupted_while_its_scaler_follows_the_queue_leaves_nothing_behind(
    slow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALE_ON", "queue")

    def interrupt() -> None:
        figures = {"max_replicas": 2, "faster": 300, "cpus": 0.4}
        asked = stacks.up("scaled", model="colours", models_dir=slow, engine="docker", **figures)
        with asked as running, load(running.url, PHOTO, users=12):
            assert isinstance(running, Project)
            until(lambda: running.asked() == 2)
            raise Interrupted

    with pytest.raises(Interrupted):
        interrupt()
    assert left(f"sous-perf-{os.getpid()}-scaled") == ""


def test_a_stack_that_does_not_come_up_says_why_and_leaves_nothing_behind(packages: Path) -> None:
    asked = stacks.up("single", model="colours", models_dir=packages, engine="docker")
    taken = socket.create_server(("127.0.0.1", int(os.environ["SINGLE_PORT"])))
    with taken, pytest.raises(StackError, match="address already in use"), asked:
        pass
    assert left(f"sous-perf-{os.getpid()}-single") == ""


def test_the_balanced_stack_answers_and_every_replica_takes_part(balanced: Project) -> None:
    assert predict(balanced.url)["predictions"][0]["label"] == "green"
    assert balanced.replicas() == 2
    with load(balanced.url, PHOTO, kept=2) as answers:
        assert all_take_part(balanced, answers)
    assert answers.failed() == {}


def test_usage_is_the_engines_own_figure(balanced: Project) -> None:
    name = next(iter(replicas(balanced)))
    ours = engine.usage(name)
    theirs = engine.statistics(name)
    assert theirs.cpu_seconds == pytest.approx(ours.cpu_seconds, abs=0.5)
    assert theirs.memory_bytes == pytest.approx(ours.memory_bytes, rel=0.2)
    assert balanced.usage().memory_bytes > 2 * 0.8 * ours.memory_bytes


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may kill a container's process")
def test_no_request_is_lost_with_a_replica_that_is_killed_and_it_comes_back(balanced: Project) -> None:
    with load(balanced.url, PHOTO, kept=2) as answers:
        answers.wait_for(50)
        name = next(iter(replicas(balanced)))
        killed = engine.ask(f"/containers/{name}/json")["State"]["Pid"]
        os.kill(killed, signal.SIGKILL)
        answers.wait_for(100)
        until(lambda: engine.ask(f"/containers/{name}/json")["State"]["Pid"] not in (0, killed))
        until(lambda: balanced.replicas() == 2)
        answers.wait_for(50)
    assert answers.failed() == {}


def test_no_request_is_lost_while_replicas_go_from_one_to_three_to_one(balanced: Project) -> None:
    balanced.scale(1)
    with load(balanced.url, PHOTO, kept=2) as answers:
        answers.wait_for(50)
        balanced.scale(3)
        until(lambda: balanced.replicas() == 3)
        until(lambda: all_take_part(balanced, answers))
        balanced.scale(1)
        assert balanced.replicas() == 1
        answers.wait_for(50)
    assert answers.failed() == {}
    balanced.scale(2)
    until(lambda: balanced.replicas() == 2)


def test_an_image_that_does_not_become_healthy_is_taken_back(balanced: Project) -> None:
    bad = f"{tag()}-bad-{os.getpid()}"
    docker("build", "--quiet", "--tag", f"sous/service:{bad}", "-", input=f'FROM {service_image()}\nCMD ["false"]\n')
    before = set(replicas(balanced))
    try:
        done = subprocess.run(
            ["deploy/roll"],
            cwd=REPO,
            env={**balanced.environment, "TAG": bad},
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert "does not become healthy; its replica is removed, the others serve on" in done.stderr
        assert set(replicas(balanced)) == before
        assert predict(balanced.url)["model"] == "colours"
    finally:
        docker("rmi", "--force", f"sous/service:{bad}")


def test_no_request_is_lost_while_the_service_is_rolled_to_a_new_image(balanced: Project) -> None:
    new = f"sous/service:{tag()}-next-{os.getpid()}"
    docker("build", "--quiet", "--tag", new, "-", input=f"FROM {service_image()}\nLABEL roll={os.getpid()}\n")
    old = set(replicas(balanced))
    environment = {**balanced.environment, "TAG": new.split(":")[1]}
    try:
        with load(balanced.url, PHOTO, kept=2) as answers:
            answers.wait_for(50)
            subprocess.run(["deploy/roll"], cwd=REPO, env=environment, check=True)
            answers.wait_for(50)
        assert answers.failed() == {}
        now = replicas(balanced)
        assert len(now) == 2
        assert not old & set(now)
        assert {container["Image"] for container in now.values()} == {new}
    finally:
        docker("rm", "--force", *replicas(balanced))
        docker("rmi", new)
