"""Photos and small trained models, made once; TensorFlow is imported once."""

import json
import os
import random
import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from convert import pipeline, timing
from convert.command import main
from tests.convert import sources

# Set by convert.source too, but a test may import TensorFlow first.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Keras draws the seeds of its weights from here: a test's network is the same whatever ran before."""
    random.seed(7)


@pytest.fixture(scope="session")
def keras() -> Any:
    import keras  # noqa: PLC0415  takes seconds: only where a model is built

    return keras


@pytest.fixture(scope="session")
def keras_2() -> Any:
    """The last release of Keras 2, which writes what Keras 2 wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tf_keras  # noqa: PLC0415

    return tf_keras


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 training, 32 validation and 40 evaluation photos in class folders."""
    return sources.write_splits(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def saved(keras: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small.keras`: the trained Functional model, pixels 0 to 1."""
    path = tmp_path_factory.mktemp("sources") / "small.keras"
    sources.trained(keras).save(path)
    return path


@dataclass(frozen=True)
class Outcome:
    """What a user of the command sees, progress bars left out."""

    status: int
    out: str
    err: str
    package: Path

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.package / "report.json").read_text(encoding="utf-8"))
        return found


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short measurements, and a PATH without qemu-x86_64: both have tests of their own."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(timing, "CALLS", 10)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, so that a test can see what stays."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def convert(
    tmp_path: Path, photos: Path, capfd: pytest.CaptureFixture[str], quick: None, scratch: Path
) -> Callable[..., Outcome]:
    """Runs the command in this process: `convert(source, *options)`; photos and package folder are given."""

    def run(source: Path, *options: str, images: Path = photos) -> Outcome:
        words = [
            str(source),
            "--name",
            "small",
            "--images",
            str(images),
            "--models",
            str(tmp_path / "models"),
            *options,
        ]
        capfd.readouterr()
        try:
            status = main(words)
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capfd.readouterr()
        return Outcome(status, out, without_bars(err), tmp_path / "models" / "small" / "1")

    return run


@pytest.fixture
def refused(convert: Callable[..., Outcome], tmp_path: Path, scratch: Path) -> Callable[..., str]:
    """Runs the command and gives its one line of complaint; nothing is left behind."""

    def run(source: Path, *options: str, status: int = 2, **given: Any) -> str:
        outcome = convert(source, *options, **given)
        assert outcome.status == status, outcome.err
        assert outcome.out == ""
        (line,) = outcome.err.splitlines()
        assert line.startswith("convert: ")
        assert len(line) < 500
        assert not (tmp_path / "models").exists()
        assert [path for path in scratch.iterdir() if "autograph" not in path.name] == []  # of functions tests trace
        return line

    return run


def without_bars(text: str) -> str:
    """Standard error less the progress bars, and the notes between them."""
    lines = [line for line in re.split(r"[\r\n]", text) if line.strip()]
    return "\n".join(
        line
        for line in lines
        if not re.search(r"\d+ % \|.*elapsed|^\w.*: agreement [\d.]+ %, top-1|^photos: |^top-1 of the source", line)
    )


@pytest.fixture
def always_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict is not left to the clock: networks of microseconds gain nothing from int8."""
    monkeypatch.setattr(pipeline, "FASTER", 0.0)


# Warnings that TensorFlow, Keras and tf2onnx cause themselves; all others fail a test.
FOREIGN_WARNINGS = (
    # Keras 3.15 with numpy 2.4: np.array(variable)
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hooks of a folder's conftest see all items: only those below it are marked."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for rule in FOREIGN_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(rule))
