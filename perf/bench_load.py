"""A closed loop on raw sockets: a given number of requests over a few connections, one thread each.

It shares the cores with what it measures and costs about 0.1 ms a request, so the benchmark compares CPU seconds of the
server's processes; the rates beside them are what is left for the server.
"""

import re
import socket
import threading
import time
from contextlib import closing, suppress
from typing import NamedTuple

TIMEOUT_S = 60.0


class Load(NamedTuple):
    """What was sent and how long it took; latencies in milliseconds, unordered."""

    requests: int
    wall_s: float
    latencies_ms: list[float]

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.requests / self.wall_s


def post(path: str, content_type: str, body: bytes) -> bytes:
    """A whole HTTP request."""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Connection:
    """One keep-alive connection to 127.0.0.1, opened again where the server closes it after an answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), TIMEOUT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(request)
        head, body = _head(self._socket)
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        while length is None or len(body) < int(length[1]):
            more = self._socket.recv(1 << 16)
            if not more:
                break
            body += more
        if head.startswith(b"HTTP/1.0") or re.search(rb"(?i)\r\nconnection: *close", head):
            self.close()
        return int(head.split(b" ", 2)[1]), body

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _head(answer: socket.socket) -> tuple[bytes, bytes]:
    """Status line and headers, and what of the body came with them."""
    received = b""
    while b"\r\n\r\n" not in received:
        more = answer.recv(1 << 16)
        if not more:
            raise ConnectionError("the server closed the connection before it answered")
        received += more
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body


def closed_loop(port: int, requests: list[bytes], count: int, connections: int) -> Load:
    """Send `count` requests, taken from `requests` in turn; each connection sends its next one when it was answered.

    Raises:
        RuntimeError: a request was answered with anything but 200, or not at all.
    """
    latencies_ms: list[float] = []
    failures: list[str] = []

    def work(first: int) -> None:
        with closing(Connection(port)) as connection:
            try:
                mine = range(first, count, connections)
                latencies_ms.extend(ask_ms(connection, requests[index % len(requests)]) for index in mine)
            except (OSError, RuntimeError) as error:
                failures.append(str(error))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(connections)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"the server on port {port} failed a request: {failures[0]}")
    return Load(count, time.perf_counter() - begun, latencies_ms)


def ask_ms(connection: Connection, request: bytes) -> float:
    """Milliseconds until a request was answered with 200; RuntimeError for any other status."""
    begun = time.perf_counter()
    status, _ = connection.ask(request)
    if status != 200:
        raise RuntimeError(f"status {status}")
    return (time.perf_counter() - begun) * 1e3


def is_ready(port: int) -> bool:
    """Whether GET /health/ready is answered with 200."""
    with closing(Connection(port)) as connection, suppress(OSError):
        return connection.ask(b"GET /health/ready HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")[0] == 200
    return False
