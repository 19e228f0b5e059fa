"""HTTP routes, one module a protocol, and what they share: the ready classifier and problem details."""

import logging
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.openapi.datastructures import ResponseSpec

from service.classifier import Classifier
from service.errors import NotReady, Problem, QueueFull, ServiceError, problem
from service.image import ImageError

HttpRequest = Request[Any, Any, Any]
log = logging.getLogger("uvicorn.error")


def ready_classifier(request: HttpRequest) -> Classifier:
    """The classifier, once all models are loaded; NotReady before."""
    classifier: Classifier | None = request.app.state.classifier
    if classifier is None:
        raise NotReady("The models are being loaded. Send it again in a moment.")
    return classifier


def describe(error: Exception) -> Problem:
    """Problem details of any error: a request's own, an image's, the framework's; all else is a fault of ours."""
    if isinstance(error, ServiceError | ImageError):
        return problem(error.status, error.code, str(error))
    if isinstance(error, HTTPException) and error.status_code < 500:
        extra = "; ".join(f"{each['key']}: {each['message']}" for each in _details(error))
        return problem(error.status_code, CODES.get(error.status_code, "bad_request"), extra or error.detail)
    log.error("unexpected error", exc_info=error)
    return problem(500, "internal_error", "The service failed. It has been logged.")


def problems(*statuses: int) -> dict[int, ResponseSpec]:
    """What the schema says of errors."""
    kind = "application/problem+json"
    return {status: ResponseSpec(Problem, False, HTTPStatus(status).phrase, media_type=kind) for status in statuses}


def problem_response(_: HttpRequest, error: Exception) -> Response[bytes]:
    body = describe(error)
    headers = dict(getattr(error, "headers", None) or {})
    if isinstance(error, QueueFull):
        headers["Retry-After"] = str(error.retry_after_s)
    return Response(
        msgspec.json.encode(body), status_code=body.status, headers=headers, media_type="application/problem+json"
    )


CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


def _details(error: HTTPException) -> list[dict[str, str]]:
    extra = error.extra if isinstance(error.extra, list) else []
    return [each for each in extra if isinstance(each, dict) and {"key", "message"} <= each.keys()]
