"""The commands of the Makefile, as make would run them."""

import os
import shlex
import subprocess
from pathlib import Path

from convert.command import packaging, read_options

ROOT = Path(__file__).parents[1]


# These tests may be run by make itself, which tells the makes below it so.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}


def make(*words: str) -> str:
    done = subprocess.run(["make", *words], cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    return done.stdout


def commands(*words: str) -> str:
    """What make would run."""
    return make("--dry-run", *words)


def test_test_ends_though_all_it_prints_goes_nowhere() -> None:
    with Path(os.devnull).open("w") as nowhere:
        words = ["make", "--dry-run", "test"]
        subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, check=True, stdout=nowhere, stderr=nowhere, timeout=60)


def test_make_alone_lists_its_commands() -> None:
    listed = [line.split()[1] for line in make().splitlines()]
    assert {"serve", "test", "lint", "install"} <= {*listed}
    for target in listed:
        assert make("--dry-run", target)


def test_serve_listens_on_the_port_asked_for() -> None:
    assert "python -m service --bind 127.0.0.1:8000\n" in commands("serve")
    assert "python -m service --bind 127.0.0.1:8123\n" in commands("serve", "PORT=8123")


def test_test_installs_what_it_needs_and_runs_all_tests() -> None:
    said = commands("--always-make", "test")
    first, *beside = [line.split(" -m pytest ")[1] for line in said.splitlines() if " -m pytest " in line]
    assert beside[:2] == ["tests/deploy/test_docker.py", "tests/convert"]
    ignored = [word.removeprefix("--ignore=") for word in first.split() if word.startswith("--ignore=")]
    alone = [word for word in first.split() if not word.startswith("--ignore=")]
    assert {*ignored, "tests/convert"} == {*beside}
    assert all((ROOT / path).exists() for path in beside)
    folders = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").iterdir() if list(path.glob("test_*.py"))}
    assert {*alone, "tests/convert"} == {*folders, "tests/test_*.py"}  # nothing is left out
    assert said.count("--require-hashes -r requirements/dev.txt") == 2  # by uv, else by pip
    assert "--require-hashes -r requirements/uv.txt" in said


def test_models_are_made_with_options_that_the_command_takes(tmp_path: Path) -> None:
    said = tmp_path / "said"
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    (tmp_path / "python").chmod(0o755)
    installed = ["--old-file=.venv/dev.stamp", "--old-file=.venv/bin/python"]  # nothing is installed by that python
    make(*installed, "models", f"BIN={tmp_path}", "MODELS=m", "IMAGES=i")
    words = [shlex.split(line) for line in said.read_text().splitlines()]
    assert {tuple(line[:2]) for line in words} == {("-m", "convert")}
    made = [read_options(packaging(), line[2:]) for line in words]
    assert [one.name for one in made] == ["mobilenet_v2", "previous", "resnet101_v2"]
    assert [str(one.source) for one in made] == [f"m/{one.name}.keras" for one in made]
    assert [one.gate.agreement for one in made] == [97, 97, 98]
    assert {one.gate.drop for one in made} == {0.3}
    assert all(one.replace for one in made)
