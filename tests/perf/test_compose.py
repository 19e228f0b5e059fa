"""What docker says when it fails reaches the user in one line, with the remedy where we know it."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from perf import compose, engine, replica
from perf.deployment import StackError


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A docker that runs what a test writes into it."""
    program = tmp_path / "docker"
    program.touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    compose.installed.cache_clear()
    yield program
    compose.installed.cache_clear()


def test_a_docker_without_compose_is_named_with_what_to_do(docker: Path) -> None:
    docker.write_text("#!/bin/sh\necho 'unknown flag: --ansi' >&2; exit 125\n")
    assert not compose.installed()
    with pytest.raises(StackError, match=r"no compose plugin: install it .*or use --engine local"):
        compose.Project("x", "single", {}).run("ps")


def test_what_compose_complains_of_is_one_line(docker: Path) -> None:
    docker.write_text('#!/bin/sh\n[ "$2" = version ] && exit; echo first >&2; echo second >&2; exit 1\n')
    with pytest.raises(StackError, match=r"^docker compose ps failed: first / second$"):
        compose.Project("x", "single", {}).run("ps")


def labelled(monkeypatch: pytest.MonkeyPatch, **labels: str) -> None:
    """One container of the project, as compose labels it."""
    container = {"Labels": {f"com.docker.compose.project.{name}": value for name, value in labels.items()}}
    monkeypatch.setattr(engine, "containers", lambda _: [container])


def test_a_project_is_opened_by_the_files_that_it_was_brought_up_with(monkeypatch: pytest.MonkeyPatch) -> None:
    labelled(
        monkeypatch, working_dir="/srv/sous", config_files="/srv/sous/docker-compose.yml,/srv/sous/deploy/more.yml"
    )
    for mounted, seen in ((None, "/srv/sous"), (Path("/project"), "/project")):
        files = ["--file", f"{seen}/docker-compose.yml", "--file", f"{seen}/deploy/more.yml"]
        options = ["--project-directory", "/srv/sous", *files, "--env-file", f"{seen}/.env"]
        assert sorted(compose.opened_as("sous", mounted)) == sorted(options)


def test_a_replica_that_the_scaler_started_does_not_say_how_the_project_was_brought_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The engine lists the newest first."""
    label, files = "com.docker.compose.", "docker-compose.yml"
    listed = [
        {
            "Labels": {
                f"{label}service": service,
                f"{label}project.working_dir": "/srv",
                f"{label}project.config_files": at,
            }
        }
        for service, at in (("replica", f"/project/{files}"), ("balancer", f"/srv/{files}"))
    ]
    monkeypatch.setattr(engine, "containers", lambda _: listed)
    assert f"/project/{files}" in compose.opened_as("sous", Path("/project"))


def test_a_file_that_the_scaler_does_not_see_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"config_files": "/srv/sous/docker-compose.yml", "environment_file": "/etc/sous.env"}
    labelled(monkeypatch, working_dir="/srv/sous", **files)
    with pytest.raises(StackError, match=r"/etc/sous\.env is not below /srv/sous"):
        compose.opened_as("sous", Path("/project"))


def test_a_project_of_which_nothing_runs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "containers", lambda _: [])
    with pytest.raises(StackError, match="nothing of the compose project sous runs: bring it up first"):
        compose.opened_as("sous", None)


def container(address: str) -> engine.Container:
    return {"Status": "Up 40 seconds (healthy)", "NetworkSettings": {"Networks": {"n": {"IPAddress": address}}}}


def test_a_replica_that_refuses_connections_is_not_ready_whatever_its_last_health_check_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(compose, "PORT", server.getsockname()[1])
        monkeypatch.setattr(replica, "PATIENCE_S", 0.2)
        assert compose._is_ready(container("127.0.0.1"))  # it says nothing: as from another network
    assert not compose._is_ready(container("127.0.0.1"))
