"""A stack by docker compose: the project's own docker-compose.yml with this run's figures in its environment."""

import functools
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from perf import engine, replica
from perf.deployment import BALANCER_CPUS, FORGET_S, READY_S, Deployment, StackError
from perf.usage import Ledger, Usage

REPO = Path(__file__).parents[1]
LABEL = "com.docker.compose.project."  # of containers: how their project was brought up
PORT = 8000  # of a replica in its container
PACKAGES = ("onnxruntime", "numpy", "litestar", "gunicorn", "uvicorn", "uvloop", "simplejpeg")  # of the service


class Project:
    """The containers of one compose project."""

    def __init__(
        self, name: str, profile: str, environment: Mapping[str, str], port: int = 0, options: Sequence[str] = ()
    ) -> None:
        """`environment` are variables of the project's files, `options` those of `docker compose` that say which."""
        self.name = name
        self.options = options
        self.profile = profile
        self.environment = {**os.environ, **environment, "COMPOSE_PROJECT_NAME": name, "COMPOSE_PROFILES": profile}
        self.service = "single" if profile == "single" else "replica"
        self.url = f"http://127.0.0.1:{port}"
        self.ledger = Ledger()

    @property
    def limited_by(self) -> str:
        return "docker: CPU quota and memory limit a container"

    def run(self, *arguments: str) -> str:
        """`docker compose ARGUMENTS`, apart from the terminal's interrupts, so that taking down is never cut short.

        Raises:
            StackError: it failed.
        """
        command = ["docker", "compose", "--ansi", "never", "--progress", "quiet", *self.options, *arguments]
        try:
            done = subprocess.run(  # noqa: S603  our own command
                command,
                cwd=REPO,
                env=self.environment,
                capture_output=True,
                text=True,
                check=True,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise StackError("no docker command; install Docker or use the local engine") from error
        except subprocess.CalledProcessError as error:
            if not installed():
                raise StackError(
                    "docker has no compose plugin: install it (make docker-plugins), or use --engine local"
                ) from error
            said = " / ".join(error.stderr.strip().splitlines()[-5:])
            raise StackError(f"docker compose {' '.join(arguments)} failed: {said}") from error
        return done.stdout

    def up(self) -> None:
        """Start everything and wait until it is ready."""
        build()
        try:
            self.run("up", "--detach", "--no-build")
            self._wait_ready()
        except StackError as error:
            said = self.run("logs", "--no-color", "--tail", "5").strip().splitlines()
            raise StackError(" / ".join([str(error), *said])) from error

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while self.replicas() < self.asked() or not replica.ready(self.url):
            ended = [c["Names"][0].lstrip("/") for c in engine.containers(self.name) if c["State"] == "restarting"]
            if ended or time.monotonic() > deadline:
                late = f"{self.name} is not ready after {READY_S:.0f} s: give it more CPU (--cpus), or see what it says"
                raise StackError(f"{ended[0]} ended: see what it says" if ended else late)
            time.sleep(0.1)
        time.sleep(FORGET_S)  # that no replica was ready

    def down(self) -> None:
        """End and remove containers and networks; nothing is in flight any more, so that no drain is waited for."""
        if self.profile == "scaled":  # first: it may be about to start a replica
            with suppress(StackError):
                self.run("rm", "--stop", "--force", "scaler")
        self.run("down", "--remove-orphans", "--volumes", "--timeout", "1")

    def replicas(self) -> int:
        """Replicas that are ready now."""
        return len(self._ready())

    def usage(self) -> Usage:
        """Of every container of the project, those that have ended included in what only grows."""
        return self.ledger.update(_usages(engine.containers(self.name)))

    def asked(self) -> int:
        """Replicas that run, ready or not."""
        return len(engine.containers(self.name, self.service))

    def cpu_seconds(self) -> dict[str, float]:
        """CPU used so far by each ready replica."""
        return {name: used.cpu_seconds for name, used in _usages(self._ready()).items()}

    def queue_images(self) -> dict[str, float]:
        """Images that wait at each ready replica."""
        return replica.waiting({c["Id"]: _url(c) for c in self._ready()})

    def scale(self, replicas: int) -> None:
        """As many replicas: more are starting when this returns (the rule counts them as unready), fewer have left."""
        wanted = ("--scale", f"{self.service}={replicas}", self.service)
        self.run("up", "--detach", "--no-recreate", "--no-deps", "--no-build", *wanted)

    def _ready(self) -> list[engine.Container]:
        return [c for c in engine.containers(self.name, self.service) if _is_ready(c)]


def _usages(containers: list[engine.Container]) -> dict[str, Usage]:
    return engine.usages([c["Id"] for c in containers])


def _url(container: engine.Container) -> str:
    return f"http://{engine.address(container)}:{PORT}"


def _is_ready(container: engine.Container) -> bool:
    """By its own word; where it cannot be reached from here, by its health check, which may be 30 s old."""
    said = replica.ready(_url(container))
    return engine.healthy(container) if said is None else said


@functools.cache
def installed() -> bool:
    """Whether docker has its compose plugin."""
    try:
        return not subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode  # noqa: S607
    except OSError:
        return False


def opened_as(name: str, mounted: Path | None) -> list[str]:
    """The options under which a project that runs was brought up: its folder and its files, by its containers' labels.

    Args:
        mounted: where that folder is seen from here; None for a process on the machine itself.

    Raises:
        StackError: nothing of it runs, or a file of it cannot be seen from here.
    """
    running = engine.containers(name)
    if not running:
        raise StackError(f"nothing of the compose project {name} runs: bring it up first, or set COMPOSE_PROJECT_NAME")
    # a replica may be the scaler's, whose labels say where it saw the files
    opened = next((c for c in running if c["Labels"].get(engine.SERVICE) != "replica"), running[0])
    labels = {key.removeprefix(LABEL): value for key, value in opened["Labels"].items()}
    folder = Path(labels["working_dir"])
    files = {"--file": labels["config_files"], "--env-file": labels.get("environment_file") or str(folder / ".env")}
    options = ["--project-directory", str(folder)]
    for option, paths in files.items():
        for path in paths.split(","):
            if mounted and not Path(path).is_relative_to(folder):
                raise StackError(f"{path} is not below {folder}, which is all that the scaler sees: put it there")
            options += [option, str(mounted / Path(path).relative_to(folder) if mounted else path)]
    return options


@functools.cache
def build() -> None:
    """The images of all stacks, from this checkout; once a process."""
    Project("sous", "single,scaled", {}).run("build")


def versions() -> dict[str, str]:
    """What the images run: Python and packages of the service, nginx of the balancer; and the engine that runs them.

    Raises:
        StackError: an image cannot be built or does not answer.
    """
    build()
    config = Project("sous", "balanced", {}).run("config", "--images").split()
    image = {name.partition(":")[0].rpartition("/")[2]: name for name in config}
    found = dict(line.split() for line in _ask(image["service"], "python3", "-c", _VERSIONS, *PACKAGES).splitlines())
    nginx = _ask(image["balancer"], "nginx", "-v").rpartition("/")[2].strip()
    return {"docker": str(engine.ask("/version")["Version"]), "nginx": nginx, **found}


_VERSIONS = """
import platform, sys
from importlib.metadata import version
print("python", platform.python_version(), *(f"\\n{name} {version(name)}" for name in sys.argv[1:]))
"""


def _ask(image: str, program: str, *arguments: str) -> str:
    """What a program of an image says."""
    command = ["docker", "run", "--rm", "--network", "none", "--entrypoint", program, image, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)  # noqa: S603  our own command
    except (OSError, subprocess.SubprocessError) as error:
        raise StackError(f"{' '.join(command[:8])} failed: {error}") from error
    return done.stdout or done.stderr  # nginx says its version there


def project(wanted: Deployment) -> Project:
    """A project of its own for each kind of stack, so that one still up is not changed into another; its scaler,
    where it has one, runs with the same environment."""
    environment = {
        "COMPOSE_FILE": "docker-compose.yml:deploy/compose.models.yml",
        "MODELS_DIR": str((wanted.models_dir / wanted.model).resolve()),
        "ONLY_MODEL": wanted.model,
        "SOUS_DEFAULT_MODEL": wanted.model,
        "REPLICAS": str(wanted.first_replicas),
        "MAX_REPLICAS": str(wanted.max_replicas),
        "BIND": "127.0.0.1",
        "SINGLE_PORT" if wanted.kind == "single" else "BALANCER_PORT": str(wanted.port),
        "BALANCER_CPUS": str(BALANCER_CPUS),
        "REPLICA_CPUS": str(wanted.cpus),
        "REPLICA_MEMORY": f"{wanted.memory_mb}M",
        "SCALE_FASTER": str(wanted.faster),
    }
    return Project(f"sous-perf-{os.getpid()}-{wanted.kind}", wanted.kind, environment, wanted.port)
