"""Shedding, deadlines and clients that left. Photos wait HELD_S for their batch to fill, so that there is a queue."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse

import httpx
import pytest

from tests.service.packages import jpeg, write_package
from tests.service.running import CLIENT, Server, serving, until

RAW = {"content-type": "image/jpeg"}
HELD_S = 1.0
BODY = 100_000  # bytes, the largest body of `narrow`, which holds two


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Room for two photos that wait."""
    models = tmp_path_factory.mktemp("held") / "models"
    write_package(models)
    settings = {"max_batch_size": 8, "max_queue_delay_us": int(HELD_S * 1e6), "max_queue_size": 2, "max_files": 2}
    with serving(models, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Room for the bytes of two of the largest bodies."""
    models = tmp_path_factory.mktemp("narrow") / "models"
    write_package(models)
    with serving(models, max_image_bytes=BODY, max_request_bytes=BODY, max_held_bytes=2 * BODY) as running:
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
    before, begun = images_run(held), time.monotonic()
    late = post(held, timeout_ms=100)
    assert time.monotonic() - begun < HELD_S / 2  # it does not wait for a slot to find it
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert held.metric("sous_queue_images") == 0
    assert post(held).status_code == 200
    assert images_run(held) == before + 1


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
        assert held.metric("sous_queue_images") == 1
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


def send(server: Server, body: bytes, length: int, headers: str = "") -> socket.socket:
    """A connection whose request announces `length` bytes and has sent `body` of them."""
    client = connect(server)
    client.sendall(raw_request(body, length, headers))
    return client


def status(client: socket.socket) -> int:
    return receive(client)[0]


def receive(client: socket.socket) -> tuple[int, str | None, bytes]:
    """Status, Retry-After and body of the answer."""
    with HTTPResponse(client) as response:
        response.begin()
        return response.status, response.getheader("retry-after"), response.read()


def takes(server: Server, length: int) -> bool:
    """Whether a body of so many bytes is let in: it is answered without its last byte only if it is not."""
    with send(server, bytes(length - 1), length) as client:
        client.settimeout(0.2)
        try:
            assert status(client) == 429
        except TimeoutError:
            return True
    return False


def assert_all_room_is_free(server: Server) -> None:
    """To the byte: two of the largest bodies are answered beside each other."""
    photo = jpeg("red").ljust(BODY, b"\0")
    until(lambda: _both_answered(server, photo))


def _both_answered(server: Server, photo: bytes) -> bool:
    with send(server, photo[:-1], BODY) as one, send(server, photo[:-1], BODY) as other:
        if takes(server, 1):  # one of them was not let in
            return False
        for client in (one, other):
            client.sendall(photo[-1:])
        return [status(one), status(other)] == [200, 200]


def test_bodies_beyond_the_room_are_shed_before_they_arrive_and_the_others_answered(narrow: Server) -> None:
    photo = jpeg("red").ljust(BODY, b"\0")
    with ExitStack() as opened:
        slow = [opened.enter_context(send(narrow, photo[:half], BODY)) for half in (BODY // 2, 0)]
        until(lambda: not takes(narrow, 1))
        begun = time.monotonic()
        late = [opened.enter_context(send(narrow, b"", length)) for length in [1, BODY] * 10]
        answers = [receive(client) for client in late]
        assert time.monotonic() - begun < 2
        for shed, retry_after, body in answers:
            assert (shed, retry_after, json.loads(body)["code"]) == (429, "1", "queue_full")
        slow[0].sendall(photo[BODY // 2 :])
        slow[1].sendall(photo)
        assert [status(client) for client in slow] == [200, 200]
    assert_all_room_is_free(narrow)


def test_a_body_of_unknown_length_takes_room_as_it_arrives(narrow: Server) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: sous\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
    with send(narrow, b"", BODY), connect(narrow) as client:
        client.sendall(head + b"ea60\r\n" + bytes(60_000) + b"\r\n")
        until(lambda: not takes(narrow, 40_001))
        assert takes(narrow, 40_000)
        with send(narrow, b"", 40_000):
            until(lambda: not takes(narrow, 1))
            client.sendall(b"1\r\n\0\r\n")
            assert status(client) == 429
    assert_all_room_is_free(narrow)


def test_a_client_that_hangs_up_and_a_deadline_free_the_room_of_their_bodies(narrow: Server) -> None:
    with send(narrow, bytes(1000), BODY), send(narrow, bytes(1000), BODY):
        until(lambda: not takes(narrow, 1))
    assert_all_room_is_free(narrow)
    with send(narrow, b"", BODY, "X-Request-Timeout-Ms: 300\r\n") as one, send(narrow, b"", BODY) as other:
        assert status(one) == 504
        other.close()
    assert_all_room_is_free(narrow)


def test_a_body_that_is_too_large_for_a_request_takes_no_room(narrow: Server) -> None:
    with send(narrow, b"", BODY), send(narrow, b"", BODY + 1) as client:
        assert status(client) == 413
        assert takes(narrow, BODY)
    assert_all_room_is_free(narrow)
