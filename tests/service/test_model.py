"""A package's ONNX file: what it says of itself, and that it runs as it is called."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from service import model as model_module
from service.image import Contract
from service.model import Engine, Model, PackageError, open_session
from tests.service.packages import COLOURS, colour_model, properties, write_package


def save(tmp_path: Path, props: dict[str, str], size: int = 32) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(colour_model(size, 0, props), path)
    return path


def test_metadata_is_read_from_the_file(models: Path) -> None:
    metadata = Model(write_package(models) / "model.onnx", 1).metadata
    assert metadata.labels == COLOURS
    assert metadata.contract == Contract(32, 32, "bicubic", "none")
    assert (metadata.precision, metadata.verdict) == ("float32", "keep float")
    assert metadata.raw["source"]["file"] == "colours.keras"
    assert metadata.raw["calibration"] is None


@pytest.mark.parametrize("batch", [1, 3])
def test_infer_gives_a_row_of_probabilities_an_image(models: Path, batch: int) -> None:
    model = Model(write_package(models) / "model.onnx", 2)
    images = np.zeros((batch, 32, 32, 3), np.uint8)
    images[:, :, :, 1] = 200
    probabilities = model.infer(images)
    assert (probabilities.shape, probabilities.dtype) == ((batch, 3), np.float32)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert (probabilities.argmax(axis=1) == 1).all()


class Watched:
    """A session that notes by which way it was run."""

    def __init__(self, session: Any) -> None:
        self.session, self.ways = session, list[str]()

    def run(self, *arguments: Any) -> Any:
        self.ways.append("here")
        return self.session.run(*arguments)

    def run_async(self, *arguments: Any) -> None:
        self.ways.append("aside")
        self.session.run_async(*arguments)


def watch(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ways in which an engine's session is run from now on."""
    watched = Watched(engine.session)
    monkeypatch.setattr(engine, "session", watched)
    return watched.ways


def test_a_call_has_all_threads_and_one_beside_it_a_thread_of_the_pool_while_there_is_one(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(write_package(models) / "model.onnx", 2)
    ways = watch(engine, monkeypatch)
    red = np.zeros((1, 32, 32, 3), np.uint8)
    red[..., 0] = 200
    alone = engine.infer(red)
    (first, _), (pool, _) = engine._places
    with first:
        beside = engine.infer(red)
        with pool:
            third = engine.infer(red)
    again = engine.infer(red)
    assert ways == ["here", "aside", "here", "here"]
    assert all(np.array_equal(alone, other) for other in (beside, third, again))


def test_a_session_of_one_thread_has_no_pool_to_call_on(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(write_package(models) / "model.onnx", 1)
    ways = watch(engine, monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(engine.infer, np.zeros((50, 1, 32, 32, 3), np.uint8)))
    assert ways == ["here"] * 50


def test_calls_at_once_get_the_answers_to_their_own_images(models: Path) -> None:
    engine, rng = Engine(write_package(models) / "model.onnx", 3), np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 1, 32, 32, 3), np.uint8)
    expected = [engine.infer(each) for each in images]
    with ThreadPoolExecutor(5) as pool:
        assert np.array_equal(list(pool.map(engine.infer, images)), expected)
        with engine._places[0][0]:  # so that as many as can run in the pool
            assert np.array_equal(list(pool.map(engine.infer, images)), expected)


def test_an_error_reaches_its_caller_from_the_pool_too_and_the_thread_is_free_again(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(write_package(models) / "model.onnx", 2)
    ways = watch(engine, monkeypatch)
    with engine._places[0][0]:
        for _ in range(2):
            with pytest.raises(Exception, match=r"(?i)dimension"):
                engine.infer(np.zeros((1, 8, 8, 3), np.uint8))
        assert engine.infer(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 3)
    assert ways == ["aside"] * 3


def test_a_call_that_the_pool_sleeps_over_is_answered(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(write_package(models) / "model.onnx", 2)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    expected = engine.infer(images)
    ways = watch(engine, monkeypatch)
    monkeypatch.setattr(Watched, "run_async", lambda *_: None)
    monkeypatch.setattr(model_module, "LATE_S", 0.05)
    with engine._places[0][0]:
        assert np.array_equal(engine.infer(images), expected)
    assert ways == ["here"]


def test_a_call_that_takes_as_long_as_others_did_is_waited_for(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(write_package(models) / "model.onnx", 2)
    ways = watch(engine, monkeypatch)
    monkeypatch.setattr(model_module, "LATE_S", 0.0)
    engine._image_s = 1.0
    with engine._places[0][0]:
        engine.infer(np.zeros((2, 32, 32, 3), np.uint8))
    assert ways == ["aside"]


def test_a_file_without_metadata_is_no_package_but_opens_as_a_session(tmp_path: Path) -> None:
    path = save(tmp_path, {})
    with pytest.raises(PackageError, match=r"no `sous\.format`"):
        Model(path, 1)
    assert open_session(path, 1).get_inputs()[0].name == "image"


def test_threads_are_those_asked_for_and_do_not_spin(models: Path) -> None:
    options = open_session(write_package(models) / "model.onnx", 2).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize("content", [b"", b"no model", bytes(10_000)])
def test_a_file_that_is_no_model_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(PackageError, match=r"model\.onnx"):
        Model(path, 1)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"nothing\.onnx"):
        Model(tmp_path / "nothing.onnx", 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sous.format", "2"),
        ("sous.labels", None),
        ("sous.labels", '["red", "green"]'),
        ("sous.labels", "red, green, blue"),
        ("sous.labels", "7"),
        ("sous.preprocessing", "{}"),
        ("sous.preprocessing", '{"height": 32, "width": 32, "resize": "lanczos", "crop": "none"}'),
        ("sous.preprocessing", '{"height": 64, "width": 64, "resize": "bicubic", "crop": "none"}'),
        ("sous.verdict", None),
    ],
)
def test_metadata_that_cannot_be_served_is_refused(tmp_path: Path, name: str, value: str | None) -> None:
    props = properties(32)
    del props[name]
    if value is not None:
        props[name] = value
    with pytest.raises(PackageError, match=r"convert it again"):
        Model(save(tmp_path, props), 1)
