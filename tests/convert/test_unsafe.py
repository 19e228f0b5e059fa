"""Code in sources: named, not run, and no file read or written by it."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from convert.errors import ConvertError
from convert.source import open_source
from convert.unsafe import SAVER, UNSAFE
from tests.convert import sources
from tests.convert.conftest import Outcome

Convert = Callable[..., Outcome]
Refused = Callable[..., str]


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
