"""Shapes that an exported graph computes at run time (Flatten and Reshape layers) become constants.

The batch size is the only thing they can depend on, and Reshape has a constant for it: -1. What is left computes with
float tensors only, which is what quantisation can walk through.
"""

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from convert.errors import ConvertError
from convert.graph import Array, add_constant, drop_unread, looking, tidy

INTEGERS = {TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}
BATCHES = (1, 3)


def constant_shapes(model: ModelProto) -> ModelProto:
    """Replace integer tensors by constants, in place. `model` takes `image` uint8 `[N, H, W, 3]`.

    Raises:
        ConvertError: one of them depends on the pixels, or on the batch size in another way than a Reshape can.
    """
    typed = onnx.shape_inference.infer_shapes(model)
    outputs = {name for node in model.graph.node for name in node.output}
    names = [v.name for v in typed.graph.value_info if v.type.tensor_type.elem_type in INTEGERS and v.name in outputs]
    compared = {v.name for v in typed.graph.value_info if v.type.tensor_type.elem_type == TensorProto.BOOL}
    if not names:
        return model
    reshaped = [n.output[0] for n in model.graph.node if n.op_type == "Reshape" and n.input[1] in names]
    values = computed(model, [*names, *reshaped])
    for node in list(model.graph.node):
        for place, name in enumerate(node.input):
            if name in names and not set(node.output) <= set(names):
                reshape = node.op_type == "Reshape" and place == 1
                pair = [np.array(made.shape) for made in values[node.output[0]]] if reshape else values[name]
                constant = constant_of(*pair, reshape=reshape)
                if constant is None:
                    raise refusal(node, compares=name in compared)
                node.input[place] = add_constant(model, f"{name}_of_{node.name}", constant)
    drop_unread(model)
    return tidy(model)


def refusal(node: NodeProto, *, compares: bool) -> ConvertError:
    """What cannot be quantised, and what to do."""
    if compares:
        return ConvertError(
            f"node {node.name!r} ({node.op_type}) takes a comparison of values: give the source layers and activations"
            " that compare nothing (relu, not a relu with a threshold)"
        )
    return ConvertError(
        f"node {node.name!r} ({node.op_type}) takes sizes computed at run time: give its layers fixed shapes"
    )


def computed(model: ModelProto, names: list[str]) -> dict[str, list[Array]]:
    """Values of the named tensors for a black image and for a batch of random ones."""
    look, rng = looking(model, names, 1), np.random.default_rng(0)
    _, height, width, colours = (size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim)
    found: list[list[Array]] = []
    for batch, top in zip(BATCHES, (1, 256), strict=True):
        images = rng.integers(0, top, (batch, height, width, colours)).astype(np.uint8)
        found.append(look(images))
    return {name: list(pair) for name, *pair in zip(names, *found, strict=True)}


def constant_of(one: Array, many: Array, *, reshape: bool) -> Array | None:
    """The constant that stands for both values: equal, or differing by the batch size in one entry of a shape."""
    if np.array_equal(one, many):
        return one
    if not reshape or one.shape != many.shape:
        return None
    follows = one != many
    batch_axis = follows.sum() == 1 and np.array_equal(one[follows] * BATCHES[1], many[follows] * BATCHES[0])
    return np.where(follows, -1, one) if batch_axis else None
