"""A user's mistake: one line with cause and remedy, exit status 2, nothing left behind."""

import errno
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from convert import export, pipeline
from convert.errors import ConvertError, GateRefusedError
from convert.photos import Photos
from convert.progress import Progress
from convert.source import open_source, refuse_quantised
from convert.unsafe import SAVER, UNSAFE
from service.image import Contract
from tests.convert import sources
from tests.convert.conftest import Outcome

Convert = Callable[..., Outcome]


@pytest.fixture
def refused(convert: Convert, tmp_path: Path, scratch: Path) -> Callable[..., str]:
    """Runs the command and gives its one line of complaint."""

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


Refused = Callable[..., str]


# ---- sources


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
    import h5py  # noqa: PLC0415

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


# ---- code in sources


def with_lambda(keras: Any) -> Any:
    entry = keras.Input((sources.SIZE, sources.SIZE, 3))
    return keras.Model(entry, sources.body(keras, keras.layers.Lambda(lambda x: x * 1.0, name="scaled")(entry)))


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_lambda_layer_is_named_and_not_run(suffix: str, keras: Any, refused: Refused, tmp_path: Path) -> None:
    with_lambda(keras).save(tmp_path / f"code.{suffix}")
    line = refused(tmp_path / f"code.{suffix}")
    assert "layer 'scaled' (Lambda) runs code of its own" in line
    assert "--trust-source" in line


def test_a_lambda_inside_a_nested_model_is_named(keras: Any, refused: Refused, tmp_path: Path) -> None:
    inner = keras.Input((sources.SIZE, sources.SIZE, 3))
    nested = keras.Model(inner, keras.layers.Lambda(lambda x: x, name="deep")(inner))
    entry = keras.Input((sources.SIZE, sources.SIZE, 3))
    keras.Model(entry, sources.body(keras, nested(entry))).save(tmp_path / "nested.keras")
    assert "layer 'deep' (Lambda)" in refused(tmp_path / "nested.keras")


@pytest.mark.usefixtures("always_int8")
def test_a_trusted_lambda_is_converted(keras: Any, convert: Convert, tmp_path: Path) -> None:
    sources.trained(keras, with_lambda).save(tmp_path / "code.keras")
    outcome = convert(tmp_path / "code.keras", "--trust-source")
    assert (outcome.status, outcome.err) == (0, "")


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_trusted_lambda_in_half_precision_is_rebuilt(suffix: str, keras: Any, tmp_path: Path) -> None:
    path, policy = tmp_path / f"code.{suffix}", keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with_lambda(keras).save(path)
    finally:
        keras.config.set_dtype_policy(policy)
    assert open_source(path, trust=True).keras.get_layer("scaled").compute_dtype == "float32"
    with pytest.raises(ConvertError, match="runs code of its own"):
        open_source(path, trust=False)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.usefixtures("always_int8")
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_lambda_layer_of_keras_2_runs_where_it_is_trusted_only(
    suffix: str, keras_2: Any, refused: Refused, convert: Convert, tmp_path: Path
) -> None:
    path = tmp_path / f"code.{suffix}"
    sources.trained(keras_2, with_lambda).save(path)
    assert "layer 'scaled' (Lambda) runs code of its own" in refused(path)
    assert convert(path, "--trust-source").status == 0


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_custom_layer_is_named(suffix: str, keras: Any, refused: Refused, tmp_path: Path) -> None:
    class Doubled(keras.layers.Layer):  # type: ignore[misc, name-defined]  # keras has no types
        def call(self, x: Any) -> Any:
            return 2 * x

    entry = keras.Input((sources.SIZE, sources.SIZE, 3))
    keras.Model(entry, sources.body(keras, Doubled(name="own")(entry))).save(tmp_path / f"custom.{suffix}")
    assert "Doubled" in refused(tmp_path / f"custom.{suffix}")
    assert "Doubled" in refused(tmp_path / f"custom.{suffix}", "--trust-source")  # its code is not in the file


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("way", ["link", "data", "view"])
def test_weights_that_are_in_another_file_are_not_read(
    way: str, archive: bool, keras_2: Any, refused: Refused, tmp_path: Path
) -> None:
    path, private = tmp_path / "linked.h5", tmp_path / "private.h5"
    sources.functional(keras_2).save(path)
    with h5py.File(path, "r+") as file, h5py.File(private, "w") as other:
        other["secret"] = np.zeros(4, np.float32)
        place, shape = file["model_weights/head"], {"shape": (4,), "dtype": np.float32}
        if way == "link":
            place["more"] = h5py.ExternalLink(str(private), "secret")
        elif way == "data":
            place.create_dataset("more", **shape, external=str(private))
        else:
            layout = h5py.VirtualLayout(**shape)
            layout[:] = h5py.VirtualSource(str(private), "secret", (4,))
            place.create_virtual_dataset("more", layout)
    if archive:  # appended, with harmless weights
        h5py.File(tmp_path / "harmless.h5", "w").close()
        with zipfile.ZipFile(path, "a") as appended:
            appended.write(tmp_path / "harmless.h5", "model.weights.h5")
    assert "linked.h5: model_weights/head/more is in another file" in refused(path)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_weights_in_another_file_than_the_archive_of_keras_2_are_not_read(
    keras_2: Any, refused: Refused, tmp_path: Path
) -> None:
    path, weights = tmp_path / "linked.keras", tmp_path / "model.weights.h5"
    sources.functional(keras_2).save(path)
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    weights.write_bytes(kept[weights.name])
    with h5py.File(weights, "r+") as file:
        file["more"] = h5py.ExternalLink("/etc/private.h5", "secret")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (kept | {weights.name: weights.read_bytes()}).items():
            archive.writestr(name, data)
    assert "linked.keras: more is in another file" in refused(path)


