"""Give every channel of an activation the same range, so that one u8 scale a tensor is as good as one a channel.

A convolution's output channel may be divided by any s > 0 if what reads it multiplies by s: nothing changes in float, but
channels of small range are no longer rounded by the step of the largest one. (Cross-layer equalisation: Nagel et al. 2019,
arXiv 1906.04721; here by the ranges of activations, and over whole residual streams, whose tensors share one s a channel.)
Under a Clip a channel is only ever enlarged, and only as far as its own values stay below the limit: the u8 tensor then
saturates at the channel's own largest value instead of at the limit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from convert.graph import Array, attribute, constants, session
from convert.ranges import Range

SHARING = {"Relu", "Clip", "MaxPool", "Pad", "Add", "ReduceMean", "GlobalAveragePool"}  # s passes through these
HEADROOM = 1.1  # over the largest value seen, under a Clip
STRENGTH = 1.0
LARGEST = 64.0  # no channel is scaled by more


@dataclass
class Group:
    """Tensors that share one s a channel, with the nodes that write and read them."""

    tensors: set[str] = field(default_factory=set)
    writers: list[NodeProto] = field(default_factory=list)
    readers: list[NodeProto] = field(default_factory=list)
    limit: float = np.inf
    fixed: bool = False  # something that cannot be rescaled writes or reads it


def equalise(
    model: ModelProto, pixels: Sequence[NDArray[np.uint8]], entry: Range | None, tick: Callable[[], None]
) -> None:
    """Rescale the channels of a prepared graph in place, by their ranges on the given batches of input codes."""
    found = [group for group in groups(model) if not group.fixed and group.writers and group.readers]
    largest = channel_maxima(model, {name for group in found for name in group.tensors}, pixels, entry, tick)
    values = constants(model)
    for group in found:
        scale = factors(group, largest)
        if scale is None:
            continue
        for node in group.writers:
            scale_output(node, values, 1 / scale)
        for node in group.readers:
            scale_input(node, values, scale)
    for tensor in model.graph.initializer:
        if values[tensor.name].dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))


def groups(model: ModelProto) -> list[Group]:
    """The groups of tensors that must share their scales."""
    values = constants(model)
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    member: dict[str, Group] = {}

    def group(name: str) -> Group:
        return member.setdefault(name, Group({name}, fixed=name in ends))

    def join(a: Group, b: Group) -> None:
        if a is b:
            return
        a.tensors |= b.tensors
        a.writers += b.writers
        a.readers += b.readers
        a.limit, a.fixed = min(a.limit, b.limit), a.fixed or b.fixed
        member.update(dict.fromkeys(b.tensors, a))

    for node in model.graph.node:
        computed = [name for name in node.input if name and name not in values]
        if node.op_type == "Conv" and node.input[1] in values:
            rescalable = attribute(node, "group", 1) in {1, values[node.input[1]].shape[0]}
            group(node.input[0]).readers.append(node)
            group(node.input[0]).fixed |= not rescalable
            group(node.output[0]).writers.append(node)
        elif node.op_type == "Gemm" and node.input[1] in values:
            group(node.input[0]).readers.append(node)
            group(node.output[0]).fixed = True
        elif node.op_type in SHARING and not (node.op_type == "Add" and len(computed) < 2):
            for name in computed:
                join(group(node.output[0]), group(name))
            if node.op_type == "Clip":
                group(node.output[0]).limit = min(group(node.output[0]).limit, clip_limit(node, values))
        else:
            for name in (*computed, *node.output):
                group(name).fixed = True
    return list({id(found): found for found in member.values()}.values())


def clip_limit(node: NodeProto, values: dict[str, Array]) -> float:
    """The upper limit of a Clip; 0 where it has another lower limit than 0, so that nothing is rescaled under it."""
    lower, upper = (float(values[name]) if name in values else np.nan for name in (node.input[1], node.input[2]))
    return upper if lower == 0 else 0.0


def channel_maxima(
    model: ModelProto,
    names: set[str],
    pixels: Sequence[NDArray[np.uint8]],
    entry: Range | None,
    tick: Callable[[], None],
) -> dict[str, Array]:
    """Largest absolute value of each channel, `[C]`, of the named tensors."""
    copy = ModelProto()
    copy.CopyFrom(model)
    wanted = sorted(names)
    known = {value.name for value in copy.graph.output}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted if name not in known)
    engine, found = session(copy, 2), dict[str, Array]()
    for batch in pixels:
        image = entry.dequantise(batch) if entry else batch
        for name, out in zip(wanted, engine.run(wanted, {model.graph.input[0].name: image}), strict=True):
            top = np.abs(out).max(axis=(0, *range(2, out.ndim)))
            found[name] = np.maximum(found.get(name, 0.0), top)
        tick()
    return found


def factors(group: Group, largest: dict[str, Array]) -> Array | None:
    """s of each channel, `[C]`; None where nothing may be rescaled."""
    top = np.max([largest[name] for name in group.tensors], axis=0)
    if group.limit == 0 or top.max() <= 0:
        return None
    if np.isfinite(group.limit):
        return np.clip((top * HEADROOM / group.limit) ** STRENGTH, 1 / LARGEST, 1.0)
    return np.clip((top / top.max()) ** STRENGTH, 1 / LARGEST, 1.0)


def scale_output(node: NodeProto, values: dict[str, Array], by: Array) -> None:
    """Multiply a convolution's output channels."""
    weight = values[node.input[1]]
    values[node.input[1]] = (weight * by.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
    if len(node.input) > 2:
        values[node.input[2]] = (values[node.input[2]] * by).astype(np.float32)


def scale_input(node: NodeProto, values: dict[str, Array], by: Array) -> None:
    """Let a convolution or dense layer multiply its input channels."""
    weight = values[node.input[1]]
    if node.op_type == "Gemm":
        shape = (1, -1) if attribute(node, "transB", 0) else (-1, 1)
    else:
        shape = (-1, 1, 1, 1) if attribute(node, "group", 1) > 1 else (1, -1, 1, 1)
    values[node.input[1]] = (weight * by.reshape(shape)).astype(np.float32)
