"""What docker says when it fails reaches the user in one line, with the remedy where we know it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from perf import compose
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
