import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest

from perf import meter
from perf.adapters import TOOLS, Load, Tool, find
from perf.local import Recipe, Replicas
from perf.meter import Usage, cpu_seconds, drive, machine_seconds
from perf.samples import Sample


def test_an_interrupt_keeps_what_was_measured_and_leaves_no_process(
    server: Any, photos_dir: Path, children_end: None
) -> None:
    kept: list[Any] = []
    timer = threading.Timer(2.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    load = Load(f"{server.url}/predict?model=m", photos_dir, users=2, seconds=60)
    with pytest.raises(KeyboardInterrupt):
        drive(find("locust"), load, server, lambda sent, read: kept.extend((sent, read)), lambda _: None)
    timer.join()
    sent, read = kept
    assert len(sent) > 20
    assert max(s.at_s for s in sent) < 10
    assert read


@pytest.mark.parametrize("tool", ["wrk", "siege"])
def test_an_interrupt_before_the_generator_has_started_is_an_interrupt(
    tool: str, server: Any, photos_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(meter, "generators", interrupted)
    kept: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        drive(
            TOOLS[tool], Load(server.url, photos_dir, 1, 1), server, lambda *given: kept.append(given), lambda _: None
        )
    assert kept == [([], [])]


def test_a_generator_that_fails_is_reported_in_its_own_words(server: Any, photos_dir: Path) -> None:
    broken = Tool(lambda load, folder: [["sh", "-c", "echo no such host; exit 3"]], lambda load, folder: [])
    with pytest.raises(RuntimeError, match="load generator ended with 3: no such host"):
        drive(broken, Load(server.url, photos_dir, 1, 1), server, lambda sent, read: None, lambda _: None)


def saying(words: str, then: str, tmp_path: Path) -> Tool:
    """A tool that hangs the first time, and whose samples are as many as its lines."""
    seen = tmp_path / "seen"
    script = f"printf '{words}'; [ -e {seen} ] && {then}; touch {seen}; exec sleep 60"
    return Tool(
        lambda load, folder: [["sh", "-c", script]],
        lambda load, folder: [Sample(0, 1, 200, 1, 0)] * len((folder / "1.out").read_text().splitlines()),
        farewell=b"Good bye",
    )


def test_a_load_whose_generator_hangs_when_its_time_is_up_is_run_again(
    server: Any, photos_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children_end: None
) -> None:
    monkeypatch.setattr(meter, "FAREWELL_S", 0.5)
    kept: list[Any] = []
    tool = saying("one\\nGood bye", "exec echo all", tmp_path)
    drive(
        tool, Load(server.url, photos_dir, 1, 1), server, lambda sent, read: kept.append((sent, read)), lambda _: None
    )
    [(sent, read)] = kept
    assert len(sent) == 2
    assert len(read) <= 2  # not those of the first run


def test_a_generator_that_always_hangs_is_an_error(
    server: Any, photos_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children_end: None
) -> None:
    monkeypatch.setattr(meter, "FAREWELL_S", 0.1)
    monkeypatch.setattr(meter, "TRIES", 2)
    tool = saying("Good bye", "exec sleep 60", tmp_path)
    with pytest.raises(RuntimeError, match="hung when its time was up, 2 times"):
        drive(tool, Load(server.url, photos_dir, 1, 1), server, lambda sent, read: None, lambda _: None)


def test_a_second_whose_counters_vanish_is_skipped(server: Any, photos_dir: Path) -> None:
    class Going:
        url = server.url
        calls = 0

        def replicas(self) -> int:
            return 1

        def usage(self) -> Usage:
            Going.calls += 1
            if Going.calls == 1:
                raise FileNotFoundError("the replica is gone")
            return server.usage()  # type: ignore[no-any-return]

    kept: list[Any] = []
    load = Load(f"{server.url}/predict?model=m", photos_dir, users=1, seconds=1.5)
    drive(find("locust"), load, Going(), lambda sent, read: kept.extend((sent, read)), lambda _: None)
    assert kept[0]
    assert len(kept[1]) == Going.calls - 1


def test_a_load_of_constant_rate_is_read_seldom_and_at_its_end(
    server: Any, photos_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "CONSTANT_READS", 2)
    kept: list[Any] = []
    ticks: list[float] = []
    load = Load(f"{server.url}/predict?model=m", photos_dir, users=1, seconds=5, schedule=((2.0, 5.0),))
    drive(find("locust"), load, server, lambda sent, read: kept.extend((sent, read)), ticks.append)
    sent, read = kept
    assert len(sent) == 10
    assert meter.CONSTANT_READS <= len(read) < len(ticks)
    assert read[-1].at_s > max(sample.at_s for sample in sent)  # the load ends with its last answer


def test_counters_are_those_of_the_process_and_the_machine() -> None:
    before, (_, busy) = cpu_seconds(os.getpid()), machine_seconds()
    sum(range(8_000_000))
    after, (_, busier) = cpu_seconds(os.getpid()), machine_seconds()
    assert before is not None
    assert after is not None
    assert 0.05 < after - before <= busier - busy + 0.05
    assert cpu_seconds(2**30) is None


class Interrupted(subprocess.Popen[bytes]):
    """A process whose parent gets SIGINT just as it has started."""

    started: ClassVar[list["Interrupted"]] = []

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.started.append(self)
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_as_a_process_starts_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Replicas(Recipe(lambda _: ["sleep", "60"], {}, 1, 1, 2**30), 8123, None, tmp_path)
    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt), meter.generators([["sleep", "60"]], tmp_path):
        pass
    with pytest.raises(KeyboardInterrupt):
        running.up(1)
    running.down()
    ended = [process.poll() is not None for process in Interrupted.started]
    for process in Interrupted.started:
        process.kill()
    assert ended == [True, True]
