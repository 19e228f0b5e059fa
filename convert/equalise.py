"""Give every channel of an activation the same range, so that one u8 scale a tensor is as good as one a channel.

A convolution's output channel may be divided by any s > 0 if what reads it multiplies by s: nothing changes in float,
but channels of small range are no longer rounded by the step of the largest one. (Cross-layer equalisation: Nagel et
al. 2019, arXiv 1906.04721; here by the ranges of activations, and over whole residual streams, whose tensors share one
s a channel.) Under a Clip a channel is only ever enlarged, and only as far as its own values stay below the limit: the
u8 tensor then saturates at the channel's own largest value instead of at the limit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from convert.graph import Array, attribute, constants, depthwise, looking
from convert.ranges import Range, decoded

SHARING = {"Relu", "Clip", "MaxPool", "Pad", "Identity", "Add", "ReduceMean", "GlobalAveragePool"}  # s passes
HEADROOM = 1.0  # over the largest value seen, under a Clip
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
    found = groups(model)
    if not found:
        return
    spans = channel_ranges(model, {name for group in found for name in group.tensors}, pixels, entry, tick)
    largest = {name: np.maximum(-low, high) for name, (low, high) in spans.items()}
    values = constants(model)
    for group in found:
        scale = factors(group, largest)
        if scale is None:
            continue
        for node in group.writers:
            scale_output(node, values, 1 / scale)
        for node in group.readers:
            scale_input(node, values, scale)
    set_constants(model, values)


def set_constants(model: ModelProto, values: dict[str, Array]) -> None:
    """Store the constants that are read."""
    used = dict.fromkeys(name for node in model.graph.node for name in node.input if name in values)
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(values[name], name) for name in used)


class Groups:
    """Which tensors must share their scales, found node by node."""

    def __init__(self, model: ModelProto) -> None:
        self.values = constants(model)
        self.ends = {value.name for value in (*model.graph.input, *model.graph.output)}
        self.member: dict[str, Group] = {}
        for node in model.graph.node:
            self.take(node, [name for name in node.input if name and name not in self.values])

    def of(self, name: str) -> Group:
        """The group of a tensor."""
        return self.member.setdefault(name, Group({name}, fixed=name in self.ends))

    def take(self, node: NodeProto, computed: list[str]) -> None:
        """Enter one node."""
        weighted = node.op_type in {"Conv", "Gemm"} and node.input[1] in self.values
        if weighted:
            self.of(node.input[0]).readers.append(node)
            self.of(node.input[0]).fixed |= not rescalable(node, self.values)
            self.of(node.output[0]).writers.append(node)
            self.of(node.output[0]).fixed |= node.op_type == "Gemm"
        elif node.op_type in SHARING and not adds_constant(node, computed, self.values):
            for name in computed:
                self.join(self.of(node.output[0]), self.of(name))
            if node.op_type == "Clip":
                group = self.of(node.output[0])
                group.limit = min(group.limit, clip_limit(node, self.values))
        else:
            for name in (*computed, *node.output):
                self.of(name).fixed = True

    def join(self, a: Group, b: Group) -> None:
        """Make two groups one."""
        if a is b:
            return
        a.tensors |= b.tensors
        a.writers += b.writers
        a.readers += b.readers
        a.limit, a.fixed = min(a.limit, b.limit), a.fixed or b.fixed
        self.member.update(dict.fromkeys(b.tensors, a))


def adds_constant(node: NodeProto, computed: Sequence[str], values: dict[str, Array]) -> bool:
    """Whether a node adds a constant, or a border of one."""
    if node.op_type == "Pad" and attribute(node, "mode", b"constant") == b"constant":
        return any(np.any(values.get(name, 1)) for name in node.input[2:3] if name)
    return node.op_type == "Add" and len(computed) < 2


def groups(model: ModelProto) -> list[Group]:
    """The groups that can be rescaled."""
    found = {id(group): group for group in Groups(model).member.values()}.values()
    return [group for group in found if not group.fixed and group.writers and group.readers]


def rescalable(node: NodeProto, values: dict[str, Array]) -> bool:
    """Whether the input channels of a convolution can be scaled by its weights: ordinary, or depthwise one to one."""
    return node.op_type == "Gemm" or attribute(node, "group", 1) == 1 or depthwise(node, values)


def clip_limit(node: NodeProto, values: dict[str, Array]) -> float:
    """The upper limit of a Clip; 0 where it has another lower limit than 0, so that nothing is rescaled under it."""
    lower, upper = (float(values[name]) if name in values else np.nan for name in (node.input[1], node.input[2]))
    return upper if lower == 0 else 0.0


def channel_ranges(
    model: ModelProto,
    names: set[str],
    pixels: Sequence[NDArray[np.uint8]],
    entry: Range | None,
    tick: Callable[[], None],
) -> dict[str, tuple[Array, Array]]:
    """Smallest and largest value of each channel, `[C]`, of the named tensors."""
    wanted = sorted(names)
    look, found = looking(model, wanted, 2), dict[str, tuple[Array, Array]]()
    for batch in pixels:
        for pair in (batch[start : start + 2] for start in range(0, len(batch), 2)):  # all tensors are held at once
            for name, out in zip(wanted, look(decoded(pair, entry)), strict=True):
                axes = (0, *range(2, out.ndim))
                low, high = found.get(name, (np.inf, -np.inf))
                found[name] = np.minimum(low, out.min(axes)), np.maximum(high, out.max(axes))
        tick()
    return found


def factors(group: Group, largest: dict[str, Array]) -> Array | None:
    """s of each channel, `[C]`; None where nothing may be rescaled."""
    tops = [largest[name] for name in group.tensors]
    if len({len(top) for top in tops}) > 1:  # a sum of one channel and many
        return None
    top = np.max(tops, axis=0)
    if group.limit == 0 or top.max() <= 0:
        return None
    unit = group.limit / HEADROOM if np.isfinite(group.limit) else top.max()
    found: Array = np.clip(top / unit, 1 / LARGEST, 1.0)
    return found


def scale_output(node: NodeProto, values: dict[str, Array], by: Array) -> None:
    """Multiply a convolution's output channels."""
    weight = own(node, 1, values)
    values[node.input[1]] = (weight * by.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
    if len(node.input) > 2:
        bias = own(node, 2, values)
        values[node.input[2]] = (bias * by).astype(np.float32)


def scale_input(node: NodeProto, values: dict[str, Array], by: Array) -> None:
    """Let a convolution or dense layer multiply its input channels."""
    weight = own(node, 1, values)
    shape: tuple[int, ...] = (-1, 1, 1, 1) if attribute(node, "group", 1) > 1 else (1, -1, 1, 1)
    if node.op_type == "Gemm":
        shape = (1, -1) if attribute(node, "transB", 0) else (-1, 1)
    values[node.input[1]] = (weight * by.reshape(shape)).astype(np.float32)


def own(node: NodeProto, place: int, values: dict[str, Array]) -> Array:
    """A node's constant under a name that no other node reads."""
    value, node.input[place] = values[node.input[place]], f"{node.name}_constant_{place}"
    values[node.input[place]] = value
    return value
