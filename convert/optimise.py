"""Graph rewrites that change no answer and let int8 kernels take more of the graph."""

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from convert.graph import (
    Array,
    add_constant,
    attribute,
    bias_of,
    constants,
    pointwise,
    readers,
    replace,
    set_weights,
    sizes,
    tidy,
    weight_of,
    zeros_around,
)
from convert.ranges import Range
from convert.streams import split

MOST_BORDER = 12.0  # levels of 255 by which a folded input may be off at a padded border
MOST_GROWTH = 1.5  # times the multiplications of two convolutions that their product may have


@dataclass(frozen=True)
class Folded:
    """A graph ready to be quantised. With `entry` the input is u8 pixels of that range and feeds the graph as it is;
    without it the normalisation could not be folded and stays in float. `macs` is the share of the source's
    multiplications that is left."""

    model: ModelProto
    entry: Range | None
    macs: float = 1.0


def prepare(model: ModelProto) -> Folded:
    """All rewrites, on a copy."""
    copy = ModelProto()
    copy.CopyFrom(model)
    affine_to_depthwise(copy)
    merge_pointwise(copy)
    pads_into_pools(copy)
    entry = fold_input(copy)
    split(copy)
    return Folded(tidy(copy), entry)


def merge_pointwise(model: ModelProto) -> None:
    """Two 1x1 convolutions with nothing between them become one, whose matrix is the product of theirs.

    Exact, and the tensor between them, signed and of few channels, is not rounded. MobileNetV2 begins so: the first
    bottleneck has no shortcut, and is expanded again at once.
    """
    graph, results = model.graph, {output.name for output in model.graph.output}
    values = constants(model)
    for first in [node for node in graph.node if pointwise(node, values)]:
        following = readers(model, first.output[0])
        if first.output[0] in results or len(following) != 1 or not pointwise(following[0], constants(model)):
            continue
        second = following[0]
        inner, outer = (weight_of(model, node)[:, :, 0, 0].astype(np.float64) for node in (first, second))
        merged = outer @ inner
        if merged.size <= MOST_GROWTH * (inner.size + outer.size):
            bias = outer @ bias_of(model, first) + bias_of(model, second)
            set_weights(model, second, merged[:, :, None, None], bias)
            second.input[0] = first.input[0]
            graph.node.remove(first)


def pads_into_pools(model: ModelProto) -> None:
    """A border of zeros around what a Relu gives becomes the pooling's own border (the stem of a ResNet): the padded
    tensor need not be written. Exact: a border of zeros changes no maximum of numbers from zero up."""
    values, writers = constants(model), {name: node for node in model.graph.node for name in node.output}
    for pad in [node for node in model.graph.node if node.op_type == "Pad"]:
        before, following = writers.get(pad.input[0]), readers(model, pad.output[0])
        if before is None or before.op_type != "Relu" or [node.op_type for node in following] != ["MaxPool"]:
            continue
        (pool,), border = following, zeros_around(pad, values)
        kernel = attribute(pool, "kernel_shape", [])
        own = {one.name: helper.get_attribute_value(one) for one in pool.attribute if one.name != "auto_pad"}
        automatic = attribute(pool, "auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"}
        if border is None or automatic or own.get("dilations", [1, 1]) != [1, 1]:
            continue
        own["pads"] = [one + more for one, more in zip(border, own.get("pads", [0] * 4), strict=True)]
        if all(one < size for one, size in zip(own["pads"], kernel * 2, strict=True)):  # no window sees only border
            replace(model, [pad, pool], [helper.make_node("MaxPool", pad.input[:1], pool.output, pool.name, **own)])


def affine_to_depthwise(model: ModelProto) -> None:
    """x * a + b with a and b per channel (the BatchNorm before an activation, ResNet V2) becomes a depthwise 1x1 Conv.

    Exact, and QLinearConv takes it with the Relu behind it, one scale a channel. (Such a BatchNorm cannot fold into the
    convolution before it, whose output the shortcut reads too: onnxruntime issue 9938.)
    """
    values, shapes = constants(model), sizes(model)
    for mul in [node for node in model.graph.node if node.op_type == "Mul"]:
        scale, source = channelwise(mul, values)
        following = readers(model, mul.output[0])
        if scale is None or len(following) != 1 or following[0].op_type != "Add":
            continue
        if shapes.get(source, [])[1:2] != [scale.size]:  # one channel becomes many
            continue
        shift, _ = channelwise(following[0], values)
        if shift is None or shift.size != scale.size:
            continue
        weight = add_constant(model, f"{mul.name}_depthwise", scale.reshape(-1, 1, 1, 1))
        bias = add_constant(model, f"{mul.name}_shift", shift.reshape(-1))
        conv = helper.make_node(
            "Conv",
            [source, weight, bias],
            [following[0].output[0]],
            f"{mul.name}_conv",
            kernel_shape=[1, 1],
            group=scale.size,
        )
        replace(model, [mul, following[0]], [conv])


