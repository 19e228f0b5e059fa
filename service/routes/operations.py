"""Probes, metrics, and what is served with its evidence."""

from dataclasses import asdict
from typing import Any

from litestar import HttpMethod, Response, get, route
from litestar.params import FromPath

from service import metrics
from service.errors import ShuttingDown
from service.repository import Served
from service.routes import HttpRequest, problems, ready_classifier

PROBED = (HttpMethod.GET, HttpMethod.HEAD)  # balancers ask either way


@route("/health/live", http_method=PROBED, sync_to_thread=False)
def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "live"}


@route("/health/ready", http_method=PROBED, sync_to_thread=False, responses=problems(503))
def ready(request: HttpRequest) -> dict[str, str]:
    """Every model is loaded, warmed and tested on this CPU, and the service is not draining."""
    ready_classifier(request)
    if request.app.state.draining:
        raise ShuttingDown("The service is draining.")
    return {"status": "ready"}


@get("/metrics", sync_to_thread=False, media_type=metrics.MEDIA_TYPE)
def prometheus() -> Response[bytes]:
    """Prometheus text format, all workers together."""
    return Response(metrics.render(), media_type=metrics.MEDIA_TYPE)


@get("/models", sync_to_thread=False, responses=problems(503))
def models(request: HttpRequest) -> dict[str, Any]:
    """What is served: the default model, and the default version of each with all versions there are."""
    repository = ready_classifier(request).repository
    return {
        "default": repository.find().package.name,
        "models": [
            _summary(repository.find(name)) | {"versions": sorted(repository.versions(name))}
            for name in repository.names()
        ],
    }


@get("/models/{name:str}", sync_to_thread=False, responses=problems(400, 404, 503))
def model(request: HttpRequest, name: FromPath[str]) -> dict[str, Any]:
    """Every version of a model: contract, plan and evidence."""
    repository = ready_classifier(request).repository
    versions = [_details(served) for _, served in sorted(repository.versions(name).items())]
    return {"name": name, "default_version": repository.find(name).package.version, "versions": versions}


def _summary(served: Served) -> dict[str, Any]:
    metadata, package = served.model.metadata, served.package
    return {
        "name": package.name,
        "version": package.version,
        "precision": metadata.precision,
        "labels": metadata.labels,
        "preprocessing": metadata.raw["preprocessing"],
    }


def _details(served: Served) -> dict[str, Any]:
    return {
        **_summary(served),
        "verdict": served.model.metadata.verdict,
        "plan": {**asdict(served.plan), "image_ms": round(served.image_s * 1e3, 2)},
        "golden_drift": served.golden_drift,
        "metadata": served.model.metadata.raw,
        "report": served.package.report,
    }
