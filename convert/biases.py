"""An addition behind a product of codes becomes the product's own bias: a pass over a whole float tensor less.

`convert.qdq` writes such a product as MatMul, which has no bias, and ONNX Runtime fuses none to it. Gemm has one, s32
in units of input scale times weight scale as a convolution's is (QGemm). It takes matrices: positions become rows and
come back, by Reshape, which copies nothing.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, helper, shape_inference

from convert.graph import Array, add_constant, constants, like, replace
from convert.shifts import channelwise

Sizes = Mapping[str, list[int]]  # of tensors, without N


class Biased(NamedTuple):
    """A product of codes, its Transpose back to channels first, and the addition that alone reads it."""

    product: NodeProto
    back: NodeProto
    add: NodeProto


def absorb(model: ModelProto) -> ModelProto:
    """A graph written by `convert.qdq` with every biased product as a Gemm, in place."""
    values, made = constants(model), {node.output[0]: node for node in model.graph.node}
    typed = shape_inference.infer_shapes(model).graph.value_info
    sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:] for value in typed}
    for found in biased(model, values, made):
        product = found.product
        scale = values[made[made[product.input[0]].input[0]].input[1]]  # of the u8 codes, behind Transpose
        unit = values[made[product.input[1]].input[1]].astype(np.float64) * scale
        bias = values[channelwise(found.add, values)].reshape(-1)
        replace(model, found, gemm(model, found, np.rint(bias / unit), unit, sizes))
    read = {name for node in model.graph.node for name in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in read]
    graph = model.graph
    return like(model, helper.make_graph(graph.node, graph.name, graph.input, graph.output, weights))


def biased(model: ModelProto, values: Mapping[str, Array], made: Mapping[str, NodeProto]) -> list[Biased]:
    """Every biased product of the graph."""
    reads = Counter(name for node in model.graph.node for name in node.input)
    found = []
    for add in [node for node in model.graph.node if node.op_type == "Add" and channelwise(node, values)]:
        back = made.get(next(name for name in add.input if name not in values))
        product = made.get(back.input[0]) if back is not None and back.op_type == "Transpose" else None
        if back is not None and product is not None and of_codes(product, made) and reads[back.output[0]] == 1:
            found.append(Biased(product, back, add))
    return found


def of_codes(node: NodeProto, made: Mapping[str, NodeProto]) -> bool:
    """Whether this is a product that `convert.qdq` wrote: a model's own has float weights."""
    weight = made.get(node.input[1]) if node.op_type == "MatMul" else None
    return weight is not None and weight.op_type == "DequantizeLinear"


def gemm(model: ModelProto, found: Biased, codes: Array, unit: Array, sizes: Sizes) -> list[NodeProto]:
    """Nodes in place of a biased product. `codes` is the bias in `unit`s."""
    product, back, add = found
    name, rows = product.name, f"{product.name}_rows"
    inner = add_constant(model, f"{rows}_shape", np.array([-1, sizes[product.input[0]][-1]]))
    whole = add_constant(model, f"{name}_shape", np.array([-1, *sizes[product.output[0]]]))
    bias = [
        add_constant(model, f"{name}_bias_codes", np.clip(codes, -(2**31), 2**31 - 1).astype(np.int32)),
        add_constant(model, f"{name}_bias_scale", unit.astype(np.float32)),
    ]
    return [
        helper.make_node("Reshape", [product.input[0], inner], [rows], rows),
        helper.make_node("DequantizeLinear", bias, [f"{name}_bias_dq"], f"{name}_bias_dq", axis=0),
        helper.make_node("Gemm", [rows, product.input[1], f"{name}_bias_dq"], [f"{rows}_out"], name),
        helper.make_node("Reshape", [f"{rows}_out", whole], [product.output[0]], f"{name}_whole"),
        helper.make_node("Transpose", [product.output[0]], [add.output[0]], back.name, perm=[0, 3, 1, 2]),
    ]
