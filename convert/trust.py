"""What a Keras file may hold without being trusted: numbers and the names of known layers, never code or other files.

Keras 3 builds a file's objects in its safe mode. The last Keras 2 looks up whatever class and function a file names and
runs stored bytecode of wrappers, so of its files only what is listed here is built.
"""

import re
import zipfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from convert.errors import ConvertError

LAMBDAS = {"Lambda", "__lambda__"}
CALLS = {"TFOpLambda", "SlicingOpLambda"}
_KERAS_2 = """
    Functional Model Sequential InputLayer Policy TensorShape __tuple__ __ellipsis__ function

    Activation ActivityRegularization Add AdditiveAttention AlphaDropout Attention Average AveragePooling1D
    AveragePooling2D AveragePooling3D BatchNormalization CenterCrop Concatenate Conv1D Conv2D Conv2DTranspose Conv3D
    Cropping2D Dense DepthwiseConv2D Dot Dropout ELU EinsumDense Embedding Flatten GaussianDropout GaussianNoise
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalMaxPooling1D GlobalMaxPooling2D GroupNormalization
    LayerNormalization LeakyReLU LocallyConnected2D Masking MaxPooling1D MaxPooling2D MaxPooling3D Maximum Minimum
    MultiHeadAttention Multiply Normalization PReLU Permute RandomBrightness RandomContrast RandomCrop RandomFlip
    RandomHeight RandomRotation RandomTranslation RandomWidth RandomZoom ReLU RepeatVector Rescaling Reshape Resizing
    SeparableConv1D SeparableConv2D Softmax SpatialDropout1D SpatialDropout2D SpectralNormalization Subtract
    SyncBatchNormalization ThresholdedReLU TimeDistributed UnitNormalization UpSampling1D UpSampling2D ZeroPadding1D
    ZeroPadding2D

    Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity LecunNormal LecunUniform Ones Orthogonal
    RandomNormal RandomUniform TruncatedNormal VarianceScaling Zeros L1 L1L2 L2 OrthogonalRegularizer MaxNorm
    MinMaxNorm NonNeg RadialConstraint UnitNorm
"""
_ACTIVATIONS = """
    elu exponential gelu hard_sigmoid leaky_relu linear mish relu relu6 selu sigmoid silu softmax softplus softsign
    swish tanh
"""
KERAS_2 = CALLS | set(_KERAS_2.split())  # what a configuration stores, layers, and what layers are made with
ACTIVATIONS = set(_ACTIVATIONS.split())
INITIALIZERS = "tensorflow.python.ops.init_ops_v2"  # TensorFlow's own, which Keras 2 stored
PURE = re.compile(  # TensorFlow functions of tensors alone: of the samplers in nn, one reads a file
    r"(?!nn\.\w*sampler)(math|nn|image|linalg|signal|__operators__)\.[a-z_]\w*"
    r"|(compat\.v1\.)?(cast|clip_by_value|concat|convert_to_tensor|expand_dims|gather|identity|ones_like|pad"
    r"|reshape|reverse|shape|size|split|squeeze|stack|stop_gradient|strided_slice|tile|transpose|unstack|where"
    r"|zeros_like)"
)
REMEDY = (
    "use built-in layers instead (Rescaling, for one), convert the SavedModel of model.export(folder), or give"
    " --trust-source if you know where the file is from"
)
INSTALLED = " and the layer's code is installed here"


def refuse_code(stored: Iterable[dict[str, Any]], *, legacy: bool) -> None:
    """Name the first object that holds Python code (Lambda) or needs it (custom classes) or, in a file of Keras 2, is
    not known to compute on tensors alone.

    Args:
        stored: every object of the architecture that names its class.
    """
    for layer in stored:
        if layer["class_name"] in LAMBDAS or foreign(layer):
            remedy = REMEDY if layer["class_name"] in LAMBDAS else REMEDY + INSTALLED
            raise ConvertError(
                f"layer {named(layer)} runs code of its own, which is not loaded from model files: {remedy}"
            )
        if legacy and not listed(layer):
            raise ConvertError(
                f"layer {named(layer)} is not known to be harmless in a file of Keras 2: {REMEDY}{INSTALLED}"
            )


def listed(layer: dict[str, Any]) -> bool:
    """Whether an object of a file of Keras 2 is of a known class under its own name, and calls known functions only."""
    name, config = layer["class_name"], layer.get("config")
    if name not in KERAS_2 or layer.get("registered_name") not in {None, name}:
        return False
    if name == "function":
        return isinstance(config, str) and config in ACTIVATIONS
    return name not in CALLS or bool(isinstance(config, dict) and PURE.fullmatch(str(config.get("function"))))


def refuse_links(path: Path) -> None:
    """Refuse weights of a file of Keras 2 that are in another file: they would end up in the package."""
    import h5py  # noqa: PLC0415

    def elsewhere(name: str) -> str | None:
        if isinstance(file.get(name, getlink=True), h5py.ExternalLink):
            return name
        found = file.get(name)
        return name if isinstance(found, h5py.Dataset) and (found.external or found.is_virtual) else None

    try:
        with ExitStack() as stack:
            opened: Any = path
            if path.suffix == ".keras":  # as tf_keras tells them apart: HDF5 with an archive behind it is both
                opened = stack.enter_context(stack.enter_context(zipfile.ZipFile(path)).open("model.weights.h5"))
            file = stack.enter_context(h5py.File(opened))
            name = file.visit_links(elsewhere)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ConvertError(f"{path} is damaged ({type(error).__name__}): save it again") from None
    if name:
        raise ConvertError(f"{path}: {name} is in another file, which is not read: save the model as one file")


def foreign(layer: dict[str, Any]) -> bool:
    """Whether a serialised object is of a class that Keras does not have."""
    if layer.get("module") is None and layer.get("registered_name"):  # of a script or notebook
        return True
    module = str(layer.get("module") or "keras")
    custom = ">" in f"{layer['class_name']}{layer.get('registered_name')}"
    known = module.split(".", 1)[0] in {"keras", "tf_keras", "builtins"} or module == INITIALIZERS
    return custom or not known


def named(layer: dict[str, Any]) -> str:
    """A serialised object's name and class."""
    inner = layer.get("config")
    name = inner.get("name", layer["class_name"]) if isinstance(inner, dict) else layer["class_name"]
    return f"{name!r} ({layer['class_name']})"