@pytest.mark.parametrize("library", ["keras", "keras_2"])
def test_how_a_model_was_trained_does_not_matter(
    library: str, convert: Convert, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    keras = request.getfixturevalue(library)

    class OwnLoss(keras.losses.Loss):  # type: ignore[misc, name-defined]  # keras has no types
        def call(self, wanted: Any, found: Any) -> Any:
            return wanted - found

    model = sources.trained(keras)
    model.compile(optimizer="adam", loss=OwnLoss())
    model.save(tmp_path / "compiled.keras")
    assert convert(tmp_path / "compiled.keras").status == 0


@pytest.mark.parametrize("version", ["1.2.2", np.bytes_(b"1.2.2")])
def test_a_file_of_keras_1_is_named(version: str | bytes, keras: Any, refused: Refused, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["model_config"] = '{"class_name": "Sequential", "config": []}'
        file.attrs["keras_version"] = version
    assert "is of Keras 1.2.2: load it with Keras 2" in refused(tmp_path / "old.h5")


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_version_of_keras_2_that_is_stored_as_bytes(keras_2: Any, tmp_path: Path) -> None:
    sources.functional(keras_2).save(tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        file.attrs["keras_version"] = np.bytes_(b"2.2.4")
    assert open_source(tmp_path / "old.h5", trust=False).keras is None


@pytest.mark.parametrize("operation", ["py_function", "read_file", "a name that hides"])
def test_a_saved_model_that_reaches_files_or_runs_python(operation: str, refused: Refused, tmp_path: Path) -> None:
    import tensorflow as tf  # noqa: PLC0415

    class Reaching(tf.Module):  # type: ignore[misc, name-defined]  # tensorflow has no types
        @tf.function(input_signature=[tf.TensorSpec([None, 32, 32, 3], tf.float32, name="image")])
        def serve(self, image: Any) -> Any:
            if operation == "py_function":
                image = tf.ensure_shape(tf.py_function(lambda x: x, [image], tf.float32), [None, 32, 32, 3])
            else:
                with tf.name_scope("save" if operation == "a name that hides" else "read"):
                    image += tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)
            return tf.nn.softmax(tf.reduce_mean(image, [1, 2]))

    module = Reaching()
    tf.saved_model.save(module, str(tmp_path / "reaching"), signatures=module.serve.get_concrete_function())
    line = refused(tmp_path / "reaching")
    assert "reaches files or runs Python: remove it, or give --trust-source" in line
    assert ("EagerPyFunc" if operation == "py_function" else "ReadFile") in line


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("operation", ["SaveV2", "RestoreV2", "SummaryWriter"])
def test_a_saved_model_that_writes_or_reads_files_when_it_answers(
    operation: str, nested: bool, refused: Refused, tmp_path: Path
) -> None:
    import tensorflow as tf  # noqa: PLC0415

    def reach(image: Any) -> Any:
        if operation == "SaveV2":
            tf.raw_ops.SaveV2(prefix="/tmp/x", tensor_names=["x"], shape_and_slices=[""], tensors=[image])
        elif operation == "RestoreV2":
            (found,) = tf.raw_ops.RestoreV2(
                prefix="/tmp/x", tensor_names=["x"], shape_and_slices=[""], dtypes=["float"]
            )
            image += tf.reduce_sum(found)
        else:
            handle = tf.raw_ops.SummaryWriter(shared_name="", container="")
            tf.raw_ops.WriteRawProtoSummary(writer=handle, step=tf.constant(0, tf.int64), tensor=tf.constant(""))
        return image

    class Reaching(tf.Module):  # type: ignore[misc, name-defined]  # tensorflow has no types
        def __init__(self) -> None:
            self.scale = tf.Variable(1.0)  # so that the saver's own functions are there

        @tf.function(input_signature=[tf.TensorSpec([None, 32, 32, 3], tf.float32, name="image")])
        def serve(self, image: Any) -> Any:
            image = tf.function(reach)(image) if nested else reach(image)
            return tf.nn.softmax(tf.reduce_mean(image * self.scale, [1, 2]))

    module = Reaching()
    tf.saved_model.save(module, str(tmp_path / "reaching"), signatures=module.serve.get_concrete_function())
    line = refused(tmp_path / "reaching")
    assert "reaches files or runs Python" in line
    assert f"({operation})" in line


def test_a_saved_model_that_writes_files_behind_a_sparse_output(refused: Refused, tmp_path: Path) -> None:
    import tensorflow as tf  # noqa: PLC0415

    v1 = tf.compat.v1
    with v1.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        image = v1.placeholder(tf.float32, [None, 32, 32, 3], name="image")
        written = {"prefix": str(tmp_path / "written"), "tensor_names": ["x"], "shape_and_slices": [""]}
        with graph.control_dependencies([tf.raw_ops.SaveV2(**written, tensors=[tf.constant(1.0)])]):
            output = tf.sparse.from_dense(tf.nn.softmax(tf.reduce_mean(image, [1, 2])))
        infos = [{name: v1.saved_model.build_tensor_info(one)} for name, one in (("image", image), ("p", output))]
        signature = v1.saved_model.build_signature_def(*infos, "serving")
        builder = v1.saved_model.Builder(str(tmp_path / "sparse"))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
    assert "output 'p' is no plain tensor: export it with model.export(folder)" in refused(tmp_path / "sparse")
    assert not list(tmp_path.glob("written*"))


def test_a_saved_model_that_writes_files_where_it_should_read_its_variables(
    keras: Any, refused: Refused, tmp_path: Path
) -> None:
    from tensorflow.core.protobuf import saved_model_pb2  # noqa: PLC0415

    folder = tmp_path / "restoring"
    sources.functional(keras).export(folder, verbose=False)
    stored = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    saver = stored.meta_graphs[0].saver_def
    saver.restore_op_name = saver.save_tensor_name.split(":")[0]
    (folder / "saved_model.pb").write_bytes(stored.SerializeToString())
    assert "(SaveV2) reaches files" in refused(folder)


def test_every_operation_of_tensorflow_that_is_told_a_file_an_address_or_a_program_is_refused() -> None:
    from tensorflow.core.framework import op_def_pb2, types_pb2  # noqa: PLC0415
    from tensorflow.python.client import pywrap_tf_session  # noqa: PLC0415

    telling = re.compile("file|path|dir(?!ection)|address|prefix|graph_def|region")
    found = pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())
    told = set()
    for op in op_def_pb2.OpList.FromString(found).op:
        inputs = [each.name for each in op.input_arg if each.type == types_pb2.DT_STRING]
        if any(
            map(telling.search, inputs + [each.name for each in op.attr if each.type in ("string", "list(string)")])
        ):
            told.add(op.name)
    assert {"ReadFile", "DatasetFromGraph", "SaveV2", "LMDBDataset", "ImmutableConst"} <= told
    assert {name for name in told if not UNSAFE.fullmatch(name) and not SAVER.fullmatch(name)} == set()


# ---- a network not met before


@pytest.mark.parametrize("raised", [KeyError("Split_7:1"), np.linalg.LinAlgError("not positive definite")])
def test_what_nobody_foresaw_while_quantising_is_named(
    raised: Exception, saved: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise raised

    monkeypatch.setattr(pipeline, "centre", failing)
    line = refused(saved)
    assert f"small.keras cannot be quantised ({type(raised).__name__}: {raised}): please report it" in line


def test_too_little_memory_is_told_with_what_takes_less(
    saved: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pipeline, "centre", failing)
    assert "out of memory: calibrate on fewer photos (--calibration)" in refused(saved)


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "no space left for temporary files: free some, or set TMPDIR",
        ),
        (MemoryError(), "out of memory: calibrate on fewer photos"),
    ],
)
def test_a_full_disk_or_memory_while_exporting_is_told(
    raised: Exception, message: str, saved: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise raised

    monkeypatch.setattr(export, "by_function", failing)
    assert message in refused(saved)


@pytest.mark.parametrize("raised", [MemoryError, KeyboardInterrupt, OSError, ConvertError, GateRefusedError])
def test_what_is_dealt_with_elsewhere_passes(
    raised: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise raised

    monkeypatch.setattr(pipeline, "search", failing)
    options, nothing = pipeline.Options(tmp_path, "x", tmp_path), Photos((), (), (), "", ())
    with pytest.raises(raised) as caught:
        pipeline.quantise(options, Contract(8, 8), nothing, tmp_path, Progress(quiet=True))
    assert caught.type is raised


def test_every_policy_of_keras_that_quantises_is_known(keras: Any) -> None:
    from keras.src.dtype_policies import dtype_policy  # noqa: PLC0415  the public module lacks some

    base = dtype_policy.QuantizedDTypePolicy
    names = [name for name, found in vars(dtype_policy).items() if isinstance(found, type) and issubclass(found, base)]
    assert len(names) > 3
    for name in names:
        with pytest.raises(ConvertError, match="was quantised to"):
            refuse_quantised(Path("x"), [{"class_name": name, "config": None}])


@pytest.mark.parametrize("policy", ["int8", "float8"])
def test_a_model_that_keras_has_quantised_itself(policy: str, keras: Any, refused: Refused, tmp_path: Path) -> None:
    model = sources.trained(keras)
    for layer in model.layers[1:]:  # not the input
        with suppress(NotImplementedError):
            layer.quantize(policy)
    model.save(tmp_path / "quantised.keras")
    line = refused(tmp_path / "quantised.keras")
    assert policy in line
    assert "save the float model" in line


# ---- photos


def test_an_unreadable_photo_is_named(saved: Path, photos: Path, refused: Refused, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "images")
    (tmp_path / "images" / "evaluation" / "dark red" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    assert "broken.jpg cannot be used" in refused(saved, images=tmp_path / "images")


def test_photos_are_read_before_the_long_work_begins(
    saved: Path, photos: Path, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "quantise", lambda *_: pytest.fail("it has begun"))
    shutil.copytree(photos, tmp_path / "images")
    (tmp_path / "images" / "evaluation" / "dark red" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    assert "broken.jpg cannot be used" in refused(saved, images=tmp_path / "images")


def test_too_few_photos(saved: Path, refused: Refused, tmp_path: Path) -> None:
    assert "at least 16 are needed" in refused(saved, images=sources.write_photos(tmp_path / "few", [3] * 4))


def test_more_class_folders_than_outputs(saved: Path, photos: Path, refused: Refused, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "images")
    (tmp_path / "images" / "training" / "fifth").mkdir()
    assert re.search(r"has 5 class folders \(.+\), the model 4 outputs", refused(saved, images=tmp_path / "images"))


def test_labels_of_another_model(saved: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("a\nb\n")
    assert "names 2 classes, the model has 4 outputs" in refused(saved, "--labels", str(tmp_path / "labels"))


@pytest.mark.parametrize(("wrong", "right"), [("-1,1", "0,1"), ("0,255", "-1,1"), ("0,1", "0,255"), ("0,1", "-1,1")])
def test_a_wrong_input_range_is_found_on_labelled_photos(
    wrong: str, right: str, keras: Any, refused: Refused, tmp_path: Path
) -> None:
    sources.trained(keras, input_range=right).save(tmp_path / "ranged.keras")
    line = refused(tmp_path / "ranged.keras", "--input-range", wrong)
    assert f"give --input-range={right}" in line


def test_labels_in_another_order_are_found_on_labelled_photos(saved: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("\n".join(reversed(sources.CLASSES)))
    line = refused(saved, "--labels", str(tmp_path / "labels"))
    assert "worse than by chance: give --labels in the order of the model's output" in line


# ---- command line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "Bad Name"], "'Bad Name' is no package name"),
        (["--name", "../up"], "is no package name"),
        (["--version", "0"], "'0' is no whole number from 1"),
        (["--version", "1.5"], "is no whole number from 1"),
        (["--calibration", "2"], "2 photos are too few to calibrate on: 16 at least"),
        (["--weight-bits", "4"], "invalid choice: 4"),
        (["--input-range", "0,2"], "invalid choice: '0,2'"),
        (["--input-range"], "expected one argument"),
        (["--gate-drop", "nan"], "'nan' is no number from 0 to 100"),
        (["--macs", "0"], "0 % of the multiplications leave no network"),
        (["--macs", "101"], "is no number from 0 to 100"),
        (["--gate-agreement", "-1"], "is no number from 0 to 100"),
        (["--gate-agreement", "most"], "'most' is no number from 0 to 100"),
        (["--resize", "lanczos"], "invalid choice: 'lanczos'"),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_nonsense_on_the_command_line(options: list[str], message: str, refused: Refused, tmp_path: Path) -> None:
    assert message in refused(tmp_path / "x.keras", *options)


def test_a_missing_images_folder(saved: Path, refused: Refused, tmp_path: Path) -> None:
    assert "no images folder" in refused(saved, images=tmp_path / "missing")


def test_a_models_folder_that_is_a_file(saved: Path, convert: Convert, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    outcome = convert(saved)
    assert outcome.status == 2
    assert outcome.err.startswith("convert: ")
    assert len(outcome.err.splitlines()) == 1
