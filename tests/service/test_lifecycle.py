"""Start, drain, stop, and several workers, with the real gunicorn."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.mmap_dict import MmapedDict

from service import cpu
from tests.service.packages import jpeg, write_package
from tests.service.running import CHECKOUT, CLIENT, Server, environment, serving, until

RAW = {"content-type": "image/jpeg"}
CANNOT_SERVE = 4


def post(server: Server) -> httpx.Response:
    return CLIENT.post(f"{server.url}/predict", content=jpeg("red"), headers=RAW, timeout=20)


def start(models: Path, bind: str = "127.0.0.1:0", **more: str) -> subprocess.CompletedProcess[str]:
    """A service that is expected to give up."""
    command, env = [sys.executable, "-m", "service", "--bind", bind], environment(models, {}) | more
    return subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=20, check=False)


def test_it_lives_before_it_is_ready_and_refuses_until_then(models: Path) -> None:
    write_package(models, size=64, work=20)
    with serving(models, ready=False, cores=1) as server:
        assert until(lambda: CLIENT.get(f"{server.url}/health/live")).status_code == 200
        not_ready = CLIENT.get(f"{server.url}/health/ready")
        assert (not_ready.status_code, not_ready.json()["code"]) == (503, "not_ready")
        assert post(server).status_code == 503
        until(lambda: CLIENT.get(f"{server.url}/health/ready").status_code == 200)
        assert post(server).status_code == 200


def test_on_sigterm_readiness_fails_first_the_door_stays_open_for_the_delay_and_all_is_answered(models: Path) -> None:
    write_package(models, work=20, golden_images=1)
    with serving(models, cores=1, drain_delay_ms=800) as server, ThreadPoolExecutor(4) as pool:
        early = [pool.submit(post, server) for _ in range(2)]
        time.sleep(0.05)
        began = time.monotonic()
        server.process.terminate()
        draining = until(lambda: (response := CLIENT.get(f"{server.url}/health/ready")).status_code == 503 and response)
        assert draining.json()["code"] == "shutting_down"
        late = [pool.submit(post, server) for _ in range(2)]
        assert [future.result().status_code for future in early + late] == [200] * 4
        assert server.process.wait(20) == 0
        assert time.monotonic() - began > 0.8
    assert "Traceback" not in server.log.read_text()


def test_what_is_in_flight_when_the_door_closes_is_answered(models: Path) -> None:
    write_package(models, size=64, work=20, golden_images=1)
    with serving(models, cores=1) as server, ThreadPoolExecutor(6) as pool:
        running = [pool.submit(post, server) for _ in range(6)]
        until(lambda: any(future.done() for future in running))
        assert not all(future.done() for future in running)
        assert server.terminate() == 0
        assert [future.result().status_code for future in running] == [200] * 6


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGQUIT])
def test_a_quick_stop_is_quick(models: Path, stop: signal.Signals) -> None:
    write_package(models)
    with serving(models, drain_delay_ms=10_000) as server:
        began = time.monotonic()
        server.process.send_signal(stop)
        assert server.process.wait(20) == 0
        assert time.monotonic() - began < 3


def test_a_broken_package_ends_the_start_with_one_clear_line(models: Path) -> None:
    folder = write_package(models)
    (folder / "model.onnx").write_bytes(b"broken")
    ended = start(models)
    assert ended.returncode == CANNOT_SERVE
    assert "model.onnx differs from the hash in its report" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_start_on_a_port_in_use_leaves_nothing(server: Server, models: Path, tmp_path: Path) -> None:
    write_package(models)
    (tmp_path / "tmp").mkdir()
    ended = start(models, server.url.removeprefix("http://"), TMPDIR=str(tmp_path / "tmp"))
    assert ended.returncode != 0
    assert "Connection in use" in ended.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_package_that_fails_its_golden_set_is_never_ready(models: Path) -> None:
    write_package(models, golden_shift=0.01)
    ended = start(models)
    assert ended.returncode == CANNOT_SERVE
    assert "does not reproduce its golden set" in ended.stderr


def test_the_master_holds_nothing_native_and_one_thread(server: Server) -> None:
    mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" not in mapped
    assert "numpy" not in mapped
    assert len(list(Path(f"/proc/{server.process.pid}/task").iterdir())) == 1
    assert "onnxruntime" in Path(f"/proc/{server.worker}/maps").read_text()  # and so the look was a real one


def test_metrics_are_right_with_two_workers_and_after_one_of_them_died(models: Path, tmp_path: Path) -> None:
    write_package(models)
    counts = tmp_path / "counts"
    with serving(models, "--workers", "2", "--env", f"PROMETHEUS_MULTIPROC_DIR={counts}") as server:
        until(lambda: server.log.read_text().count("ready: colours") == 2)
        for _ in range(40):  # a connection each, so that both workers get some
            answer = httpx.post(f"{server.url}/predict", content=jpeg("red"), headers=RAW)
            assert answer.status_code == 200
        shares = [answered(file) for file in counts.glob("counter_*.db")]
        assert min(shares) > 0
        assert sum(shares) == 40
        seen = [httpx.get(f"{server.url}/metrics").text for _ in range(6)]
        total = 'sous_requests_total{model="colours",status="200",version="1"} 40.0'
        assert all(total in text for text in seen)
        subprocess.run(["kill", "-9", str(server.worker)], check=True)
        until(lambda: server.log.read_text().count("ready: colours") == 3)
        assert server.metric('sous_requests_total{model="colours"') == 40
        assert server.metric("sous_queue_images") == 0


def answered(file: Path) -> float:
    """Requests that one worker has counted."""
    values = MmapedDict.read_all_values_from_file(file)  # type: ignore[no-untyped-call]
    return sum(value for key, value, *_ in values if "sous_requests_total" in key)


def test_what_waited_in_a_worker_that_died_is_counted_no_more(models: Path) -> None:
    write_package(models)
    with (
        serving(models, max_batch_size=2, max_queue_delay_us=10_000_000) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        lost = pool.submit(post, server)
        until(lambda: server.metric("sous_queue_images") == 1)
        subprocess.run(["kill", "-9", str(server.worker)], check=True)
        assert isinstance(lost.exception(), httpx.TransportError)
        until(lambda: CLIENT.get(f"{server.url}/health/ready").status_code == 200)
        assert server.metric("sous_queue_images") == 0


def test_counts_of_an_earlier_run_are_cleared_at_boot(models: Path, tmp_path: Path) -> None:
    write_package(models)
    counts = tmp_path / "counts"
    with serving(models, "--env", f"PROMETHEUS_MULTIPROC_DIR={counts}") as server:
        post(server)
        assert server.metric('sous_requests_total{model="colours"') == 1
        assert server.terminate() == 0
    assert list(counts.glob("*.db"))
    with serving(models, "--env", f"PROMETHEUS_MULTIPROC_DIR={counts}") as server:
        assert server.metric('sous_requests_total{model="colours"') == 0


def test_the_workers_share_the_cores(models: Path) -> None:
    write_package(models)
    workers = cpu.cores() + 1
    with serving(models, "--workers", str(workers)) as server:
        until(lambda: server.log.read_text().count("ready: colours") == workers)
        plan = CLIENT.get(f"{server.url}/models/colours").json()["versions"][0]["plan"]
    assert plan["slots"] == 1


def test_nothing_is_left_behind(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    write_package(models)
    with serving(models) as server:
        assert list(tmp_path.glob("sous-metrics-*/*.db"))
        assert server.terminate() == 0
    assert not list(tmp_path.glob("sous-metrics-*"))
