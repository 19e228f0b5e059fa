"""Move the channels of signed u8 tensors to the middle of their ranges, so that all 256 codes of a channel are used.

A convolution's bias may take any shift of its output channel if what reads it gives the shift back through its own
bias, which is exact where nothing is padded. Sums hand shifts on: in a residual stream each branch takes the difference
that the next sum needs, so that every sum is in the middle of its own range.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from convert import streams
from convert.equalise import channel_ranges, own, set_constants
from convert.graph import Array, add_constant, attribute, constants, readers, weighted
from convert.ranges import Range

HANDING_ON = {"Identity", "Add", "MaxPool"}  # give out the shift of what they read


def centre(
    model: ModelProto, pixels: Sequence[NDArray[np.uint8]], entry: Range | None, tick: Callable[[], None]
) -> None:
    """Shift channels of a prepared graph in place, by their ranges on the given batches of input codes."""
    shifts = Shifts(model, streams.place(model, frozenset(), entry=entry is not None).u8)
    if shifts.wanted:
        spans = channel_ranges(model, shifts.wanted, pixels, entry, tick)
        shifts.apply({name: (low + high) / 2 for name, (low, high) in spans.items()})


class Shifts:
    """Shifts `[C]` by tensor, applied node by node. `wanted` are the tensors to bring to their middle."""

    def __init__(self, model: ModelProto, u8: frozenset[str]) -> None:
        self.model, self.values, self.shift = model, constants(model), dict[str, Array]()
        self.outputs = {value.name for value in model.graph.output}
        self.writer = {name: node for node in model.graph.node for name in node.output}
        copied = {self.writer[name].input[0] for name in u8 if self.op(name) == "Identity"}
        self.wanted = {name for name in u8 | copied if self.op(name) in {"Conv", "Add"} and self.free(name)}

    def op(self, name: str) -> str:
        """The operator that writes a tensor."""
        return str(self.writer[name].op_type) if name in self.writer else ""

    def free(self, name: str) -> bool:
        """Whether all that reads a tensor can give its shift back."""
        return name not in self.outputs and all(self.gives_back(node) for node in readers(self.model, name))

    def gives_back(self, node: NodeProto) -> bool:
        """Whether a node undoes a shift of its input, or hands it on to nodes that do."""
        if node.op_type in HANDING_ON:
            return self.values.keys().isdisjoint(node.input) and self.free(node.output[0])
        return weighted(node, self.values) and not any(attribute(node, "pads", [0]))

    def apply(self, middle: dict[str, Array]) -> None:
        """Shift every wanted tensor by its middle, and keep all answers."""
        for node in self.model.graph.node:
            out = node.output[0]
            if weighted(node, self.values):
                if node.input[0] in self.shift:
                    self.add_to_bias(node, passed(node, self.values, self.shift[node.input[0]]))
                if out in middle:
                    self.take(node, middle[out])
            elif node.op_type in HANDING_ON:
                if out in middle and (branch := self.branch(node)):
                    rest = [self.shift[name] for name in node.input if name in self.shift]
                    self.take(branch, middle[out] - sum(rest))
                if shifts := [self.shift[name] for name in node.input if name in self.shift]:
                    self.shift[out] = np.sum(shifts, axis=0)
        set_constants(self.model, self.values)

    def branch(self, add: NodeProto) -> NodeProto | None:
        """The convolution that feeds this sum alone and has no shift yet."""
        for name in add.input:
            if name not in self.shift and self.op(name) == "Conv" and len(readers(self.model, name)) == 1:
                found: NodeProto = self.writer[name]
                return found
        return None

    def take(self, conv: NodeProto, shift: Array) -> None:
        """Take a shift from a convolution's output."""
        self.add_to_bias(conv, -shift)
        self.shift[conv.output[0]] = shift

    def add_to_bias(self, conv: NodeProto, by: Array) -> None:
        """Add to a convolution's bias, which it gets where it has none."""
        if len(conv.input) < 3:
            conv.input.append(add_constant(self.model, f"{conv.name}_centred", np.zeros(len(by), np.float32)))
            self.values[conv.input[2]] = np.zeros(len(by), np.float32)
        bias = own(conv, 2, self.values)
        self.values[conv.input[2]] = (bias + by).astype(np.float32)


def passed(conv: NodeProto, values: dict[str, Array], shift: Array) -> Array:
    """What a shift `[C]` of its input adds to an unpadded convolution's output, `[O]`."""
    weight, groups = values[conv.input[1]].astype(np.float64).sum((2, 3)), attribute(conv, "group", 1)
    by_group = weight.reshape(groups, -1, weight.shape[1])
    found: Array = np.einsum("goi,gi->go", by_group, shift.reshape(groups, -1)).reshape(-1)
    return found
