"""The service that most tests speak to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.packages import write_package
from tests.service.running import Server, serving


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two models, one of them in two versions, served with small limits."""
    models = tmp_path_factory.mktemp("served") / "models"
    write_package(models, "colours", 1)
    write_package(models, "colours", 2, size=24)
    write_package(models, "zebra", 1)
    with serving(models, max_image_bytes=100_000, max_request_bytes=300_000, max_files=4, top_k=2) as running:
        yield running
