"""Models load beside the imports: a worker has begun to when its web framework is not there yet."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from service.settings import Settings

if TYPE_CHECKING:
    from service.repository import Repository

_begun = list["Future[Repository]"]()


def begin(settings: Settings) -> None:
    """Load in a thread of its own; `repository` hands it over."""
    _begun.append(ThreadPoolExecutor(1, "loading").submit(_load, settings))


def repository(settings: Settings) -> "Repository":
    """What `begin` has begun to load, or what is loaded now.

    Raises:
        PackageError: there is no package, or one of them cannot be served.
    """
    return _begun.pop().result() if _begun else _load(settings)


def _load(settings: Settings) -> "Repository":
    from service.repository import open_repository  # noqa: PLC0415  numpy and ONNX Runtime: in the worker only

    return open_repository(settings)
