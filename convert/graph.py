"""A thin view of an ONNX graph: constants as arrays, who reads what, and the steps that int8 kernels see as one."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

Array = NDArray[Any]
IR_VERSION = 10

ACTIVATIONS = {"Relu", "Clip"}  # absorbed by the step before them: the range of the u8 tensor is theirs
JOINING = {"Concat"}  # of u8 tensors where int8 kernels multiply the result; sums and products of tensors stay float
PASSING = {"MaxPool", "Pad", "Transpose", "Reshape", "Flatten", "Squeeze"}  # output codes are input codes


@dataclass(frozen=True)
class Step:
    """One node and the activation it absorbs. `inputs` are the tensors computed at run time."""

    nodes: tuple[NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the main node, unique in a graph that `tidy` has named."""
        return str(self.nodes[0].name)

    @property
    def op(self) -> str:
        """Operator of the main node."""
        return str(self.nodes[0].op_type)


def constants(model: ModelProto) -> dict[str, Array]:
    """Every initializer by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def sizes(model: ModelProto) -> dict[str, list[int]]:
    """The shape of every tensor that has a known rank, 0 for what depends on the batch."""
    graph = shape_inference.infer_shapes(model).graph
    found = (*graph.value_info, *graph.input, *graph.output)
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in found}


def readers(model: ModelProto, name: str) -> list[NodeProto]:
    """The nodes that read a tensor."""
    return [node for node in model.graph.node if name in node.input]


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """An attribute's value, or the default where the node does not have it."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def weighted(node: NodeProto, values: Mapping[str, Array]) -> bool:
    """Whether this is a convolution over height and width by constant weights."""
    return node.op_type == "Conv" and node.input[1] in values and values[node.input[1]].ndim == 4


def every_place(node: NodeProto, values: Mapping[str, Array]) -> bool:
    """Whether a convolution takes each position by itself: 1x1, no stride, no border."""
    whole = attribute(node, "strides", [1, 1]) == [1, 1] and not any(attribute(node, "pads", [0]))
    return whole and weighted(node, values) and values[node.input[1]].shape[2:] == (1, 1)


def pointwise(node: NodeProto, values: Mapping[str, Array]) -> bool:
    """Whether a convolution multiplies each position by one matrix."""
    return every_place(node, values) and attribute(node, "group", 1) == 1


def depthwise(node: NodeProto, values: Mapping[str, Array]) -> bool:
    """Whether each group of a convolution has one input and one output channel."""
    if not weighted(node, values):
        return False
    channels, each = values[node.input[1]].shape[:2]
    return each == 1 and bool(attribute(node, "group", 1) == channels)


def affine(node: NodeProto, values: Mapping[str, Array]) -> bool:
    """Whether a convolution only scales and shifts each channel: depthwise 1x1."""
    return every_place(node, values) and depthwise(node, values)


def zeros_around(pad: NodeProto, values: Mapping[str, Array]) -> list[int] | None:
    """Top, left, bottom and right of a Pad that puts zeros around pictures `[N, C, H, W]`; None for any other."""
    amounts, value = values.get(pad.input[1], np.zeros(0)), [values.get(name, np.ones(1)) for name in pad.input[2:3]]
    constant = attribute(pad, "mode", b"constant") == b"constant" and not np.any(value)
    if amounts.shape != (8,) or len(pad.input) > 3 or not constant:
        return None
    outer, inner = amounts[[0, 1, 4, 5]], amounts[[2, 3, 6, 7]]
    return None if outer.any() or inner.min() < 0 else inner.tolist()


def one_position(node: NodeProto) -> bool:
    """Whether this is a pooling whose windows are single positions: every so many of them, as they are."""
    windows = {*attribute(node, "kernel_shape", [0]), 1 + max(attribute(node, "pads", [0]))}
    return node.op_type == "MaxPool" and windows == {1} and len(node.output) == 1


def add_constant(model: ModelProto, name: str, value: Array) -> str:
    """Store an initializer and return its name."""
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return name


def node_of(model: ModelProto, name: str) -> NodeProto:
    """A node by its name."""
    found: NodeProto = next(node for node in model.graph.node if node.name == name)
    return found


def constant(model: ModelProto, name: str) -> Array:
    """The value of one initializer."""
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def weight_of(model: ModelProto, node: NodeProto) -> Array:
    """A convolution's weight `[O, I, h, w]`."""
    return constant(model, node.input[1])


def bias_of(model: ModelProto, node: NodeProto) -> Array:
    """A convolution's bias `[O]`, zeros where it has none."""
    return constant(model, node.input[2]) if len(node.input) > 2 else np.zeros(len(weight_of(model, node)), np.float32)


