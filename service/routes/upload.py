"""The body of a request, read by hand: limits hold while it arrives, and nothing is copied without need."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from service.errors import BadRequest, ClientGone, DeadlineExceeded, RequestTooLarge, UnsupportedMediaType
from service.routes import HttpRequest
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Upload:
    """Photos in the order they were sent. A raw body has no names, and is one photo."""

    names: list[str]
    photos: list[bytes]


async def read_upload(request: HttpRequest, settings: Settings, deadline: float) -> Upload:
    """Raises BadRequest, RequestTooLarge, UnsupportedMediaType, DeadlineExceeded (`time.monotonic()`), ClientGone."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind == "multipart/form-data":
        body = await _in_time(read_body(request, settings.max_request_bytes), deadline)
        return read_form(body, options.get("boundary", ""), settings.max_files)
    if kind.startswith("image/"):
        return Upload([""], [await _in_time(read_body(request, settings.max_image_bytes), deadline)])
    raise UnsupportedMediaType("Send multipart/form-data with the photos as `file`, or one photo as an image/* body.")


async def _in_time(reading: Coroutine[Any, Any, bytes], deadline: float) -> bytes:
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await reading
    except TimeoutError:
        raise DeadlineExceeded("The deadline passed before the body had arrived.") from None


async def read_body(request: HttpRequest, max_bytes: int) -> bytes:
    """The whole body; RequestTooLarge as soon as it is known to pass `max_bytes`, ClientGone if it ends early."""
    room, more = max_bytes, True
    chunks: list[bytes] = []
    if int(request.headers.get("content-length", "0")) > max_bytes:
        room = -1
    while more and room >= 0:
        message: Any = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("The client hung up.")
        chunks.append(message["body"])
        room -= len(message["body"])
        more = message["more_body"]
    if room < 0:
        raise RequestTooLarge(f"The body is larger than {max_bytes} bytes.")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def read_form(body: bytes, boundary: str, max_files: int) -> Upload:
    """The `file` parts of a multipart body. Raises BadRequest for anything else."""
    names: list[str] = []
    photos: list[list[bytes]] = []
    try:
        with PushMultipartParser(boundary, max_segment_count=max_files) as parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    _check_field(event.name)
                    names.append(event.filename or "")
                    photos.append([])
                elif event is not None:
                    photos[-1].append(event)
    except MultipartError as error:
        raise BadRequest(f"The multipart body cannot be read: {error}.") from None
    if not photos:
        raise BadRequest("The form has no `file`.")
    return Upload(names, [b"".join(parts) for parts in photos])


def _check_field(name: str | None) -> None:
    if name != "file":
        raise BadRequest("The form has a field that is not `file`. Send the photos as `file`, all else in the query.")
