"""A source that cannot be converted: one line with cause and remedy, nothing left behind."""

import os
import shutil
import socket
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.convert import sources
from tests.convert.conftest import Outcome

Convert = Callable[..., Outcome]
Refused = Callable[..., str]


def test_a_missing_source(refused: Refused, tmp_path: Path) -> None:
    assert "no model at" in refused(tmp_path / "missing.keras")


@pytest.mark.parametrize("name", ["empty.keras", "noise.keras", "empty.h5", "noise.h5"])
def test_a_file_that_is_no_model(name: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"" if "empty" in name else os.urandom(5000))
    assert "is damaged or no Keras file" in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["model.onnx", "model.KERAS"])  # the latter is HDF5 to tf_keras
def test_a_file_of_another_kind(name: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert "is no .keras or .h5 file: save the model with" in refused(tmp_path / name)


def test_a_file_that_the_system_does_not_open_is_not_called_damaged(refused: Refused, tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as refusing:
        refusing.bind(str(tmp_path / "model.keras"))
        line = refused(tmp_path / "model.keras")
    assert "model.keras: No such device or address: check its path and your rights to it" in line


def test_a_name_that_the_package_cannot_store(saved: Path, refused: Refused, tmp_path: Path) -> None:
    shutil.copy(saved, odd := tmp_path / os.fsdecode(b"mod\xe8le.keras"))
    assert "'mod\\udce8le.keras' is no name in UTF-8, as the package stores it: rename it" in refused(odd)


def test_a_folder_that_is_no_saved_model(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "holds no saved_model.pb" in refused(tmp_path / "folder")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_truncated_file(share: float, suffix: str, keras: Any, refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / f"whole.{suffix}"
    sources.functional(keras).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    line = refused(path)
    assert "is damaged or no Keras file" in line or "cannot be loaded by Keras" in line


def odd_archive(path: Path, content: bytes, *, method: int | None = None, encrypted: bool = False) -> None:
    """A .keras file of one config.json; `method` and `encrypted` are what its headers say."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", content)
    stored = bytearray(path.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = stored.index(header) + flags
        stored[start] |= encrypted
        if method is not None:
            stored[start + 2] = method
    path.write_bytes(stored)


def bad_stream(path: Path) -> None:
    odd_archive(path, os.urandom(1000), method=zipfile.ZIP_STORED)
    odd_archive(path, b"0" * 1000)
    stored = bytearray(path.read_bytes())
    start = stored.index(b"config.json") + len("config.json")
    stored[start : start + 4] = b"\xff" * 4
    path.write_bytes(stored)


def odd_h5(path: Path, value: Any) -> None:

    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = value


ODD = {
    "password.keras": lambda path: odd_archive(path, b"{}", encrypted=True),
    "method.keras": lambda path: odd_archive(path, b"{}", method=99),
    "stream.keras": bad_stream,
    "deep.keras": lambda path: odd_archive(path, b"[" * 5000 + b"]" * 5000),
    "deeper.keras": lambda path: odd_archive(path, b"[" * 500_000),
    "no.keras": lambda path: odd_archive(path, b"not json"),
    "number.h5": lambda path: odd_h5(path, 5),
    "bytes.h5": lambda path: odd_h5(path, np.void(b"\xff\x00")),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file(name: str, refused: Refused, tmp_path: Path) -> None:
    ODD[name](tmp_path / name)
    assert f"{name} is damaged or no Keras file (" in refused(tmp_path / name)


def test_a_layer_whose_module_is_no_name(refused: Refused, tmp_path: Path) -> None:
    odd_archive(tmp_path / "module.keras", b'{"class_name": "Dense", "module": 5}')
    assert "layer 'Dense' (Dense) runs code of its own" in refused(tmp_path / "module.keras")


def test_flipped_bytes_inside_an_archive(saved: Path, refused: Refused, tmp_path: Path) -> None:
    content = bytearray(saved.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    (tmp_path / "flipped.keras").write_bytes(content)
    assert "flipped.keras" in refused(tmp_path / "flipped.keras")


def test_a_damaged_saved_model(keras: Any, refused: Refused, tmp_path: Path) -> None:
    sources.functional(keras).export(tmp_path / "whole", format="tf_saved_model", verbose=False)
    shutil.copytree(tmp_path / "whole", tmp_path / "graph")
    graph = tmp_path / "graph" / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:2000])
    assert "cannot be loaded as a SavedModel" in refused(tmp_path / "graph")
    shutil.rmtree(tmp_path / "whole" / "variables")
    assert "cannot be loaded as a SavedModel" in refused(tmp_path / "whole")


def test_weights_without_a_model(keras: Any, refused: Refused, tmp_path: Path) -> None:
    sources.functional(keras).save_weights(tmp_path / "some.weights.h5")
    assert "holds weights only: save the whole model" in refused(tmp_path / "some.weights.h5")


def models_that_are_no_classifiers(keras: Any) -> dict[str, tuple[Any, str]]:
    def entry(*shape: int | None) -> Any:
        return keras.Input(shape)

    def model(one: Any, *layers: Any) -> Any:
        x = one
        for layer in layers:
            x = layer(x)
        return keras.Model(one, x)

    dense, pool, conv = keras.layers.Dense, keras.layers.GlobalAveragePooling2D, keras.layers.Conv2D
    one, other = entry(32, 32, 3), entry(32, 32, 3)
    return {
        "rank": (model(entry(12), dense(4)), "not [N, height, width, 3]"),
        "channels": (model(entry(32, 32, 1), pool(), dense(4)), "only colour images, channels last"),
        "channels first": (model(entry(3, 32, 32), keras.layers.Flatten(), dense(4)), "only colour images"),
        "no size": (model(entry(None, None, 3), pool(), dense(4)), "has no fixed image size"),
        "one output value": (model(entry(32, 32, 3), pool(), dense(1)), "with 2 classes or more"),
        "a map of classes": (model(entry(32, 32, 3), conv(4, 1)), "it is no image classifier"),
        "two inputs": (keras.Model([one, other], dense(4)(pool()(one + other))), "has 2 inputs and 1 outputs"),
        "two outputs": (keras.Model(one, [dense(4)(pool()(one)), dense(4)(pool()(one))]), "has 1 inputs and 2 outputs"),
    }


NO_CLASSIFIERS = ("rank", "channels", "channels first", "no size", "one output value", "a map of classes", "two inputs")


@pytest.mark.parametrize("case", [*NO_CLASSIFIERS, "two outputs"])
def test_a_model_that_is_no_image_classifier(case: str, keras: Any, refused: Refused, tmp_path: Path) -> None:
    model, message = models_that_are_no_classifiers(keras)[case]
    model.save(tmp_path / "other.keras")
    assert message in refused(tmp_path / "other.keras")


def test_a_stack_of_layers_without_an_input(keras: Any, refused: Refused, tmp_path: Path) -> None:
    model = keras.Sequential([keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4)])
    with pytest.warns(UserWarning, match="has not yet been built"):
        model.save(tmp_path / "unbuilt.keras")
    assert "has no defined input: give it an Input layer" in refused(tmp_path / "unbuilt.keras")


def test_outputs_that_do_not_exclude_each_other(keras: Any, refused: Refused, tmp_path: Path) -> None:
    sources.trained(keras, last="sigmoid").save(tmp_path / "sigmoid.keras")
    assert "do not sum to one (sigmoid outputs?): end it in a softmax" in refused(tmp_path / "sigmoid.keras")


def test_weights_that_are_no_numbers(keras: Any, refused: Refused, tmp_path: Path) -> None:
    model = sources.functional(keras)
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    model.save(tmp_path / "nan.keras")
    assert "answers NaN or infinity" in refused(tmp_path / "nan.keras")


def test_a_layer_that_onnx_does_not_know(keras: Any, refused: Refused, tmp_path: Path) -> None:
    entry = keras.Input((sources.SIZE, sources.SIZE, 3))
    keras.Model(entry, sources.body(keras, keras.ops.erfinv(entry * 0.5))).save(tmp_path / "odd.keras")
    assert "cannot be exported to ONNX (there is no ONNX operator for Erfinv at " in refused(tmp_path / "odd.keras")
