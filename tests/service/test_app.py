"""create_app() as any ASGI server runs it."""

import threading
from pathlib import Path

from litestar.testing import TestClient

from service.app import create_app
from service.settings import Settings
from tests.service.packages import jpeg, write_package
from tests.service.running import until


def slots() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("slot-")]


def test_it_serves_by_the_settings_it_is_given_and_ends_its_threads(models: Path) -> None:
    write_package(models)
    with TestClient(create_app(Settings(models_dir=str(models), cores=2, top_k=1))) as client:
        until(lambda: client.get("/health/ready").status_code == 200)
        answer = client.post("/predict", content=jpeg("green"), headers={"content-type": "image/jpeg"}).json()
        assert [each["label"] for each in answer["predictions"]] == ["green"]
        assert len(slots()) == 2
    assert not slots()
