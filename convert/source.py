"""Open what the user has (`.keras`, `.h5`, a SavedModel folder) without running its code. What Keras 2 wrote is loaded
by its last release (`tf_keras`): Keras 3 misreads much of it, every DepthwiseConv2D for one."""

import hashlib
import json
import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import ConvertError
from convert.trust import foreign, named, refuse_code, refuse_links
from convert.unsafe import refuse_unsafe_ops

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # which is announced on standard error whatever the log level
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

PREDICTED = 4  # images a call
OTHER_PRECISIONS = {"mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"}


@dataclass(frozen=True)
class Source:
    """An opened source. `call` maps float32 `[N, height, width, 3]` tensors to `[N, classes]`; `keras` is a model of
    Keras 3 or None."""

    path: Path
    kind: str
    sha256: str
    height: int
    width: int
    classes: int
    call: Callable[[Any], Any]
    keras: Any

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The source framework's own answers: the reference for parity. Few images at a time, because Keras keeps every
        layer's output to the end."""
        few = (images[start : start + PREDICTED] for start in range(0, len(images), PREDICTED))
        try:
            return np.concatenate([np.asarray(self.call(batch)).astype(np.float32) for batch in few])
        except MemoryError:
            raise
        except Exception as error:  # whatever the layers raise
            raise ConvertError(
                f"{self.path} does not run on {images.shape[1:]} images ({first_line(error)}): save"
                " one that model.predict runs on such images"
            ) from None


def open_source(path: Path, *, trust: bool) -> Source:
    """Open a model and check that it is an image classifier. `trust` allows code stored in it to run.

    Raises:
        ConvertError: missing, corrupt, unsafe, or no image classifier.
    """
    if not path.exists():
        raise ConvertError(f"no model at {path}: give a .keras or .h5 file, or a SavedModel folder")
    if path.name.encode(errors="ignore").decode() != path.name:
        raise ConvertError(f"{path.name!r} is no name in UTF-8, as the package stores it: rename it")
    quiet()
    if path.is_dir():
        if not (path / "saved_model.pb").is_file():
            raise ConvertError(f"{path} holds no saved_model.pb: give a SavedModel folder, a .keras or a .h5 file")
        return open_saved_model(path, trust=trust)
    path.open("rb").close()  # what the system refuses is not "damaged", as h5py and zipfile would have it
    if path.suffix != ".keras" and path.suffix.lower() not in {".h5", ".hdf5"}:  # tf_keras reads .KERAS as HDF5
        raise ConvertError(f"{path} is no .keras or .h5 file: save the model with model.save('NAME.keras')")
    return open_keras(path, trust=trust)


def quiet() -> None:
    """The libraries' chatter is not for the user."""
    for name in ("tensorflow", "tf2onnx", "absl", "h5py"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def open_keras(path: Path, *, trust: bool) -> Source:
    """A `.keras` or `.h5` file of Keras 3 or before."""
    kind = "keras" if path.suffix == ".keras" else "h5"
    stored, legacy = read_layers(path, kind)
    if not trust:
        refuse_code(stored, legacy=legacy)
    if legacy and not trust:
        refuse_links(path)
    refuse_quantised(path, stored)
    keras = framework(legacy=legacy)
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=not trust)
    except MemoryError:
        raise
    except Exception as error:  # any class, from keras, h5py, zipfile or json, for a damaged or foreign file
        if layer := next(filter(foreign, stored), None):
            raise ConvertError(
                f"{path}: the code of layer {named(layer)} is not in the file: convert the SavedModel"
                " that model.export(folder) writes, or use built-in layers"
            ) from None
        raise ConvertError(
            f"{path} cannot be loaded by Keras {keras.__version__} ({first_line(error)}): save it again, or export a"
            " SavedModel where it still loads (model.export(folder))"
        ) from None
    try:
        model = in_float32(model, trust=trust, legacy=legacy)
    except Exception as error:  # whatever rebuilding a model from its configuration meets
        raise ConvertError(
            f"{path} computes in another precision and cannot be rebuilt in float32 ({first_line(error)}): save it"
            " with the dtype policy float32"
        ) from None
    for layer in model._flatten_layers() if legacy else ():
        if layer.__class__.__name__ == "LayerNormalization":  # else a batch normalisation of as many channels as rows
            layer._fused = False
    height, width, classes = check_shapes(path, getattr(model, "inputs", None), getattr(model, "outputs", None))
    call = caller(model, getattr(model, "_nested_inputs" if legacy else "_inputs_struct", None))
    return Source(path, kind, hash_of(path), height, width, classes, call, None if legacy else model)