def set_weights(model: ModelProto, node: NodeProto, weight: Array, bias: Array) -> None:
    """Give a convolution constants of its own."""
    new = f"{node.name}_own_weight", f"{node.name}_own_bias"
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name in new]:
        model.graph.initializer.remove(tensor)
    del node.input[1:]
    node.input.extend(
        add_constant(model, name, value.astype(np.float32)) for name, value in zip(new, (weight, bias), strict=True)
    )


def steps(model: ModelProto) -> list[Step]:
    """The nodes in order, each with the Relu or Clip that alone reads it."""
    known = constants(model).keys()
    reads = Counter(name for node in model.graph.node for name in node.input)
    results = {output.name for output in model.graph.output}
    followers = {node.input[0]: node for node in model.graph.node if node.op_type in ACTIVATIONS}
    found: list[Step] = []
    absorbed: set[str] = set()
    for node in model.graph.node:
        if node.name in absorbed:
            continue
        nodes, out = [node], node.output[0]
        if node.op_type in {"Conv", "Add"} and out in followers and reads[out] == 1 and out not in results:
            nodes.append(followers[out])
            absorbed.add(followers[out].name)
        inputs = tuple(dict.fromkeys(name for name in node.input if name and name not in known))
        found.append(Step(tuple(nodes), inputs, tuple(name for name in nodes[-1].output if name)))
    return found


def session(model: ModelProto | Path, threads: int) -> onnxruntime.InferenceSession:
    """A session for looking inside: basic optimisation only, so that no kernel adds rounding of its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def looking(model: ModelProto, names: Sequence[str], threads: int) -> Callable[[Array], list[Array]]:
    """A function that gives these tensors for a batch of the graph's input."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    wanted = list(dict.fromkeys(names))
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
    engine, source = session(copy, threads), model.graph.input[0].name

    def look(feed: Array) -> list[Array]:
        found = dict(zip(wanted, engine.run(wanted, {source: feed}), strict=True))
        return [found[name] for name in names]

    return look


def part(model: ModelProto, step: Step) -> ModelProto:
    """A model of one step: its run-time inputs as float inputs, its constants as initializers, its first output."""
    used = {name for node in step.nodes for name in node.input}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in step.inputs]
    results = [helper.make_tensor_value_info(step.outputs[0], TensorProto.FLOAT, None)]
    weights = [tensor for tensor in model.graph.initializer if tensor.name in used]
    return like(model, helper.make_graph(step.nodes, "step", values, results, weights))


def like(model: ModelProto, graph: onnx.GraphProto) -> ModelProto:
    """A model of this graph with the opset and IR version of another."""
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version, producer_name="sous")


def optimised(source: Path, target: Path) -> ModelProto:
    """ONNX Runtime's hardware-neutral rewrites: constants folded; BatchNorm, Pad, Mul and Add into convolutions."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return tidy(onnx.load(target))


def tidy(model: ModelProto) -> ModelProto:
    """Names by position, so that a file depends on the model alone, and no shapes that a rewrite could contradict."""
    fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
    names: dict[str, str] = {}
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
        node.doc_string = ""
        rename(node.input, names)
        for place, name in enumerate(node.output):
            names.setdefault(name, name if name in fixed or not name else f"{node.name}:{place}")
        rename(node.output, names)
    order = [name for node in model.graph.node for name in node.input]
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    used = list(dict.fromkeys(name for name in order if name in initializers))
    for index, name in enumerate(used):
        initializers[name].name = f"constant_{index}"
    for node in model.graph.node:
        rename(node.input, {name: f"constant_{index}" for index, name in enumerate(used)})
    kept = [initializers[name] for name in used]
    inputs = [value for value in model.graph.input if value.name not in initializers]
    model.CopyFrom(like(model, helper.make_graph(model.graph.node, "sous", inputs, model.graph.output, kept)))
    onnx.checker.check_model(model)
    return model


def rename(places: Any, names: dict[str, str]) -> None:
    """Rename entries of a repeated field in place."""
    for place, name in enumerate(places):
        places[place] = names.get(name, name)


def drop_unread(model: ModelProto) -> None:
    """Remove nodes and constants that lead to no output, in place."""
    read, kept = {output.name for output in model.graph.output}, list[NodeProto]()
    for node in reversed(model.graph.node):
        if not read.isdisjoint(node.output):
            read.update(node.input)
            kept.append(node)
    weights = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(reversed(kept))
    model.graph.initializer.extend(weights)


def replace(model: ModelProto, old: Sequence[NodeProto], new: Sequence[NodeProto]) -> None:
    """Put `new` where the last of `old` stood."""
    doomed = {node.name for node in old}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.name == old[-1].name:
            nodes.extend(new)
        if node.name not in doomed:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
