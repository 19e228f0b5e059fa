"""Loading that a worker begins before it needs the models."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from service import gunicorn_conf, loading
from service.model import PackageError
from service.settings import Settings
from tests.service.packages import write_package


def settings(models: Path) -> Settings:
    return Settings(models_dir=str(models), cores=1)


def test_what_was_begun_is_handed_over_once_and_loaded_now_after_that(tmp_path: Path) -> None:
    write_package(tmp_path / "early", "early")
    write_package(tmp_path / "late", "late")
    loading.begin(settings(tmp_path / "early"))
    assert loading.repository(settings(tmp_path / "late")).names() == ["early"]
    assert loading.repository(settings(tmp_path / "late")).names() == ["late"]


def test_what_cannot_be_served_is_said_where_the_models_are_needed(tmp_path: Path) -> None:
    loading.begin(settings(tmp_path))
    with pytest.raises(PackageError, match="no package"):
        loading.repository(settings(tmp_path))


def test_a_worker_begins_as_soon_as_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path / "early", "early")
    monkeypatch.setenv("SOUS_MODELS_DIR", str(tmp_path / "early"))
    monkeypatch.setenv("SOUS_CORES", "1")
    gunicorn_conf.post_fork(SimpleNamespace(cfg=SimpleNamespace(workers=1)), None)
    assert loading.repository(settings(tmp_path)).names() == ["early"]
