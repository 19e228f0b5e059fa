from itertools import pairwise
from pathlib import Path
from typing import Any

from perf.photos import load
from perf.probe import EACH, probe, warm


def test_an_idle_server_is_timed_photo_by_photo(server: Any, photos_dir: Path) -> None:
    server.delay_s = 0.02
    sent = probe(f"{server.url}/predict?model=m", load(photos_dir), 0.5)
    assert {s.status for s in sent} == {200}
    assert [s.photo for s in sent[:4]] == [0, 1, 0, 1]
    assert all(s.latency_ms >= 20 for s in sent)
    assert all(b.at_s >= a.at_s + 3 * a.latency_ms / 1000 for a, b in pairwise(sent))  # it rests twice as long


def test_every_photo_is_sent_once_however_short_the_time(server: Any, photos_dir: Path) -> None:
    assert [s.photo for s in probe(f"{server.url}/predict?model=m", load(photos_dir), 0)] == [0, 1]


def test_of_many_photos_the_first_are_sent_when_time_is_short(server: Any, photos_dir: Path) -> None:
    many = load(photos_dir) * 20
    assert len(probe(f"{server.url}/predict?model=m", many, 0, rest=0)) == EACH


def test_without_a_server_the_probe_ends_and_says_so(photos_dir: Path) -> None:
    sent = probe("http://127.0.0.1:9/predict?model=m", load(photos_dir), 0.1)
    assert len(sent) >= 2
    assert {s.status for s in sent} == {0}


def test_a_warm_up_loads_with_all_users(server: Any, photos_dir: Path) -> None:
    server.delay_s = 0.05
    warm(f"{server.url}/predict?model=m", load(photos_dir), 4, 0.2)
    assert server.answered >= 8


def test_a_warm_up_of_a_slow_stack_sends_no_more_than_one_photo_a_user(server: Any, photos_dir: Path) -> None:
    server.delay_s, server.slots = 0.1, 3
    warm(f"{server.url}/predict?model=m", load(photos_dir), 3, 0)
    assert server.answered == 3
