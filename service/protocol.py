"""HTTP/1.1 as gunicorn's workers speak it: uvicorn's httptools protocol, and what it leaves open.

The head of a request is bounded: in bytes, and in time by `keepalive`, from the connection or the last answer on. An
offer of another protocol (`Upgrade: h2c`, as Java's HttpClient makes with every request) is passed over, as RFC 9110
section 7.8 allows: the parser would drop the body behind it (uvicorn issue 2722). What is no HTTP is answered with
problem details, too. Of a head that arrives in one read with the end of another request, that read is not counted, and
an offer in it is left to the parser.
"""

import asyncio
import re

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]

from service.errors import problem

MAX_HEAD_BYTES = 64 * 1024
_END = re.compile(rb"\r?\n\r?\n")
_UPGRADE = re.compile(rb"\r?\nupgrade[ \t]*:[^\r\n]*", re.IGNORECASE)


class Protocol(HttpToolsProtocol):
    """One connection."""

    _head = b""  # what has arrived of the next request's
    _between = True  # requests: the parser has seen nothing of the next one
    _open = False  # the parser is inside a head: one that began in the same read as the end of another request
    _behind = 0  # bytes of it in the reads since

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its base has it
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        if self._between and not self._head:
            data = data.lstrip(b"\r\n")  # which may stand before a request (RFC 9112, section 2.2)
            if not data:
                return
        if self._between and (self._head or data[:1].isalpha()):  # the parser says what is wrong with all else
            seen = max(0, len(self._head) - 3)
            self._head += data
            end = _END.search(self._head, seen)
            if end is None and len(self._head) <= MAX_HEAD_BYTES:
                return  # the timer of an idle connection runs on
            if end is None or end.start() > MAX_HEAD_BYTES:
                self._refuse(431, "headers_too_large", f"The headers are larger than {MAX_HEAD_BYTES} bytes.")
                return
            data, self._head = _UPGRADE.sub(b"", self._head[: end.start()]) + self._head[end.start() :], b""
        self._behind += len(data) if self._open else 0
        super().data_received(data)
        if self._open and self._behind > MAX_HEAD_BYTES:
            if self.cycle is None or self.cycle.response_complete:  # else it would pass for the answer still due
                self._refuse(431, "headers_too_large", f"The headers are larger than {MAX_HEAD_BYTES} bytes.")
            self.transport.close()

    def _unset_keepalive_if_required(self) -> None:  # bytes do not end it: a whole head does
        if self.transport.is_closing():
            super()._unset_keepalive_if_required()

    def on_message_begin(self) -> None:
        self._between, self._open, self._behind = False, True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._open = False
        super()._unset_keepalive_if_required()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._between = True

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "bad_request", msg)

    def _refuse(self, status: int, code: str, detail: str) -> None:
        body = msgspec.json.encode(problem(status, code, detail))
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: application/problem+json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )
        self.transport.close()
        self._head, self._between, self._open = b"", False, False


class Worker(UvicornWorker):  # type: ignore[misc]  # its base has no types
    """gunicorn's worker with it."""

    CONFIG_KWARGS = {"loop": "uvloop", "http": Protocol}  # noqa: RUF012  as its base has it