def caller(model: Any, entries: Any) -> Callable[[Any], Any]:
    """A model of one input and one output as a function, also where either lies in a dictionary."""

    def call(images: Any) -> Any:
        found = model(dict.fromkeys(entries, images) if isinstance(entries, dict) else images, training=False)
        return next(iter(found.values())) if isinstance(found, dict) else found

    return call


def framework(*, legacy: bool) -> Any:
    """Keras 3, or the last release of Keras 2. Either takes seconds: not before it is needed."""
    if legacy:
        import tf_keras  # noqa: PLC0415

        return tf_keras
    import keras  # noqa: PLC0415

    return keras


def read_layers(path: Path, kind: str) -> tuple[list[dict[str, Any]], bool]:
    """Every object of the architecture as stored, read without building anything; whether Keras 2 wrote it."""
    try:
        config, version = read_config(path, kind)
        stored = list(layers(config))
    except ConvertError:
        raise
    except Exception as error:  # any class, from zipfile and its decompressors, h5py or json, for a damaged or odd file
        raise ConvertError(
            f"{path} is damaged or no Keras file ({type(error).__name__}: {first_line(error)}): save it again"
        ) from None
    if version.startswith("1."):
        raise ConvertError(
            f"{path} is of Keras {version}: load it with Keras 2 (TensorFlow 2.15, say) and save it again"
        )
    return stored, version.startswith("2.")


def read_config(path: Path, kind: str) -> tuple[Any, str]:
    """The architecture's JSON, and the version of Keras that wrote it (HDF5 without one is by the first releases). How
    the model was trained is left out: it is not loaded, and may name losses of the user's own."""
    import h5py  # noqa: PLC0415

    if kind == "keras":
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read("metadata.json")) if "metadata.json" in archive.namelist() else {}
            config = json.loads(archive.read("config.json"))
            config.pop("compile_config", None)
            return config, str(about.get("keras_version", "3."))
    with h5py.File(path) as file:
        if "model_config" not in file.attrs:
            raise ConvertError(f"{path} holds weights only: save the whole model with model.save('NAME.keras')")
        version = file.attrs.get("keras_version", "1.")  # bytes until Keras 2.3
        return json.loads(file.attrs["model_config"]), version.decode() if isinstance(version, bytes) else str(version)


def layers(config: Any) -> Iterator[dict[str, Any]]:
    """Every serialised object that names a class, at any depth."""
    if isinstance(config, dict):
        if isinstance(config.get("class_name"), str):
            yield config
        for value in config.values():
            yield from layers(value)
    elif isinstance(config, list):
        for value in config:
            yield from layers(value)


def refuse_quantised(path: Path, stored: Iterable[dict[str, Any]]) -> None:
    """Keras' own int8, int4 and float8 policies have rounded the weights already, and round activations as they run."""
    for policy in stored:
        if re.fullmatch(r"(Quantized|GPTQ|AWQ|Int4)\w*DTypePolicy", policy["class_name"]):
            config = policy.get("config")
            mode = config.get("mode") if isinstance(config, dict) else policy["class_name"]
            raise ConvertError(
                f"{path} was quantised to {mode} by Keras: save the float model that it was made from (before"
                " model.quantize), for rounding twice costs accuracy"
            )


