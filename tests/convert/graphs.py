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
