"""create_app(): routes, errors to problem details, and the life of the service."""

import asyncio
import gc
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from service.classifier import Classifier
from service.model import PackageError
from service.repository import open_repository
from service.routes import problem_response
from service.routes.operations import live, model, models, prometheus, ready
from service.routes.page import page
from service.routes.predict import predict
from service.routes.upload import Bodies
from service.settings import Settings, read_settings

CANNOT_SERVE = 4  # exit status that makes gunicorn give up rather than start the worker again
log = logging.getLogger("uvicorn.error")


class SchemaPlugin(JsonRenderPlugin):
    """/schema is the JSON itself; what is not there below it is a problem like any other, not a page of HTML."""

    def __init__(self) -> None:
        super().__init__(path="/")

    def receive_router(self, router: Router) -> None:
        router.routes = [route for route in router.routes if "{path:" not in route.path]


def create_app(settings: Settings | None = None) -> Litestar:
    """The ASGI application; settings from the environment by default. Models are loaded once it has started."""
    settings = settings or read_settings()
    bodies = Bodies(settings.max_held_bytes)
    return Litestar(
        route_handlers=[predict, live, ready, prometheus, models, model, page],
        exception_handlers={Exception: problem_response},
        lifespan=[lifespan],
        state=State({"settings": settings, "classifier": None, "draining": False, "bodies": bodies}),
        openapi_config=OpenAPIConfig("Sous", "1", path="/schema", render_plugins=[SchemaPlugin()]),
        logging_config=None,
    )


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    """Load while /health/ready says 503; on the way out everything that waits is answered."""
    handle_signals(app.state)
    loading = asyncio.create_task(load(app.state))
    try:
        yield
    finally:
        await asyncio.wait([loading])
        if app.state.classifier is not None:
            await asyncio.to_thread(app.state.classifier.close)


async def load(state: State) -> None:
    """Ready, or the end of the process: a service without one of its models is not the service that was asked for."""
    try:
        repository = await asyncio.to_thread(open_repository, state.settings)
        gc.collect()
        gc.freeze()  # what serves for good is not looked through again and again
        state.classifier = Classifier(repository, state.settings)
    except Exception as error:
        log.critical("%s", error, exc_info=not isinstance(error, PackageError))
        os._exit(CANNOT_SERVE)  # nothing is in flight; SystemExit would end in tracebacks of every layer above
    log.info("ready: %s", ", ".join(repository.names()))


def handle_signals(state: State) -> None:
    """SIGTERM: readiness fails at once, the server's own handler closes the door after the drain delay.

    SIGQUIT, which gunicorn sends its workers on a quick stop, ends the server as SIGINT does, which it knows.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGQUIT, signal.raise_signal, signal.SIGINT)
    close_door: Any = signal.getsignal(signal.SIGTERM)
    delay_s = state.settings.drain_delay_ms / 1e3

    def drain(number: int, _: object) -> None:
        signal.signal(signal.SIGTERM, close_door)
        state.draining = True
        loop.call_soon_threadsafe(loop.call_later, delay_s, close_door, number, None)

    if callable(close_door):
        signal.signal(signal.SIGTERM, drain)
