"""POST /predict: photos in, ranked labels out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, cast

import msgspec
from litestar import Response, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import (
    OpenAPIFormat,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    RequestBody,
    Schema,
)
from litestar.openapi.spec import Parameter as HeaderOrQuery
from litestar.params import Parameter
from litestar.types import ASGIApp, Receive, Scope, Send

from service import metrics
from service.classifier import Answer, Prediction
from service.errors import BadRequest, Problem
from service.routes import HttpRequest, describe, problem_response, problems, ready_classifier
from service.routes.upload import Upload, read_upload
from service.settings import Settings

PARAMETERS = frozenset({"model", "version", "top_k"})
TIMEOUT = "X-Request-Timeout-Ms"
encode = msgspec.json.Encoder().encode


class Predictions(msgspec.Struct, frozen=True):
    """The answer to one photo."""

    model: str
    version: int
    predictions: Sequence[Prediction]


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """One photo of several: either its predictions or its error."""

    file: str
    predictions: Sequence[Prediction] | None = None
    error: Problem | None = None


class Results(msgspec.Struct, frozen=True):
    """The answer to several photos, in their order."""

    model: str
    version: int
    results: list[Result]


@dataclass
class PredictOperation(Operation):
    """For the schema, the request body, which is read by hand, before anything is copied or validated, and headers."""

    def __post_init__(self) -> None:
        whole = Schema(type=OpenAPIType.INTEGER, minimum=1)
        limit = HeaderOrQuery(TIMEOUT, "header", whole, "Most milliseconds until the answer; 504 after it.")
        self.parameters = [*(self.parameters or []), limit]
        responses = cast("dict[str, OpenAPIResponse]", self.responses)
        responses["200"].headers = {"Server-Timing": OpenAPIHeader(Schema(type=OpenAPIType.STRING))}
        responses["429"].headers = {"Retry-After": OpenAPIHeader(whole, description="Seconds.")}
        file = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
        files = Schema(type=OpenAPIType.ARRAY, items=file, min_items=1)
        form = Schema(
            type=OpenAPIType.OBJECT, properties={"file": files}, required=["file"], additional_properties=False
        )
        content = {"multipart/form-data": OpenAPIMediaType(schema=form), "image/*": OpenAPIMediaType(schema=file)}
        self.request_body = RequestBody(content, "One or several photos as `file`, or one as the body.", required=True)


def counted_problem(request: HttpRequest, error: Exception) -> Response[bytes]:
    response = problem_response(request, error)
    model, version = request.scope["state"].get("served", ("", ""))
    metrics.REQUESTS.labels(model, version, str(response.status_code)).inc()
    return response


RESPONSES = {
    200: ResponseSpec(
        Predictions | Results,
        generate_examples=False,
        description="Ranked labels; `Server-Timing` has the stage times.",
    ),
    **problems(400, 404, 413, 415, 422, 429, 503, 504),
}


@post(
    "/predict",
    status_code=200,
    operation_class=PredictOperation,
    responses=RESPONSES,
    exception_handlers={Exception: counted_problem},
)
async def predict(
    request: HttpRequest,
    model: Annotated[str | None, Parameter(description="Its name; by default the first one.")] = None,
    version: Annotated[int | None, Parameter(description="By default the highest.")] = None,
    top_k: Annotated[int | None, Parameter(ge=1, description="Labels in a ranking.")] = None,
) -> ASGIApp:
    """Rank the labels of one photo or several, most probable first."""
    arrived = time.monotonic()
    settings: Settings = request.app.state.settings
    deadline = arrived + timeout_s(request, settings)
    classifier = ready_classifier(request)
    served = classifier.repository.find(model, version)
    request.scope["state"]["served"] = (served.package.name, str(served.package.version))
    if request.scope["query_string"] and (unknown := request.query_params.keys() - PARAMETERS):
        raise BadRequest(f"Unknown query parameter {min(unknown)}. There is {', '.join(sorted(PARAMETERS))}.")
    classifier.admit(served)

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    with request.app.state.bodies.share() as share:
        upload = await read_upload(request, settings, deadline, share)
        answer = await classifier.classify(served, upload.photos, top_k or settings.top_k, deadline, hung_up)
    return respond(answer, upload, time.monotonic() - arrived)


def timeout_s(request: HttpRequest, settings: Settings) -> float:
    """Seconds until the deadline: of the settings, or less by the header. Raises BadRequest."""
    given = request.headers.get(TIMEOUT)
    if given is None:
        return settings.request_timeout_ms / 1e3
    milliseconds = int(given) if given.isascii() and given.isdigit() and len(given) < 20 else 0
    if milliseconds < 1:
        raise BadRequest(f"{TIMEOUT} must be a whole number of milliseconds, 1 or more, in at most 19 digits.")
    return min(milliseconds, settings.request_timeout_ms) / 1e3


def respond(answer: Answer, upload: Upload, total_s: float) -> ASGIApp:
    """One photo: its predictions, or its error raised. Several: one result each, in their order."""
    package, meters = answer.served.package, answer.served.meters
    body: Predictions | Results
    if len(upload.photos) == 1:
        if isinstance(answer.outcomes[0], Exception):
            raise answer.outcomes[0]
        body = Predictions(package.name, package.version, answer.outcomes[0])
    else:
        results = [
            Result(name, error=describe(each)) if isinstance(each, Exception) else Result(name, each)
            for name, each in zip(upload.names, answer.outcomes, strict=True)
        ]
        body = Results(package.name, package.version, results)
    meters.count(answer.stages_s, total_s)
    stages = [f"{stage};dur={seconds * 1e3:.2f}" for stage, seconds in (*answer.stages_s.items(), ("total", total_s))]
    return _json(encode(body), ", ".join(stages))


def _json(body: bytes, server_timing: str) -> ASGIApp:
    """What Litestar's Response would send, without its 0.1 ms."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"server-timing", server_timing.encode()),
    ]

    async def send_it(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return send_it
