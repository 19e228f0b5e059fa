"""HTTP/1.1 as gunicorn's workers speak it: uvicorn's httptools protocol, and what it leaves open.

The head of a request is bounded: in bytes, and in time by `keepalive`, from the connection or the last answer on. The
fields behind a body (trailers) are bounded and passed over. Answers that are not read are given up after `keepalive`.
An offer of another protocol (`Upgrade: h2c`, as Java's HttpClient makes with every request) is passed over, as RFC
9110 section 7.8 allows: the parser would drop the body behind it (uvicorn issue 2722). What is no HTTP is answered
with problem details. Of a head that arrives in one read with the end of another request, that read is not counted,
and an offer in it is left to the parser.
"""

import asyncio
import re
from typing import Any

import msgspec
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]

from service.errors import problem

MAX_HEAD_BYTES = 64 * 1024
MAX_PIPELINED = 100  # requests that wait for the answer before theirs, in memory; what follows is not answered
_END = re.compile(rb"\r?\n\r?\n")
_UPGRADE = re.compile(rb"\r?\nupgrade[ \t]*:[^\r\n]*", re.IGNORECASE)


class Protocol(HttpToolsProtocol):
    """One connection."""

    _head = b""  # what has arrived of the next request's
    _between = True  # requests: the parser has seen nothing of the next one
    _open = False  # the parser is inside a head: one that began in the same read as the end of another request
    _silent = 0  # bytes since the parser last told of anything: of such a head, of trailers, of a chunk's extension
    _over = False  # what still arrives is thrown away
    _running: RequestResponseCycle | None = None  # the request that is being answered
    _unread: asyncio.TimerHandle | None = None  # ends the connection of a client that does not read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its base has it
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)  # which tells the newest request only
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._unread = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
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
                self._refuse_head()
                return
            data, self._head = _UPGRADE.sub(b"", self._head[: end.start()]) + self._head[end.start() :], b""
        self._silent += len(data)
        super().data_received(data)
        if self._silent > MAX_HEAD_BYTES and not self.transport.is_closing():
            if self._open:
                self._refuse_head()
            else:
                self._refuse(400, "bad_request", "What follows a body is too large.")

    def _unset_keepalive_if_required(self) -> None:  # bytes do not end it: a whole head does
        if self.transport.is_closing():
            super()._unset_keepalive_if_required()

    def on_message_begin(self) -> None:
        self._between, self._open, self._silent = False, True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._open:  # a trailer is none of the request's headers (RFC 9110, section 6.5.1)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._silent = 0
        if len(self.pipeline) >= MAX_PIPELINED:
            self.cycle.keep_alive, self._over = False, True  # closed after the answers due
        if not self._over:
            super()._unset_keepalive_if_required()
            super().on_headers_complete()
            if sum(len(cycle.body) for cycle, _ in self.pipeline) <= HIGH_WATER_LIMIT:
                self.flow.resume_reading()  # or the end of the connection would not be seen
        self._open = False  # not before: the address may be bad

    def on_body(self, body: bytes) -> None:
        self._silent = 0
        if not self._over:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._over:
            super().on_message_complete()
        self._between, self._silent = True, 0

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "bad_request", msg)

    def _refuse_head(self) -> None:
        self._refuse(431, "headers_too_large", f"The headers are larger than {MAX_HEAD_BYTES} bytes.")

    def _refuse(self, status: int, code: str, detail: str) -> None:
        self._head, self._over = b"", True
        behind = self._between or self._open  # a request whose answer may still be due
        if not behind and self.pipeline:  # its own turn will not come
            self.pipeline.popleft()
            behind = True
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running  # type: ignore[assignment]  # one runs
        if behind and self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False  # closed after it: this one would pass for that
            return
        body = msgspec.json.encode(problem(status, code, detail))
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: application/problem+json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )
        self.transport.close()


class Worker(UvicornWorker):  # type: ignore[misc]  # its base has no types
    """gunicorn's worker with it."""

    CONFIG_KWARGS = {"loop": "uvloop", "http": Protocol}  # noqa: RUF012  as its base has it
