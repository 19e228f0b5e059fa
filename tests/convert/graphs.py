"""Small ONNX graphs and how they answer."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from convert.graph import Array, session
from convert.ranges import Range

ENTRY = Range(1 / 128, 128)  # of the pixels of `network`


def graph(
    nodes: Sequence[NodeProto],
    constants: Mapping[str, Array],
    shape: Sequence[int],
    *,
    pixels: bool = False,
    axes: int = 4,
) -> ModelProto:
    """A model from `image` `[N, *shape]` (uint8 with `pixels`) to `probabilities`; nodes are named by position."""
    for index, node in enumerate(nodes):
        node.name = node.name or f"{node.op_type}_{index}"
    kind = TensorProto.UINT8 if pixels else TensorProto.FLOAT
    entry = helper.make_tensor_value_info("image", kind, ["N", *shape])
    result = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None] * axes)
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    found = helper.make_graph(list(nodes), "test", [entry], [result], weights)
    return helper.make_model(found, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: ModelProto, image: Array, *outputs: str) -> list[NDArray[np.float32]]:
    """Answers, or the named tensors."""
    copy = ModelProto()
    copy.CopyFrom(model)
    known = {output.name for output in copy.graph.output}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs if name not in known)
    found: list[NDArray[np.float32]] = session(copy, 1).run(list(outputs) or None, {"image": image})
    return found


def operators(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def fused(model: ModelProto) -> Counter[str]:
    """Operators that ONNX Runtime runs for a model."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = f"{folder}/optimised.onnx"
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Counter(one.op_type for one in onnx.load(f"{folder}/optimised.onnx").graph.node)


def pictures(count: int = 4, size: int = 12) -> NDArray[np.uint8]:
    """Random uint8 `[count, size, size, 3]`."""
    return np.random.default_rng(5).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def network() -> ModelProto:
    """Convolution, depthwise, projection with a shortcut, pooling, dense: a prepared graph of pixels' values."""
    nodes = [
        helper.make_node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w0", "b0"], ["c0"], strides=[2, 2], pads=[0, 0, 1, 1]),
        helper.make_node("Clip", ["c0", "zero", "six"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["c1", "zero", "six"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"]),
        helper.make_node("Add", ["r0", "c2"], ["a"]),
        helper.make_node("Relu", ["a"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("ReduceMean", ["m", "axes"], ["g"], keepdims=0),
        helper.make_node("Gemm", ["g", "w3", "b3"], ["l"]),
        helper.make_node("Softmax", ["l"], ["probabilities"], axis=1),
    ]
    weights: dict[str, Array] = {
        "w0": normal(8, 3, 3, 3) * 0.5,
        "b0": normal(8, seed=1),
        "w1": normal(8, 1, 3, 3, seed=2) * 0.5,
        "b1": normal(8, seed=3),
        "w2": normal(8, 8, 1, 1, seed=4) * 0.4,
        "w3": normal(8, 5, seed=5),
        "b3": normal(5, seed=6),
    }
    scales = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32), "axes": np.array([2, 3])}
    return graph(nodes, weights | scales, [12, 12, 3], axes=2)


def batches() -> list[NDArray[np.uint8]]:
    """Six of eight pictures for it."""
    rng = np.random.default_rng(9)
    base = rng.integers(0, 256, (6, 8, 1, 1, 3)) * 0.6 + rng.integers(0, 100, (6, 8, 12, 12, 3))
    return list(np.clip(base, 0, 255).astype(np.uint8))
