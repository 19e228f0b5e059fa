"""docker-compose.yml as compose and Swarm read it; no engine is needed for that."""

import json
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from service.settings import PREFIX, Settings

REPO = Path(__file__).parents[2]
MODELS = ("docker-compose.yml", "deploy/compose.models.yml")


def has_compose() -> bool:
    try:
        return not subprocess.run(["docker", "compose", "version"], check=False, capture_output=True).returncode
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not has_compose(), reason="no compose plugin; deploy/docker-plugins brings it")


def read_services(*arguments: str, files: tuple[str, ...] = ("docker-compose.yml",)) -> Mapping[str, Any]:
    """The services that `docker compose ARGUMENTS up` would start."""
    chosen = [argument for file in files for argument in ("--file", file)]
    command = ["docker", "compose", *chosen, *arguments, "config", "--format", "json"]
    found: Mapping[str, Any] = json.loads(subprocess.check_output(command, cwd=REPO))["services"]
    return found


services = cache(read_services)


@pytest.mark.parametrize(
    ("arguments", "names", "published"),
    [
        ((), {"single"}, {"single": "8000"}),
        (("--profile", "balanced"), {"balancer", "replica"}, {"balancer": "8080"}),
        (("--profile", "scaled"), {"balancer", "replica", "scaler"}, {"balancer": "8080"}),
    ],
)
def test_each_stack_is_one_command(arguments: tuple[str, ...], names: set[str], published: dict[str, str]) -> None:
    found = services(*arguments)
    ports = {name: port["published"] for name, given in found.items() for port in given.get("ports", [])}
    assert (set(found), ports) == (names, published)


@pytest.mark.parametrize("arguments", [(), ("--profile", "scaled")])
def test_every_container_is_limited_and_has_no_privilege(arguments: tuple[str, ...]) -> None:
    for given in services(*arguments).values():
        assert given["read_only"]
        assert given["cap_drop"] == ["ALL"]
        assert given["security_opt"] == ["no-new-privileges:true"]
        assert given["restart"] == "unless-stopped"
        assert set(given["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
        assert [volume["target"] for volume in given["volumes"] if volume["type"] == "tmpfs"] == ["/tmp"]


def test_only_the_scaler_sees_the_engine() -> None:
    mounted = {
        name: [volume["source"] for volume in given["volumes"] if volume["type"] == "bind"]
        for name, given in services("--profile", "scaled").items()
    }
    seen = ["/var/run/docker.sock", str(REPO), "/proc", "/sys/fs/cgroup"]
    assert mounted == {"balancer": [], "replica": [], "scaler": seen}


def test_a_replica_has_time_to_drain() -> None:
    replica = services("--profile", "balanced")["replica"]
    drain_ms = int(replica["environment"]["SOUS_DRAIN_DELAY_MS"])
    assert drain_ms >= 2000  # the balancer looks every second
    assert float(replica["stop_grace_period"].rstrip("s")) > (drain_ms + Settings().request_timeout_ms) / 1000


def test_replicas_and_their_balancer_have_the_grace_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOP_GRACE_PERIOD", "75s")
    found = read_services("--profile", "balanced")
    assert {found[name]["stop_grace_period"] for name in ("replica", "balancer")} == {"1m15s"}


def test_no_registry_is_asked_for_what_is_built_here() -> None:
    for arguments in ((), ("--profile", "scaled")):
        assert {given["pull_policy"] for given in read_services(*arguments).values()} == {"never"}


def test_every_setting_of_the_service_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {PREFIX + field.upper() for field in Settings.__struct_fields__} - {"SOUS_MODELS_DIR"}  # of the image
    for name in known:
        monkeypatch.setenv(name, "7")
    for arguments in ((), ("--profile", "scaled")):
        for name, given in read_services(*arguments).items():
            passed = {key for key, value in given["environment"].items() if value == "7"}
            limits = {"SOUS_REQUEST_TIMEOUT_MS", "SOUS_MAX_IMAGE_BYTES", "SOUS_MAX_REQUEST_BYTES"}
            assert passed == (limits if name == "balancer" else known)


def test_models_of_a_folder_are_mounted_read_only() -> None:
    for arguments, name in (((), "single"), (("--profile", "balanced"), "replica")):
        given = services(*arguments, files=MODELS)[name]
        [mount] = [volume for volume in given["volumes"] if volume["type"] == "bind"]
        assert (mount["source"], mount["target"], mount["read_only"]) == (str(REPO / "models"), "/models", True)
        assert given["environment"]["SOUS_MODELS_DIR"] == "/models"


def test_swarm_takes_the_balanced_stack() -> None:
    stack = subprocess.check_output([REPO / "deploy/swarm/stack"])
    told = json.loads(stack)["services"]
    assert set(told) == {"balancer", "replica"}
    assert told["balancer"]["environment"]["REPLICAS"] == "tasks.replica:8000"
    accepted = subprocess.run(
        ["docker", "stack", "config", "--compose-file", "-"], check=False, input=stack, capture_output=True
    )
    assert accepted.returncode == 0, accepted.stderr
