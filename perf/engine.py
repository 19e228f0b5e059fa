"""The few questions asked of a Docker engine, over its own socket: `docker stats` would take two seconds for each."""

import functools
import http.client
import json
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from perf import cgroups
from perf.usage import Usage

SERVICE = "com.docker.compose.service"  # label of a container
API = (1, 41)  # Engine 20.10, the first with `one-shot` statistics
MACHINE = Path(os.environ.get("HOST_ROOT", "/"))  # where /proc and /sys of the engine's machine are seen


Container = dict[str, Any]  # as the engine lists it


class EngineError(RuntimeError):
    """The Docker engine is not there or refused a question."""


class _Socket(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(socket_path())


def socket_path() -> str:
    """Where the engine listens: `DOCKER_HOST` if it is a socket, else Docker's default."""
    parts = urlsplit(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    if parts.scheme != "unix":
        raise EngineError(
            f"DOCKER_HOST is a {parts.scheme} address; only a unix socket is supported: unset it, or use --engine local"
        )
    return parts.path


def ask(path: str) -> Any:
    """The JSON answer to GET `path`.

    Raises:
        EngineError: no engine listens, or it answered with an error.
    """
    return _get(f"/v{'.'.join(map(str, _api(socket_path())))}{path}")


@functools.cache
def _api(_: str) -> tuple[int, ...]:
    """The oldest version of the API that knows all questions and that the engine at this socket speaks."""
    return max(API, tuple(map(int, _get("/version")["MinAPIVersion"].split("."))))


def _get(path: str) -> Any:
    connection = _Socket("docker", timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        content = json.loads(answer.read())
    except OSError as error:
        raise EngineError(f"no Docker engine at {socket_path()}: {error}; start one or use the local engine") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise EngineError(f"the Docker engine refused {path}: {content.get('message', content)}")
    return content


def available() -> bool:
    """Whether an engine answers."""
    try:
        ask("/version")
    except EngineError:
        return False
    return Path(socket_path()).exists()


def containers(project: str, service: str | None = None) -> list[Container]:
    """Running containers of a compose project, as the engine lists them."""
    labels = [f"com.docker.compose.project={project}"]
    if service:
        labels.append(f"{SERVICE}={service}")
    found: list[Container] = ask("/containers/json?filters=" + quote(json.dumps({"label": labels})))
    return found


def healthy(container: Container) -> bool:
    """Whether its health check passes, by the status that a person sees in `docker ps`."""
    return "(healthy)" in container["Status"]


def address(container: Container) -> str:
    """Its address on the first of its networks."""
    networks = container["NetworkSettings"]["Networks"].values()
    return next(str(network["IPAddress"]) for network in networks)


def usage(container: str) -> Usage:
    """CPU, working set and throttling of one container: from its cgroup where that can be seen.

    The engine itself is asked only elsewhere: it takes a second, and 5 ms of CPU a container.
    """
    process = str(ask(f"/containers/{container}/json")["State"]["Pid"])
    try:
        return cgroups.of_process(process, within=container, root=MACHINE)
    except OSError:
        return statistics(container)


def usages(ids: Sequence[str]) -> dict[str, Usage]:
    """Of several containers at once; one that has gone since is left out."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        pending = {name: pool.submit(usage, name) for name in ids}
    return {
        name: future.result() for name, future in pending.items() if not isinstance(future.exception(), EngineError)
    }


def statistics(container: str) -> Usage:
    """The engine's own figures of one container; nothing where it has just ended."""
    stats = ask(f"/containers/{container}/stats?stream=false&one-shot=true")
    cpu, memory = stats["cpu_stats"], stats["memory_stats"]
    if "usage" not in memory:
        return Usage()
    detail = memory["stats"]
    cached = detail.get("total_inactive_file", detail.get("inactive_file", 0))  # cgroup v1, v2
    throttled = cpu.get("throttling_data", {}).get("throttled_time", 0)
    return Usage(cpu["cpu_usage"]["total_usage"] / 1e9, max(0, memory["usage"] - cached), throttled / 1e9)
