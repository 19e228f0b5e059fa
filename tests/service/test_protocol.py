"""What reaches the service below HTTP's usual requests, over real connections."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.service.packages import jpeg, write_package
from tests.service.running import serving, until

OFFER = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """Photos wait half a second for their batch to fill."""
    models = tmp_path_factory.mktemp("slow") / "models"
    write_package(models, "colours", 1)
    with serving(models, max_batch_size=8, max_queue_delay_us=500_000) as running:
        yield running


def connected(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def answer(connection):
    """Status, content type and JSON of the next answer."""
    file = connection.makefile("rb")
    status = int(file.readline().split()[1])
    headers = {}
    while line := file.readline().strip():
        name, _, value = line.decode().partition(": ")
        headers[name.lower()] = value
    return status, headers["content-type"], json.loads(file.read(int(headers["content-length"])))


def post(body, more=""):
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\n{more}Content-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("cuts", [(), (40,), (150,), (230, 400)], ids=str)
def test_a_client_that_offers_http_2_is_answered_over_http_1(server, cuts):
    request = post(jpeg("red"), OFFER)
    with connected(server) as connection:
        for _ in range(2):  # the connection is kept
            for start, end in zip((0, *cuts), (*cuts, len(request)), strict=True):
                connection.sendall(request[start:end])
            status, _, found = answer(connection)
            assert (status, found["predictions"][0]["label"]) == (200, "red")


def test_requests_one_behind_the_other_are_answered_in_order(server):
    colours = ["red", "green", "blue"]
    with connected(server) as connection:
        connection.sendall(b"".join(post(jpeg(colour)) for colour in colours))
        file = b""
        while file.count(b"predictions") < len(colours):
            file += connection.recv(65536)
    places = [file.index(f'"label":"{colour}"'.encode()) for colour in colours]
    assert places == sorted(places)


@pytest.mark.parametrize("before", [b"", b"\r\n", b"\r\n\r\n"])
def test_headers_without_end_are_refused_before_they_fill_the_memory(server, before):
    with connected(server) as connection:
        connection.sendall(before + b"GET / HTTP/1.1\r\nx: " + b"y" * 65_536)
        status, kind, found = answer(connection)
        assert (status, kind, found["code"]) == (431, "application/problem+json", "headers_too_large")
        assert connection.recv(1) == b""


def test_headers_without_end_are_refused_behind_another_request_too(server):
    with connected(server) as connection:
        connection.sendall(post(jpeg("red")) + b"GET / HTTP/1.1\r\nx: ")
        assert answer(connection)[0] == 200
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(1000):
                connection.sendall(b"y" * 8192)
        with suppress(ConnectionResetError):
            assert b" 431 " in connection.recv(4096)
        assert sent_after_close(connection)


def sent_after_close(connection):
    """Whether the other side is gone."""
    try:
        for _ in range(100):
            connection.sendall(b"y" * 8192)
            time.sleep(0.01)
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


SENT_AT_MOST = 20 << 20  # what sockets hold, and what the service reads before it closes


@pytest.mark.parametrize("more", [b"a:" + b"b" * 10 + b"\r\n", b"b"], ids=["many", "long"])
@pytest.mark.parametrize("path", ["GET /health/live", "POST /predict"])
def test_trailers_without_end_close_the_connection_before_they_fill_the_memory(server, path, more):
    head = f"{path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na: "
    with connected(server) as connection:
        connection.sendall(head.encode())
        block, sent = more * (65_536 // len(more)), 0
        with suppress(BrokenPipeError, ConnectionResetError):
            while sent < SENT_AT_MOST:
                sent += connection.send(block)
        assert sent < SENT_AT_MOST
    with connected(server) as other:
        other.sendall(post(jpeg("red")))
        assert answer(other)[0] == 200


def test_trailers_are_passed_over_and_are_no_headers(server):
    photo = jpeg("red")
    for _ in range(2):
        with connected(server) as connection:
            for kind, trailer, status in (
                ("Content-Type: image/jpeg\r\n", "X-Request-Timeout-Ms: nothing", 200),
                ("", "Content-Type: image/jpeg", 415),
            ):
                head = (
                    f"POST /predict HTTP/1.1\r\nHost: x\r\n{kind}Transfer-Encoding: chunked\r\n\r\n{len(photo):x}\r\n"
                )
                connection.sendall(head.encode() + photo + f"\r\n0\r\n{trailer}\r\n\r\n".encode())
                assert answer(connection)[0] == status


CHUNKED = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "behind",
    [
        b"G" * 70_000,
        b"\0nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n",
        CHUNKED + b"no number\r\n",
        CHUNKED + b"0\r\na: " + b"b" * 300_000,
    ],
    ids=["long head", "nonsense", "header", "address", "body", "trailers"],
)
def test_what_is_refused_behind_a_request_does_not_pass_for_its_answer(slow, behind):
    photo = jpeg("red")
    with connected(slow) as connection:
        connection.sendall(post(photo))
        time.sleep(0.1)
        connection.sendall(behind)
        status, _, found = answer(connection)
        assert (status, found["predictions"][0]["label"]) == (200, "red")
        assert connection.recv(1) == b""


def test_a_client_that_is_gone_is_noticed_though_it_has_sent_another_request(slow):
    before, gone = counted(slow, 200), counted(slow, 499)
    with connected(slow) as connection:
        connection.sendall(post(jpeg("red")))
        time.sleep(0.1)
        connection.sendall(post(jpeg("red")))
        time.sleep(0.1)
    until(lambda: counted(slow, 499) == gone + 1)
    assert counted(slow, 200) == before


def counted(server, status):
    return server.metric(f'sous_requests_total{{model="colours",status="{status}"')


def test_bodies_that_wait_behind_a_request_are_not_all_read(slow):
    bodies, sent = memoryview(post(jpeg("red") + bytes(60_000)) * 100), 0
    with connected(slow) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        connection.settimeout(0.3)  # before the first is answered
        with suppress(TimeoutError):
            while sent < len(bodies):
                sent += connection.send(bodies[sent : sent + 65_536])
    assert sent < 5_000_000  # some in the service, some in the kernel; of 6 million


def test_requests_without_end_are_answered_up_to_a_number_and_take_no_memory(server):
    with connected(server) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 150)
        found = b""
        while more := connection.recv(65_536):
            found += more
        assert found.count(b" 200 ") == 101


def test_a_client_that_does_not_read_its_answers_is_let_go(models):
    write_package(models, "colours", 1)
    with serving(models, "--keep-alive", "1") as running, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", int(running.url.rsplit(":", 1)[1])))
        for _ in range(8):  # 13 MB of answers, more than the kernel keeps
            deaf.sendall(b"GET /schema HTTP/1.1\r\nHost: x\r\n\r\n" * 80)
            time.sleep(0.1)
        until(lambda: not established(deaf), 5)


def established(connection):
    """Whether the other side still holds it (proc_pid_net(5), state 01)."""
    near, far = (f"0100007F:{port:04X}" for _, port in (connection.getsockname(), connection.getpeername()))
    return any(line.split()[1:4] == [far, near, "01"] for line in Path("/proc/net/tcp").read_text().splitlines())


def test_a_head_that_begins_behind_another_request_and_ends_later_is_answered(server):
    more = post(jpeg("green"))
    with connected(server) as connection:
        connection.sendall(post(jpeg("red")) + more[:30])
        assert answer(connection)[2]["predictions"][0]["label"] == "red"
        connection.sendall(more[30:])
        assert answer(connection)[2]["predictions"][0]["label"] == "green"


def test_empty_lines_before_a_request_are_passed_over(server):
    with connected(server) as connection:
        for _ in range(2):
            connection.sendall(b"\r\n")
            connection.sendall(b"\r\n" + post(jpeg("red"), OFFER))
            assert answer(connection)[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"NOT A REQUEST\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        bytes.fromhex("16030100c8010000c403") + b"\0" * 190,  # https to this port
    ],
)
def test_what_is_no_http_is_answered_at_once_with_problem_details(server, sent):
    with connected(server) as connection:
        connection.sendall(sent)
        status, kind, found = answer(connection)
        assert (status, kind, found["code"]) == (400, "application/problem+json", "bad_request")
        assert connection.recv(1) == b""


def closed_after(connection, sent):
    """Seconds until the service closes, while a byte follows the other."""
    begin = time.monotonic()
    connection.settimeout(0.2)
    for byte in sent:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(bytes([byte]))
        try:
            if connection.recv(1) == b"":
                break
        except TimeoutError:
            continue
        except ConnectionResetError:
            break
    return time.monotonic() - begin


def test_a_connection_without_a_whole_head_is_closed_as_an_idle_one_and_slow_bodies_are_not(models):
    write_package(models, "colours", 1)
    with serving(models, "--keep-alive", "1") as running, ThreadPoolExecutor() as pool:

        def silent():
            with connected(running) as connection:
                assert connection.recv(1) == b""

        def slow(before):
            with connected(running) as connection:
                assert closed_after(connection, before + b"GET / HTTP/1.1\r\nx: " + b"y" * 40) < 3

        def behind():
            with connected(running) as connection:
                connection.sendall(post(jpeg("red")) + b"GET / HTTP/1.1\r\nx: ")
                assert answer(connection)[0] == 200
                assert closed_after(connection, b"y" * 40) < 3

        def early():  # answered before its body is there
            with connected(running) as connection:
                request = post(jpeg("red")).replace(b"/predict", b"/nowhere")
                connection.sendall(request[:-20])
                assert answer(connection)[0] == 404
                connection.sendall(request[-20:])
                connection.settimeout(5)
                assert connection.recv(1) == b""

        def kept():
            with connected(running) as connection:
                for _ in range(2):
                    request = post(jpeg("red"))
                    connection.sendall(request[:-1])
                    time.sleep(1.5)
                    connection.sendall(request[-1:])
                    assert answer(connection)[0] == 200
                assert closed_after(connection, b"GET / HTTP/1.1\r\nx: " + b"y" * 40) < 3

        waits = [silent, partial(slow, b""), partial(slow, b"\r\n"), behind, early, kept]
        for done in [pool.submit(wait) for wait in waits]:
            done.result()
