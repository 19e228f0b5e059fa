"""Move shifts of channels to where they cost nothing: through the graph, into the biases of what reads them.

A convolution's bias may take any shift of its output channel if what reads it gives the shift back through its own
bias, which is exact where nothing is padded; sums hand shifts on. Two shifts are worth it. A signed u8 tensor's
channels move to the middle of their ranges, so that all 256 codes of a channel are used. And a 1x1 convolution with
float results (see convert.streams) gives its whole bias away, which would be an addition of its own at run time.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from convert import streams
from convert.equalise import channel_ranges, set_constants
from convert.graph import Array, add_constant, constants, passed, pointwise, weighted
from convert.ranges import Range
from convert.streams import absorbed


def centre(
    model: ModelProto, pixels: Sequence[NDArray[np.uint8]], entry: Range | None, tick: Callable[[], None]
) -> None:
    """Shift channels of a prepared graph in place, by their ranges on the given batches of input codes."""
    u8, values = streams.place(model, frozenset(), entry=entry is not None).u8, constants(model)
    free = [node for node in model.graph.node if weighted(node, values) and absorbed(model, values, node.output[0])]
    centred = {node.output[0] for node in free if node.output[0] in u8}
    spans = channel_ranges(model, centred, pixels, entry, tick) if centred else {}
    middle = {name: (low + high) / 2 for name, (low, high) in spans.items()}
    apply(model, values, middle, {node.output[0] for node in free if pointwise(node, values)} - u8)


def apply(model: ModelProto, values: dict[str, Array], middle: dict[str, Array], given: set[str]) -> None:
    """Take the `middle` of channels `[C]`, or for tensors in `given` the whole bias, from the outputs of convolutions,
    and give it back where they are read."""
    shifts = dict[str, Array]()
    for node in model.graph.node:
        out = node.output[0]
        if weighted(node, values):
            bias = values[node.input[2]] if len(node.input) > 2 else np.zeros(values[node.input[1]].shape[0])
            if node.input[0] in shifts:
                bias = bias + passed(node, values, shifts[node.input[0]])
            if out in given or out in middle:
                shifts[out] = bias if out in given else middle[out]
                bias = bias - shifts[out]
            set_bias(model, node, values, bias)
        elif node.op_type in {"Identity", "Add"} and (read := [shifts[name] for name in node.input if name in shifts]):
            shifts[out] = np.sum(read, axis=0)
    set_constants(model, values)


def set_bias(model: ModelProto, conv: NodeProto, values: dict[str, Array], bias: Array) -> None:
    """Give a convolution a bias of its own, none where it is zero."""
    del conv.input[2:]
    if bias.any():
        conv.input.append(add_constant(model, f"{conv.name}_centred", bias.astype(np.float32)))
        values[conv.input[2]] = bias.astype(np.float32)
