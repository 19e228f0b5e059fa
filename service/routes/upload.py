"""The body of a request, read by hand: limits hold while it arrives, and nothing is copied without need."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Self

from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from service.errors import BadRequest, ClientGone, DeadlineExceeded, QueueFull, RequestTooLarge, UnsupportedMediaType
from service.routes import HttpRequest
from service.settings import Settings


@dataclass(slots=True)
class Bodies:
    """The bodies that a worker holds: announced, arriving, or waiting for their answer. On the event loop only."""

    max_bytes: int
    held_bytes: int = 0

    def share(self) -> "Share":
        return Share(self)


@dataclass(slots=True)
class Share:
    """What one request holds of it, free again when its `with` ends."""

    bodies: Bodies
    held_bytes: int = 0

    def hold(self, size: int) -> None:
        """At least `size` bytes. Raises QueueFull where all bodies together would be too large."""
        more = size - self.held_bytes
        if more <= 0:
            return
        if self.bodies.held_bytes + more > self.bodies.max_bytes:
            raise QueueFull("Too many bytes are arriving. Send it again later.", retry_after_s=1)
        self.held_bytes = size
        self.bodies.held_bytes += more

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bodies.held_bytes -= self.held_bytes
        self.held_bytes = 0


@dataclass(frozen=True, slots=True)
class Upload:
    """Photos in the order they were sent. A raw body has no names, and is one photo."""

    names: list[str]
    photos: list[bytes]


async def read_upload(request: HttpRequest, settings: Settings, deadline: float, share: Share) -> Upload:
    """The photos of a body, counted in `share`.

    Raises:
        BadRequest, RequestTooLarge, UnsupportedMediaType, QueueFull, DeadlineExceeded (`time.monotonic()`), ClientGone.
    """
    kind, options = parse_options_header(request.headers.get("content-type", "").replace("\t", " "))
    if kind == "multipart/form-data":
        body = await _in_time(read_body(request, settings.max_request_bytes, share), deadline)
        return read_form(body, options.get("boundary", ""), settings.max_files)
    if kind.startswith("image/"):
        return Upload([""], [await _in_time(read_body(request, settings.max_image_bytes, share), deadline)])
    raise UnsupportedMediaType("Send multipart/form-data with the photos as `file`, or one photo as an image/* body.")


async def _in_time(reading: Coroutine[Any, Any, bytes], deadline: float) -> bytes:
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await reading
    except TimeoutError:
        raise DeadlineExceeded("The deadline passed before the body had arrived.") from None


async def read_body(request: HttpRequest, max_bytes: int, share: Share) -> bytes:
    """The whole body. What it announces is held before it arrives, what it does not, as it arrives.

    Raises:
        RequestTooLarge, QueueFull: as soon as it is known to pass `max_bytes`, or what its `share` can hold.
        ClientGone: it ended early.
    """
    chunks: list[bytes] = []
    arrived, more = 0, True
    _hold(int(request.headers.get("content-length", "0")), max_bytes, share)
    while more:
        message: Any = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("The client hung up.")
        chunks.append(message["body"])
        arrived += len(message["body"])
        _hold(arrived, max_bytes, share)
        more = message["more_body"]
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _hold(size: int, max_bytes: int, share: Share) -> None:
    if size > max_bytes:
        raise RequestTooLarge(f"The body is larger than {max_bytes} bytes.")
    share.hold(size)


def read_form(body: bytes, boundary: str, max_files: int) -> Upload:
    """The `file` parts of a multipart body. Raises BadRequest for anything else."""
    names: list[str] = []
    photos: list[list[bytes]] = []
    try:
        with PushMultipartParser(boundary) as parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    _check_field(event.name)
                    _check_count(len(names) + 1, max_files)
                    names.append(event.filename or "")
                    photos.append([])
                elif event is not None:
                    photos[-1].append(event)
    except MultipartError as error:
        raise BadRequest(f"The multipart body cannot be read: {error.args[0]}.") from None
    if not photos:
        raise BadRequest("The form has no `file`.")
    return Upload(names, [b"".join(parts) for parts in photos])


def _check_field(name: str | None) -> None:
    if name != "file":
        raise BadRequest("The form has a field that is not `file`. Send the photos as `file`, all else in the query.")


def _check_count(parts: int, max_files: int) -> None:
    if parts > max_files:
        raise BadRequest(
            f"The form has more than {max_files} parts (SOUS_MAX_FILES). Send the photos in several requests."
        )
