"""Every tool for real against a server of known speed: the same record comes out."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perf import photos
from perf.adapters import Load, find, siege_samples, wrk_samples
from perf.intervals import rate
from perf.meter import drive
from perf.samples import Sample, Second

TOOLS = [
    "locust",
    *(
        pytest.param(t, marks=pytest.mark.skipif(not shutil.which(t), reason=f"{t} is not installed"))
        for t in ("wrk", "siege")
    ),
]


def driven(tool: str, load: Load, server: Any) -> tuple[list[Sample], list[Second]]:
    kept: list[Any] = []
    drive(find(tool), load, server, lambda sent, read: kept.extend((sent, read)), lambda _: None)
    return kept[0], kept[1]


def to(server: Any, photos_dir: Path, **given: Any) -> Load:
    return Load(f"{server.url}/predict?model=m", photos_dir, **{"users": 4, "seconds": 1.5, **given})


def test_a_slow_answer_moves_no_other(tmp_path: Path) -> None:
    """siege says when nothing was sent: 300 answers of 30 s, one of which took 5."""
    lines = ["HTTP/1.1 200     0.10 secs:     100 bytes ==> POST /predict"] * 300
    lines[150] = lines[150].replace("0.10", "5.00")
    (tmp_path / "1.out").write_text("\n".join([*lines, "Elapsed time:\t\t30.00 secs"]))
    sent = siege_samples(Load("", tmp_path, 10, 30), tmp_path)
    ends = sorted(s.at_s + s.latency_ms / 1000 for s in sent)
    assert ends[-1] == pytest.approx(30, abs=0.01)
    assert rate(np.array(ends), 30.0).value == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_closed_loop_finds_the_servers_rate(tool: str, server: Any, photos_dir: Path, children_end: None) -> None:
    server.delay_s = 0.05  # 2 slots: 40 a second, 100 ms for 4 users
    sent, read = driven(tool, to(server, photos_dir, seconds=2), server)
    assert {s.status for s in sent} == {200}
    assert {s.bytes for s in sent} <= set(range(10, 200))
    elapsed = max(s.at_s + s.latency_ms / 1000 for s in sent) - min(s.at_s for s in sent)
    assert 20 < len(sent) / elapsed < 46
    assert 60 < np.median([s.latency_ms for s in sent]) < 180
    under_way = sum(s.latency_ms for s in sent) / 1000 / elapsed
    assert under_way <= 4.02 or tool != "locust"  # as many as users: no latency holds more than its request
    assert len(read) >= 2
    assert tool != "locust" or read[-1].generator_cpu_s > 0  # the others use less than a clock tick


@pytest.mark.parametrize("tool", TOOLS)
def test_what_arrives_is_the_photos_whole_and_in_turn(tool: str, server: Any, photos_dir: Path) -> None:
    driven(tool, to(server, photos_dir, seconds=1), server)
    assert {kind for kind, _ in server.bodies} == {photos.CONTENT_TYPE}
    assert {body for _, body in server.bodies} <= {photo.body for photo in photos.load(photos_dir)}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_failed_request_is_recorded_with_its_status(tool: str, server: Any, photos_dir: Path) -> None:
    server.fail_every = 4
    sent, _ = driven(tool, to(server, photos_dir, seconds=1), server)
    failed = [s for s in sent if s.status == 503]
    assert 0.15 < len(failed) / len(sent) < 0.35
    assert len(failed) + sum(s.status == 200 for s in sent) >= 0.97 * len(sent)


def test_an_answer_that_is_cut_in_its_body_is_none(server: Any, photos_dir: Path) -> None:
    server.cut_every = 4
    sent, _ = driven("locust", to(server, photos_dir, seconds=1), server)
    assert {s.status for s in sent} == {0, 200}
    assert 0.15 < sum(s.status == 0 for s in sent) / len(sent) < 0.35


def test_without_a_server_every_request_is_unanswered(server: Any, photos_dir: Path) -> None:
    load = Load("http://127.0.0.1:9/predict?model=m", photos_dir, users=1, seconds=0.3)
    sent, _ = driven("locust", load, server)
    assert sent
    assert {s.status for s in sent} == {0}


def test_a_timed_load_counts_latency_from_the_intended_send(server: Any, photos_dir: Path) -> None:
    server.delay_s, server.slots = 0.1, 2  # answers 20 a second
    sent, _ = driven("locust", to(server, photos_dir, schedule=((40.0, 1.5),)), server)
    assert [s.at_s - sent[0].at_s for s in sent] == pytest.approx([k / 40 for k in range(60)], abs=1e-3)
    assert sent[-1].latency_ms == pytest.approx(1500, abs=500)  # 60 requests take 3 s, the last was due after 1.5


def test_a_timed_load_opens_no_more_connections_than_it_needs_at_once(server: Any, photos_dir: Path) -> None:
    sent, _ = driven("locust", to(server, photos_dir, schedule=((30.0, 1.5),)), server)
    assert len(sent) == 45
    assert server.connections < 10


def test_processes_share_a_timed_load(server: Any, photos_dir: Path) -> None:
    sent, _ = driven("locust", to(server, photos_dir, schedule=((30.0, 1.0),), processes=2), server)
    assert len(sent) == 30
    assert sorted(s.photo for s in sent) == [0] * 15 + [1] * 15


def test_a_histogram_is_spread_in_no_order_over_time_and_statuses(photos_dir: Path, tmp_path: Path) -> None:
    lines = [f"sous latency_us {ms * 1000} 50" for ms in range(10, 50)] + [
        "sous status 200 1600",
        "sous status 503 400",
    ]
    (tmp_path / "1.out").write_text("\n".join([*lines, "sous total 20000000 100000", ""]))
    sent = wrk_samples(Load("http://127.0.0.1:9", photos_dir, 4, 20), tmp_path)
    late = [s.latency_ms for s in sent if s.at_s > 10]
    assert np.mean(late) == pytest.approx(np.mean([s.latency_ms for s in sent]), rel=0.05)
    refused = [s.latency_ms for s in sent if s.status == 503]
    assert len(refused) == 400
    assert np.mean(refused) == pytest.approx(np.mean([s.latency_ms for s in sent]), rel=0.05)


def test_a_tool_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(FileNotFoundError, match=r"wrk is not installed: .* or use --tool locust"):
        find("wrk")