def channelwise(node: NodeProto, values: dict[str, Array]) -> tuple[Array | None, str]:
    """The `[1, C, 1, 1]` or `[C, 1, 1]` constant of a two-operand node, and its other operand; None without one."""
    for value, other in (node.input, reversed(node.input)):
        array = values.get(value)
        if array is not None and array.ndim >= 3 and array.size > 1 and array.shape[-3] == array.size:
            return array, other
    return None, ""


def fold_input(model: ModelProto) -> Range | None:
    """Let u8 pixels enter the first convolution directly: Cast, Mul, Add, Sub, Div before it disappear.

    Normalised x = a (p - z) with a and z per colour. The pixels keep one scale and one integer zero point near the mean
    of z; colour scales go into the weights, and what is left of z goes through the bias (exact but for the padded
    border, where it is at most MOST_BORDER levels of 255: ImageNet's means are 10 off; a BatchNorm there was 50 off and
    cost 6 % of the answers). Nothing changes where the chain is not of this form.
    """
    source = model.graph.input[0].name
    chain = input_chain(model, source)
    if chain is None:
        return None
    nodes, transpose, conv = chain
    values = constants(model)
    scale, shift = affine(nodes, values)
    if np.any(scale <= 0):
        return None
    weight = values[conv.input[1]]
    bias = values[conv.input[2]] if len(conv.input) > 2 else np.zeros(weight.shape[0], np.float32)
    common = float(scale.mean())
    zero = np.clip(-shift / scale, 0, 255)
    zero_point = int(np.floor(zero.mean() + 0.5))
    # x = a p + b = a (p - zero_point) + (a zero_point + b)
    left = scale * zero_point + shift
    if any(attribute(conv, "pads", [0])) and np.abs(left / scale).max() > MOST_BORDER:
        return None
    bias = bias + np.einsum("oihw,i->o", weight.astype(np.float64), left)
    conv.input[1] = add_constant(model, f"{conv.name}_folded", (weight * (scale / common)[:, None, None]).astype("f"))
    bias_name = add_constant(model, f"{conv.name}_folded_bias", bias.astype("f"))
    del conv.input[2:]
    conv.input.append(bias_name)
    transpose.input[0] = source
    replace(model, nodes, [])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return Range(common, zero_point)


def input_chain(model: ModelProto, source: str) -> tuple[list[NodeProto], NodeProto, NodeProto] | None:
    """Cast, then element-wise constants, then Transpose, then Conv, each the only reader of the one before; or None."""
    values, found, name = constants(model), list[NodeProto](), source
    while len(following := readers(model, name)) == 1:
        node = following[0]
        if node.op_type == "Transpose":
            convs = readers(model, node.output[0])
            ready = found and len(convs) == 1 and convs[0].op_type == "Conv" and convs[0].input[1] in values
            plain = ready and attribute(convs[0], "group", 1) == 1
            return (found, node, convs[0]) if plain else None
        arithmetic = node.op_type in {"Mul", "Add", "Sub", "Div"}
        if node.op_type != "Cast" and not (arithmetic and constant_last(node, values)):
            return None
        found.append(node)
        name = node.output[0]
    return None


def constant_last(node: NodeProto, values: dict[str, Array]) -> bool:
    """Whether the other operand is a scalar or per-colour constant (NHWC: the last axis), in a place that is affine."""
    operands = [values.get(name) for name in node.input]
    places = (0, 1) if node.op_type in {"Mul", "Add"} else (1,)
    return any((v := operands[i]) is not None and v.size in {1, v.shape[-1] if v.ndim else 1} for i in places)


def affine(nodes: list[NodeProto], values: dict[str, Array]) -> tuple[Array, Array]:
    """a and b per colour, float64 `[3]`, of the chain x = a p + b."""
    scale, shift = np.ones(3), np.zeros(3)
    for node in nodes:
        if node.op_type == "Cast":
            continue
        value = next(values[name] for name in node.input if name in values).astype(np.float64).reshape(-1)
        match node.op_type:
            case "Mul":
                scale, shift = scale * value, shift * value
            case "Div":
                scale, shift = scale / value, shift / value
            case "Add":
                shift = shift + value
            case "Sub":
                shift = shift - value
    return scale, shift
