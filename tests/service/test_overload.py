"""Shedding, deadlines and clients that left. Photos wait HELD_S for their batch to fill, so that there is a queue."""

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from tests.service.packages import jpeg, write_package
from tests.service.running import CLIENT, Server, serving, until

RAW = {"content-type": "image/jpeg"}
HELD_S = 1.0


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Room for two photos that wait."""
    models = tmp_path_factory.mktemp("held") / "models"
    write_package(models)
    settings = {"max_batch_size": 8, "max_queue_delay_us": int(HELD_S * 1e6), "max_queue_size": 2, "max_files": 2}
    with serving(models, **settings) as running:
        yield running


def post(server: Server, timeout_ms: int = 10_000) -> httpx.Response:
    headers = RAW | {"x-request-timeout-ms": str(timeout_ms)}
    return CLIENT.post(f"{server.url}/predict", content=jpeg("red"), headers=headers)


def raw_request(body: bytes, length: int, headers: str = "") -> bytes:
    head = "POST /predict HTTP/1.1\r\nHost: sous\r\nContent-Type: image/jpeg\r\n"
    return f"{head}Content-Length: {length}\r\n{headers}\r\n".encode() + body


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=20)


def images_run(server: Server) -> float:
    return server.metric("sous_batch_images_sum")


def hung_up(server: Server) -> float:
    return server.metric('sous_requests_total{model="colours",status="499"')


@contextmanager
def waiting(server: Server, photos: int) -> Iterator[list[Future[httpx.Response]]]:
    """So many photos wait; they are answered in the end."""
    with ThreadPoolExecutor(photos) as pool:
        posted = [pool.submit(post, server) for _ in range(photos)]
        until(lambda: server.metric("sous_queue_images") == photos)
        yield posted
        assert [future.result().status_code for future in posted] == [200] * photos


def test_beyond_the_queue_requests_are_shed_with_a_retry_after_and_all_others_answered(held: Server) -> None:
    with waiting(held, 2):
        shed = [post(held) for _ in range(3)]
    for response in shed:
        assert (response.status_code, response.json()["code"]) == (429, "queue_full")
        assert response.headers["retry-after"] == "1"
    assert post(held).status_code == 200


def test_a_full_queue_sheds_before_the_body_is_read(held: Server) -> None:
    with waiting(held, 2), connect(held) as late:
        late.sendall(raw_request(b"", 50_000))
        assert b" 429 " in late.recv(1000).split(b"\r\n")[0]


def test_a_deadline_that_passes_in_the_queue_is_504_and_costs_no_run(held: Server) -> None:
    before = images_run(held)
    late = post(held, timeout_ms=100)
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert "while the request waited" in late.json()["detail"]
    assert images_run(held) == before


def test_a_body_that_does_not_arrive_in_time_is_504(held: Server) -> None:
    with connect(held) as client:
        client.sendall(raw_request(b"\xff\xd8\xff", 1000, "X-Request-Timeout-Ms: 100\r\n"))
        assert b" 504 " in client.recv(1000).split(b"\r\n")[0]


def test_a_client_that_hangs_up_while_it_waits_costs_no_run_and_frees_its_place(held: Server) -> None:
    gone, before, photo = hung_up(held), images_run(held), jpeg("red")
    with waiting(held, 1) as posted:
        with connect(held) as client:
            client.sendall(raw_request(photo, len(photo)))
            until(lambda: held.metric("sous_queue_images") == 2)
        until(lambda: hung_up(held) == gone + 1)
        assert not posted[0].done()
        assert post(held).status_code == 200  # the queue has room for two
    assert images_run(held) == before + 2
    assert "Traceback" not in held.log.read_text()


def test_a_client_that_hangs_up_in_the_middle_of_its_body_is_counted_and_not_logged(held: Server) -> None:
    gone = hung_up(held)
    with connect(held) as client:
        client.sendall(raw_request(b"\xff\xd8\xff", 1000))
    until(lambda: hung_up(held) == gone + 1)
    assert "Traceback" not in held.log.read_text()


def test_requests_of_one_moment_share_a_batch_and_each_gets_its_own_answer(held: Server) -> None:
    batches, images = held.metric("sous_batch_images_count"), images_run(held)
    with ThreadPoolExecutor(2) as pool:
        posted = {
            colour: pool.submit(CLIENT.post, f"{held.url}/predict", content=jpeg(colour), headers=RAW)
            for colour in ("blue", "green")
        }
        for colour, future in posted.items():
            assert future.result().json()["predictions"][0]["label"] == colour
    assert images_run(held) == images + 2
    assert held.metric("sous_batch_images_count") == batches + 1
