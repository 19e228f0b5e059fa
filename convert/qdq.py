"""Write the quantised graph: QuantizeLinear and DequantizeLinear around what runs in int8 (QDQ).

Source: onnxruntime.ai, "Quantize ONNX models", QDQ representation.
"""

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from convert.graph import (
    Array,
    Step,
    affine,
    attribute,
    constants,
    like,
    one_position,
    pointwise,
    rename,
    steps,
    zeros_around,
)
from convert.ranges import Range
from convert.walk import Quantisation, copied


class Writer:
    """Nodes and constants of the quantised graph, in order."""

    def __init__(self, model: ModelProto, quantisation: Quantisation) -> None:
        self.model, self.values, self.quantisation = model, constants(model), quantisation
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.renamed: dict[str, str] = {}  # tensor to the name under which its dequantised values are read
        self.codes: dict[str, str] = {}  # tensor to the name of its codes

    def constant(self, name: str, value: Array) -> str:
        """Store a constant, return its name."""
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        return name

    def parameters(self, name: str, span: Range) -> list[str]:
        """Names of the scale and zero point constants of a u8 tensor."""
        return [
            self.constant(f"{name}_scale", np.array(span.scale, np.float32)),
            self.constant(f"{name}_zero_point", np.array(span.zero_point, np.uint8)),
        ]

    def dequantise(self, codes: str, name: str, span: Range) -> None:
        """From here on `name` is read as the values of its codes."""
        self.nodes.append(helper.make_node("DequantizeLinear", [codes, *self.parameters(name, span)], [f"{name}_dq"]))
        self.renamed[name], self.codes[name] = f"{name}_dq", codes

    def quantise(self, name: str, span: Range) -> None:
        """Make a float tensor u8, and what reads it read the codes' values."""
        source = self.renamed.get(name, name)
        self.nodes.append(helper.make_node("QuantizeLinear", [source, *self.parameters(name, span)], [f"{name}_q"]))
        self.dequantise(f"{name}_q", name, span)

    def per_channel(self, name: str, codes: Array, scale: Array, axis: int = 0) -> str:
        """Integer weights or bias, one scale an output channel on `axis`; the name of their values."""
        zero = np.zeros(len(scale), codes.dtype)
        inputs = [
            self.constant(f"{name}_codes", codes),
            self.constant(f"{name}_scale", scale),
            self.constant(f"{name}_zero_point", zero),
        ]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"], axis=axis))
        return f"{name}_dq"

    def convolution(self, node: NodeProto, name: str) -> list[str]:
        """Inputs of an int8 convolution: s8 weights, and s32 bias in units of input scale times weight scale."""
        rounded, (source, weight) = self.quantisation.weights[name], node.input[:2]
        unit = rounded.scale.astype(np.float64) * self.quantisation.ranges[source].scale
        bias = np.clip(np.rint(rounded.bias / unit), -(2**31), 2**31 - 1).astype(np.int32)
        return [
            self.renamed[source],
            self.per_channel(f"{name}_weight", rounded.codes.reshape(self.values[weight].shape), rounded.scale),
            self.per_channel(f"{name}_bias", bias, unit.astype(np.float32)),
        ]

    def product(self, node: NodeProto, name: str) -> list[NodeProto]:
        """A 1x1 convolution of u8 codes with float results: a matrix product over channels, behind which ONNX Runtime
        finds no QuantizeLinear and so fuses to MatMulIntegerToFloat."""
        rounded = self.quantisation.weights[name]
        weight = self.per_channel(f"{name}_weight", rounded.codes.T, rounded.scale, axis=1)
        bias = self.constant(f"{name}_bias", rounded.bias.reshape(1, -1, 1, 1))
        last, product = f"{name}_channels_last", f"{name}_product"
        return [
            helper.make_node("Transpose", [self.renamed[node.input[0]]], [last], last, perm=[0, 2, 3, 1]),
            helper.make_node("MatMul", [last, weight], [f"{product}_last"], product),
            helper.make_node("Transpose", [f"{product}_last"], [product], f"{product}_first", perm=[0, 3, 1, 2]),
            helper.make_node("Add", [product, bias], node.output, f"{name}_shifted"),
        ]

    def affine(self, node: NodeProto, name: str) -> list[NodeProto]:
        """A depthwise 1x1 convolution of float values as what it is: a factor and a shift for each channel, neither
        where it changes nothing."""
        made, source = list[NodeProto](), self.renamed.get(node.input[0], node.input[0])
        for kind, value, neutral, part in (("Mul", node.input[1], 1, "scal"), ("Add", node.input[2], 0, "shift")):
            if np.any(self.values[value] != neutral):
                by = self.constant(f"{name}_{part}ed_by", self.values[value].reshape(1, -1, 1, 1))
                made.append(helper.make_node(kind, [source, by], [f"{name}_{part}ed"], f"{name}_{part}ing"))
                source = f"{name}_{part}ed"
        if made:
            made[-1].output[0] = node.output[0]
        else:
            self.renamed[node.output[0]] = source
        return made

    def every_nth(self, pool: NodeProto) -> NodeProto:
        """A pooling over one position as what it is, which needs no other order of the channels."""
        strides = attribute(pool, "strides", [1, 1])
        bounds = {"starts": [0, 0], "ends": [np.iinfo(np.int64).max] * 2, "axes": [2, 3], "steps": strides}
        named = [self.constant(f"{pool.name}_{what}", np.array(value)) for what, value in bounds.items()]
        return helper.make_node("Slice", [pool.input[0], *named], pool.output, pool.name)

    def border(self, pad: NodeProto, span: Range) -> None:
        """A border of zeros around a u8 tensor, written as codes: no value is decoded for it."""
        codes, (_, zero_point) = f"{pad.output[0]}_q", self.parameters(pad.output[0], span)
        self.nodes.append(
            helper.make_node("Pad", [self.codes[pad.input[0]], pad.input[1], zero_point], [codes], pad.name)
        )
        self.dequantise(codes, pad.output[0], span)

    def main(self, step: Step) -> list[NodeProto]:
        """A step without its activation."""
        node = step.nodes[0]
        copy = NodeProto()
        copy.CopyFrom(node)
        rename(copy.input, self.renamed)
        if step.name in self.quantisation.weights:
            if pointwise(node, self.values) and step.outputs[0] not in self.quantisation.ranges:
                return self.product(node, step.name)
            inputs = self.convolution(node, step.name)
            del copy.input[:]
            copy.input.extend(inputs)
        elif affine(node, self.values) and len(node.input) > 2:
            return self.affine(node, step.name)
        elif one_position(node) and step.outputs[0] not in self.quantisation.ranges:
            return [self.every_nth(copy)]
        return [copy]

    def step(self, step: Step) -> None:
        """A step's nodes, reading what is quantised by its codes."""
        span = self.quantisation.ranges.get(step.outputs[0])
        if step.op == "Identity":
            self.renamed[step.outputs[0]] = self.renamed.get(step.inputs[0], step.inputs[0])
        elif step.op == "Pad" and span and step.inputs[0] in self.codes and zeros_around(step.nodes[0], self.values):
            self.border(step.nodes[0], span)
            return
        else:
            self.nodes.extend(self.main(step))
            self.nodes.extend(copied(node, self.renamed) for node in step.nodes[1:])
        for name in step.outputs:
            if span := self.quantisation.ranges.get(name):
                self.quantise(name, span)


def write(model: ModelProto, quantisation: Quantisation) -> ModelProto:
    """The prepared graph `model` with uint8 input `[N, H, W, 3]` and everything in `quantisation` in int8."""
    writer = Writer(model, quantisation)
    source = model.graph.input[0]
    if span := quantisation.ranges.get(source.name):
        writer.dequantise(source.name, source.name, span)
    for step in steps(model):
        writer.step(step)
    used = {name for node in writer.nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    shape = [dim.dim_param or dim.dim_value for dim in source.type.tensor_type.shape.dim]
    entry = helper.make_tensor_value_info(source.name, TensorProto.UINT8, shape)
    graph = helper.make_graph(
        writer.nodes, "sous", [entry], list(model.graph.output), [*kept, *writer.constants.values()]
    )
    return like(model, graph)
