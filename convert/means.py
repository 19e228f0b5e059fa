"""The mean over all positions as a product with a row of 1 / (H W): ONNX Runtime's ReduceMean is quick over neighbours
only, and results of int8 kernels lie channels last, so it would transpose a whole float tensor before."""

import numpy as np
from onnx import ModelProto, NodeProto, helper

from convert.graph import add_constant, attribute, constants, replace, sizes


def multiply(model: ModelProto) -> ModelProto:
    """The graph with each mean over H and W of `[N, C, H, W]` as such a product, in place."""
    values, shapes = constants(model), sizes(model)
    for node in [node for node in model.graph.node if node.op_type == "ReduceMean"]:
        axes = values[node.input[1]].tolist() if len(node.input) > 1 and node.input[1] in values else []
        size = shapes.get(node.input[0], [])
        if axes == [2, 3] and not attribute(node, "keepdims", 1) and len(size) == 4 and all(size[1:]):
            replace(model, [node], product(model, node, *size[1:]))
    return model


def product(model: ModelProto, node: NodeProto, channels: int, height: int, width: int) -> list[NodeProto]:
    """Nodes in place of a mean."""
    last, rows, mean = (f"{node.name}_{part}" for part in ("channels_last", "rows", "mean"))
    shape = add_constant(model, f"{rows}_shape", np.array([-1, height * width, channels]))
    row = add_constant(model, f"{mean}_row", np.full((1, height * width), 1 / (height * width), np.float32))
    axis = add_constant(model, f"{mean}_axis", np.array([1]))
    return [
        helper.make_node("Transpose", [node.input[0]], [last], last, perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", [last, shape], [rows], rows),
        helper.make_node("MatMul", [row, rows], [mean], mean),
        helper.make_node("Squeeze", [mean, axis], node.output, node.name),
    ]
