"""An addition behind a product of codes becomes the product's own bias: a pass over a whole float tensor less.

`convert.qdq` writes such a product as MatMul, to which ONNX Runtime fuses no addition. The chain MatMulInteger, Cast,
Mul by a scale a channel, Add it fuses to one MatMulIntegerToFloat, which adds while it writes, where the scale is the
product of two, as in dynamic quantisation, for which that fusion was made (`MatMulIntegerToFloatFusion`).
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from convert.graph import Array, add_constant, constants, drop_unread, replace
from convert.shifts import channelwise

ONE = "one"  # float32 [1], the scale of codes that a scale a channel already holds


class Biased(NamedTuple):
    """A product of codes, its Transpose back to channels first, and the addition that alone reads it."""

    product: NodeProto
    back: NodeProto
    add: NodeProto


def absorb(model: ModelProto) -> ModelProto:
    """A graph written by `convert.qdq` with every biased product as one chain, in place."""
    values, made = constants(model), {node.output[0]: node for node in model.graph.node}
    found = biased(model, values, made)
    for one in found:
        replace(model, one, chain(model, one, values, made))
    nodes = [*(one_of(model.graph.input[0].name) if found else []), *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unread(model)
    return model


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


def one_of(entry: str) -> list[NodeProto]:
    """ONE as the sign of the batch size: of two constants ONNX Runtime would fold the product, and fuse no chain."""
    return [
        helper.make_node("Shape", [entry], ["batch_size"], "batch_size", start=0, end=1),
        helper.make_node("Sign", ["batch_size"], ["batch_size_sign"], "batch_size_sign"),
        helper.make_node("Cast", ["batch_size_sign"], [ONE], ONE, to=TensorProto.FLOAT),
    ]


def chain(
    model: ModelProto, found: Biased, values: Mapping[str, Array], made: Mapping[str, NodeProto]
) -> list[NodeProto]:
    """Nodes in place of a biased product."""
    product, back, add = found
    name, weight = product.name, made[product.input[1]]
    codes = made[made[product.input[0]].input[0]]  # DequantizeLinear, behind Transpose
    unit = values[weight.input[1]].astype(np.float64) * values[codes.input[1]]
    scale = add_constant(model, f"{name}_unit", unit.astype(np.float32))
    bias = add_constant(model, f"{name}_bias", values[channelwise(add, values)].reshape(-1))
    rows, sums, floats, whole, scaled, shifted = (
        f"{name}_{part}" for part in ("codes", "sums", "floats", "scale", "scaled", "shifted")
    )
    return [
        helper.make_node("Transpose", [codes.input[0]], [rows], rows, perm=[0, 2, 3, 1]),
        helper.make_node("MatMulInteger", [rows, weight.input[0], codes.input[2]], [sums], name),
        helper.make_node("Cast", [sums], [floats], floats, to=TensorProto.FLOAT),
        helper.make_node("Mul", [ONE, scale], [whole], whole),
        helper.make_node("Mul", [floats, whole], [scaled], scaled),
        helper.make_node("Add", [scaled, bias], [shifted], shifted),
        helper.make_node("Transpose", [shifted], [add.output[0]], back.name, perm=[0, 3, 1, 2]),
    ]
