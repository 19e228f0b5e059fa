# ruff: noqa: N818  an error is named after what is wrong with the request
"""The error tree of a request, and its one translation to problem details (RFC 9457).

    ServiceError
    ├── BadRequest            400  bad_request
    ├── UnknownModel          404  unknown_model
    ├── RequestTooLarge       413  request_too_large
    ├── UnsupportedMediaType  415  unsupported_media_type
    ├── QueueFull             429  queue_full, with Retry-After
    ├── ClientGone            499  client_gone (nobody reads it; it is counted)
    ├── NotReady              503  not_ready
    ├── ShuttingDown          503  shutting_down
    └── DeadlineExceeded      504  deadline_exceeded

`service.image.ImageError` and its subclasses carry the same `status` and `code`.
"""

from http import HTTPStatus

import msgspec


class ServiceError(Exception):
    """A request that cannot be answered with 2xx, for a reason its sender can act on."""

    status = 500
    code = "internal_error"


class BadRequest(ServiceError):
    status = 400
    code = "bad_request"


class UnknownModel(ServiceError):
    status = 404
    code = "unknown_model"


class RequestTooLarge(ServiceError):
    status = 413
    code = "request_too_large"


class UnsupportedMediaType(ServiceError):
    status = 415
    code = "unsupported_media_type"


class QueueFull(ServiceError):
    """Shed: too many images wait, which will have been answered in `retry_after_s`, or too many bytes are held."""

    status = 429
    code = "queue_full"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ClientGone(ServiceError):
    status = 499
    code = "client_gone"


class NotReady(ServiceError):
    status = 503
    code = "not_ready"


class ShuttingDown(ServiceError):
    status = 503
    code = "shutting_down"


class DeadlineExceeded(ServiceError):
    status = 504
    code = "deadline_exceeded"


class Problem(msgspec.Struct, frozen=True):
    """Problem details; `type` is left out, which is `about:blank`: `title` is the status's own phrase."""

    title: str
    status: int
    code: str  # stable, for programs
    detail: str  # cause and remedy, for people


def problem(status: int, code: str, detail: str) -> Problem:
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Client Closed Request"
    return Problem(phrase, status, code, detail)
