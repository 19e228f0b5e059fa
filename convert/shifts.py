"""Per-channel additions that can wait: carried down residual sums into the next addition of a constant.

ResNet V2 adds a bias behind every product, then the shortcut, and normalises the sum: x f + s. The normalisation takes
the biases of all products before it into its own s, exactly; an addition of a whole tensor a block is saved.
"""

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from convert.graph import Array, constants, like, rename


def carry(model: ModelProto) -> ModelProto:
    """A graph written by `convert.qdq` with its `[1, C, 1, 1]` additions as far down as linear steps lead."""
    values = constants(model)
    takers, weights = taking(model, values), list(model.graph.initializer)
    waiting, renamed, kept = dict[str, Array](), dict[str, str](), list[NodeProto]()
    for node in model.graph.node:
        out, constant = node.output[0], channelwise(node, values)
        shift = sum((waiting[name] for name in node.input if name in waiting), np.zeros(1))
        rename(node.input, renamed)
        if node.op_type == "Add" and constant and out in takers:
            waiting[out] = shift + values[constant]
            renamed[out] = next(name for name in node.input if name != constant)
            continue
        kept.append(node)
        if not shift.any():
            continue
        if node.op_type == "Add" and constant:
            total = (values[constant] + shift).astype(np.float32)
            weights.append(numpy_helper.from_array(total, f"{node.name}_carried"))
            rename(node.input, {constant: f"{node.name}_carried"})
        else:
            waiting[out] = shift * values[constant] if constant else shift
    used = {name for node in kept for name in node.input}
    weights = [tensor for tensor in weights if tensor.name in used]
    graph = helper.make_graph(kept, model.graph.name, model.graph.input, model.graph.output, weights)
    return like(model, graph)


def taking(model: ModelProto, values: dict[str, Array]) -> set[str]:
    """Tensors whose constants a channel can wait: every reader adds one of its own, or hands them on to such."""
    read, refused = set[str](), {output.name for output in model.graph.output}
    for node in reversed(model.graph.node):
        out, constant = node.output[0], channelwise(node, values)
        adds = node.op_type == "Add" and constant
        linear = node.op_type in {"Add", "MaxPool", "Slice"} or (node.op_type == "Mul" and constant)
        if not (adds or (linear and out in read - refused)):
            refused.update(node.input)
        read.update(node.input)
    return read - refused


def channelwise(node: NodeProto, values: Mapping[str, Array]) -> str:
    """The name of the `[1, C, 1, 1]` constant that a node reads, empty without one."""
    found = (name for name in node.input if name in values)
    return next((name for name in found if values[name].ndim == 4 and values[name].shape[2:] == (1, 1)), "")