def in_float32(model: Any, *, trust: bool, legacy: bool) -> Any:
    """The same model with every dtype policy float32 (mixed_float16 and the like compute in half precision, float64 in
    double)."""
    policies = {str(layer.dtype_policy.name) for layer in model._flatten_layers()}
    if policies <= {"float32"}:
        return model
    with safe_mode(trust=trust, legacy=legacy):
        plain = model.__class__.from_config(single(model.get_config()))
    plain.set_weights([np.asarray(weight).astype(np.float32) for weight in model.get_weights()])
    return plain


def safe_mode(*, trust: bool, legacy: bool) -> AbstractContextManager[None]:
    """Whether Keras 3 refuses code, as in load_model; Keras 2 has no such mode outside of it."""
    if legacy:
        return nullcontext()
    from keras.src.saving.serialization_lib import SafeModeScope  # noqa: PLC0415  public nowhere

    scope: AbstractContextManager[None] = SafeModeScope(not trust)
    return scope


def single(config: Any) -> Any:
    """A configuration with the names of other precisions replaced."""
    if isinstance(config, dict):
        return {key: single(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(single(value) for value in config)
    return "float32" if isinstance(config, str) and config in OTHER_PRECISIONS else config


def check_shapes(path: Path, inputs: Any, outputs: Any) -> tuple[int, int, int]:
    """height, width and classes of an image classifier."""
    if not inputs or not outputs:
        raise ConvertError(f"{path} has no defined input: give it an Input layer with the image size and save it again")
    if len(inputs) != 1 or len(outputs) != 1:
        raise ConvertError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs: an image classifier has one each"
        )
    entry, result = shape_of(inputs[0]), shape_of(outputs[0])
    if len(entry) != 4 or entry[3] != 3:
        raise ConvertError(
            f"{path} takes {entry}, not [N, height, width, 3]: only colour images, channels last, are served"
        )
    if entry[1] is None or entry[2] is None:
        raise ConvertError(f"{path} has no fixed image size ({entry}): save it with the input shape it was trained on")
    if len(result) != 2 or result[1] is None or result[1] < 2:
        raise ConvertError(f"{path} gives {result}, not [N, classes] with 2 classes or more: it is no image classifier")
    return int(entry[1]), int(entry[2]), int(result[1])


def shape_of(tensor: Any) -> tuple[int | None, ...]:
    """A tensor's shape; empty where not even the number of axes is known."""
    return () if getattr(tensor.shape, "rank", 0) is None else tuple(tensor.shape)


def open_saved_model(path: Path, *, trust: bool) -> Source:
    """A SavedModel folder with a serving signature."""
    import tensorflow as tf  # noqa: PLC0415

    try:
        if not trust:
            refuse_unsafe_ops(path)
        loaded = tf.saved_model.load(str(path))
        signatures = dict(loaded.signatures)
    except ConvertError:
        raise
    except Exception as error:  # any class, from protobuf or tensorflow, for a damaged folder
        raise ConvertError(
            f"{path} cannot be loaded as a SavedModel ({first_line(error)}): export it again with model.export(folder)"
        ) from None
    signature = signatures.get("serving_default") or signatures.get("serve")
    if signature is None:
        raise ConvertError(f"{path} has no serving_default signature: export it with model.export(folder)")
    _, arguments = signature.structured_input_signature
    height, width, classes = check_shapes(path, list(arguments.values()), list(signature.structured_outputs.values()))
    ((name, spec),) = arguments.items()

    def call(images: Any) -> Any:
        found = signature(**{name: tf.cast(images, spec.dtype)})
        return next(iter(found.values()))

    call.loaded = loaded  # type: ignore[attr-defined]  # the variables live as long as this object does
    return Source(path, "savedmodel", hash_of(path), height, width, classes, call, None)


def hash_of(path: Path) -> str:
    """SHA-256 of a file, or over names and contents of a folder."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    names_and_hashes = "".join(f"{file.relative_to(path).as_posix()} {hash_of(file)}\n" for file in files)
    return hashlib.sha256(os.fsencode(names_and_hashes)).hexdigest()


def first_line(error: Exception) -> str:
    """An error's first line, cut to a length that can be read."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
