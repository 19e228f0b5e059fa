"""What a person sees while they wait."""

import re
import time

import pytest

from convert.progress import Progress


def test_a_bar_shows_how_far_a_stage_is_and_how_long_it_takes_yet(capfd: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    with progress.stage("load", 4) as tick:
        time.sleep(0.6)  # seldom enough to be read
        tick()
        for _ in range(3):
            tick()
    shown = capfd.readouterr().err
    assert re.search(r"load +25 % \|.+\| 00:0\d elapsed, 00:0\d left", shown)
    assert max(len(line) for line in re.split(r"[\r\n]", shown)) < 80  # columns of a terminal
    assert re.search(r"load +100 % \|█+\| 00:0\d elapsed, 00:00 left", shown)


def test_ticks_stand_for_their_parts_of_the_work(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress().stage("walk", [3.0, 1.0]) as tick:
        time.sleep(0.6)
        tick()
        tick()
    assert re.search(r"walk +75 % ", capfd.readouterr().err)


def test_each_stage_leaves_its_time_and_its_own_peak_of_memory() -> None:
    progress = Progress(quiet=True)
    with progress.stage("much", 1):
        held = bytearray(300_000_000)
        held[::4096] = b"x" * len(held[::4096])
        del held
    with progress.stage("little", 1):
        time.sleep(0.1)
    much, little = progress.stages
    assert little["seconds"] >= 0.1
    assert little["peak_memory_mb"] < much["peak_memory_mb"] - 200


def test_a_stage_that_fails_has_not_ended() -> None:
    progress = Progress(quiet=True)
    with pytest.raises(KeyError), progress.stage("broken", 1):
        raise KeyError
    assert progress.stages == []
