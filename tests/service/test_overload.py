"""Shedding, deadlines and clients that left, against a model that takes its time."""

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from tests.service.packages import jpeg, write_package
from tests.service.running import CLIENT, Server, serving, until

RAW = {"content-type": "image/jpeg"}
WORK = 45  # 300 ms an image of 64 x 64 on one thread of an idle machine; more on a busy one does no harm


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One slot, room for two that wait; and a fast model beside the slow one."""
    models = tmp_path_factory.mktemp("slow") / "models"
    write_package(models, "slow", size=64, work=WORK, golden_images=1)
    write_package(models, "swift")
    with serving(models, cores=1, max_queue_size=2, max_files=2) as running:
        yield running


def post(server: Server, model: str = "slow", timeout_ms: int = 10_000) -> httpx.Response:
    headers = RAW | {"x-request-timeout-ms": str(timeout_ms)}
    return CLIENT.post(f"{server.url}/predict?model={model}", content=jpeg("red"), headers=headers)


def runs(server: Server) -> float:
    return server.metric('sous_batch_images_count{model="slow"')


def hung_up(server: Server) -> float:
    return server.metric('sous_requests_total{model="slow",status="499"')


@contextmanager
def busy(server: Server, waiting: int = 0) -> Iterator[list[Future[httpx.Response]]]:
    """One photo is in the slot, `waiting` more wait behind it; all of them are answered in the end."""
    before = runs(server)
    with ThreadPoolExecutor(waiting + 1) as pool:
        posted = [pool.submit(post, server) for _ in range(waiting + 1)]
        until(lambda: runs(server) == before + 1)
        until(lambda: waiting == 0 or server.metric('sous_queue_images{model="slow"') == waiting)
        yield posted
        assert [future.result().status_code for future in posted] == [200] * (waiting + 1)


def raw_request(body: bytes, length: int, headers: str = "") -> bytes:
    head = "POST /predict?model=slow HTTP/1.1\r\nHost: sous\r\nContent-Type: image/jpeg\r\n"
    return f"{head}Content-Length: {length}\r\n{headers}\r\n".encode() + body


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=20)


def test_beyond_the_queue_requests_are_shed_with_a_retry_after_and_all_others_answered(slow: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: post(slow), range(8)))
    shed = [response for response in responses if response.status_code == 429]
    assert len(shed) >= 4  # one runs, two wait, one more at most slips in between
    assert {response.status_code for response in responses} == {200, 429}
    for response in shed:
        assert response.json()["code"] == "queue_full"
        assert 1 <= int(response.headers["retry-after"]) <= 5


def test_a_full_queue_sheds_before_the_body_is_read(slow: Server) -> None:
    with busy(slow, waiting=2), connect(slow) as late:
        late.sendall(raw_request(b"", 50_000))
        assert b" 429 " in late.recv(1000).split(b"\r\n")[0]


def test_a_deadline_that_passes_in_the_queue_is_504_and_costs_no_run(slow: Server) -> None:
    with busy(slow):
        before = runs(slow)
        late = post(slow, timeout_ms=20)
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert "while the request waited" in late.json()["detail"]
    assert runs(slow) == before


def test_a_deadline_that_passes_in_the_run_is_504(slow: Server) -> None:
    late = post(slow, timeout_ms=30)
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert "before the answer" in late.json()["detail"]


def test_a_body_that_does_not_arrive_in_time_is_504(slow: Server) -> None:
    with connect(slow) as client:
        client.sendall(raw_request(b"\xff\xd8\xff", 1000, "X-Request-Timeout-Ms: 100\r\n"))
        assert b" 504 " in client.recv(1000).split(b"\r\n")[0]


def test_a_client_that_hangs_up_while_it_waits_costs_no_run(slow: Server) -> None:
    gone, photo = hung_up(slow), jpeg("red")
    with busy(slow):
        before = runs(slow)
        with connect(slow) as client:
            client.sendall(raw_request(photo, len(photo)))
            until(lambda: slow.metric('sous_queue_images{model="slow"') == 1)
    until(lambda: hung_up(slow) == gone + 1)
    assert runs(slow) == before
    assert "Traceback" not in slow.log.read_text()


def test_a_client_that_hangs_up_in_the_middle_of_its_body_is_counted_and_not_logged(slow: Server) -> None:
    gone = hung_up(slow)
    with connect(slow) as client:
        client.sendall(raw_request(b"\xff\xd8\xff", 1000))
    until(lambda: hung_up(slow) == gone + 1)
    assert "Traceback" not in slow.log.read_text()


def test_a_slow_model_s_queue_does_not_stop_a_fast_one_s(slow: Server) -> None:
    with busy(slow, waiting=2) as posted:
        assert post(slow, "swift").status_code == 200
        assert not all(future.done() for future in posted)  # it did not wait for the whole backlog
