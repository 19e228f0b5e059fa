"""python -m service: gunicorn's options pass through, mistakes are told before anything starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from service.__main__ import gunicorn_command
from tests.service.packages import write_package
from tests.service.running import CHECKOUT, CLIENT, environment, serving, until


@pytest.mark.parametrize("arguments", [["--port", "8001"], ["--port=8001"]])
def test_port_is_short_for_a_loopback_bind(arguments: list[str]) -> None:
    assert gunicorn_command(arguments)[-3:-1] == ["--bind", "127.0.0.1:8001"]


@pytest.mark.parametrize("arguments", [["--port", "99999"], ["--port=http"], ["--port"]])
def test_a_port_that_is_none_is_told_in_one_line(arguments: list[str]) -> None:
    ended = run(*arguments)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "give one from 0 to 65535" in ended.stderr


def test_all_else_is_gunicorn_s() -> None:
    command = gunicorn_command(["--reload", "--workers", "3"])
    assert command[1:3] == ["-m", "gunicorn"]
    assert command[-4:] == ["--reload", "--workers", "3", "service.app:create_app()"]


def run(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=CHECKOUT,
        env=environment(Path("models"), settings),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_queu_size": 3}, "did you mean SOUS_MAX_QUEUE_SIZE?"),
        ({"top_k": "many"}, "got `str` - at `SOUS_TOP_K`; `python -m service.settings` lists all"),
    ],
)
def test_a_bad_setting_is_one_line_and_exit_status_2(settings: dict[str, object], message: str) -> None:
    ended = run(**settings)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_worker_that_drains_is_given_the_time_for_it() -> None:
    """It notifies no more meanwhile, and its last notice is up to half of `timeout` old."""
    code = "from service import gunicorn_conf as conf; print(conf.timeout, conf.graceful_timeout)"
    for timeout_ms in (1000, 60_000):
        settings = environment(Path("models"), {"request_timeout_ms": timeout_ms})
        done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, env=settings, capture_output=True, check=True)
        timeout, graceful = map(int, done.stdout.split())
        assert timeout - timeout / 2 >= graceful > timeout_ms / 1000


def test_an_option_gunicorn_does_not_know_is_refused() -> None:
    ended = run("--no-such-option")
    assert ended.returncode == 2
    assert "no-such-option" in ended.stderr


def test_a_preloaded_application_is_refused() -> None:
    ended = run("--preload", "--bind", "127.0.0.1:0")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("--preload cannot be used: each worker loads the models itself")


def test_reload_starts_the_worker_again_when_code_changes(models: Path) -> None:
    write_package(models)
    watched = models.parent / "watched.py"
    watched.write_text("")
    with serving(models, "--reload", "--reload-extra-file", str(watched)) as server:
        first = server.worker

        def started_again() -> bool:
            watched.touch()
            return server.worker not in (first, None)

        until(started_again)
        until(lambda: CLIENT.get(f"{server.url}/health/ready").status_code == 200)


@pytest.mark.parametrize("asked", ["-h", "--help"])
def test_the_help_is_our_own_and_says_where_gunicorns_is(asked: str) -> None:
    command = [sys.executable, "-m", "service", asked]
    shown = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("usage: python -m service [--port N")
    assert "python -m gunicorn --help" in shown.stdout
