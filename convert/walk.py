"""The walk: the float and the quantised network side by side, one step at a time.

Every step runs on the float network's tensors and on those that the quantised network really has at this point. So each
layer's weights are rounded against the errors before it, and each range is chosen on the values to be quantised. Only
live tensors are kept, in files: the float network's as float16, quantised ones as u8 codes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from convert import ranges, streams
from convert.graph import (
    PASSING,
    Array,
    Step,
    attribute,
    constants,
    depthwise,
    like,
    looking,
    part,
    rename,
    session,
    steps,
    weighted,
)
from convert.ranges import Range, decoded
from convert.rounding import Moments, Rounded, round_layer
from convert.stored import Stored

PATCHES = 24_000  # sampled positions a layer
PROBED = 8  # batches that a range is chosen on
FLOAT16_SAFE = 60_000.0


@dataclass(frozen=True)
class Recipe:
    """What the search varies: bits of the weights, and tensors that stay float (with the steps that read them, and the
    kernels that could only write them as u8)."""

    weight_bits: int = 7
    keep_float: frozenset[str] = frozenset()


@dataclass
class Quantisation:
    """Ranges of the u8 tensors, codes of the weights by step name, each tensor's own rounding noise (its share of the
    tensor's variance), and the multiplications of each convolution for one photo."""

    ranges: dict[str, Range] = field(default_factory=dict)
    weights: dict[str, Rounded] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)


@dataclass
class Live:
    """One tensor in both networks, stored in batches; `actual` are codes where it has a range."""

    reference: Sequence[Array]
    actual: Sequence[Array]
    span: Range | None


@dataclass(frozen=True)
class Outputs:
    """One output of a step in batches, and its smallest and largest value."""

    batches: Sequence[Array]
    low: float
    high: float


def walk(
    model: ModelProto,
    pixels: Sequence[NDArray[np.uint8]],
    entry: Range | None,
    recipe: Recipe,
    tick: Callable[[], None],
) -> Quantisation:
    """Quantise a prepared graph. `pixels` are batches of codes `[N, H, W, 3]`; `tick` is called after every tensor.

    With `entry` the pixels are the graph's input as they are, else they stay uint8 and the graph casts them itself.
    """
    found, values = [one for step in steps(model) for one in by_output(step)], constants(model)
    placement = streams.place(model, recipe.keep_float, entry=entry is not None)
    last_use = {name: place for place, step in enumerate(found) for name in step.inputs}
    source = model.graph.input[0].name
    result = Quantisation(ranges={source: entry} if entry else {})
    live = {source: Live(first_reference(pixels, entry), list(pixels), entry)}
    for place, step in enumerate(found):
        inputs = [live[name] for name in step.inputs]
        exact = part(model, step)
        reference = run(exact, step, [one.reference for one in inputs], [None] * len(inputs))
        if weighted(step.nodes[0], values):
            result.macs[step.name] = macs(values[step.nodes[0].input[1]], reference.batches[0])
            if step.name in placement.int8:
                rounded = round_convolution(step.nodes[0], values, inputs[0], recipe.weight_bits)
                result.weights[step.name] = rounded
                exact = with_weights(exact, rounded, values)
        actual, spans = [one.actual for one in inputs], [one.span for one in inputs]
        span = None
        if step.outputs[0] in placement.u8:
            probe = run(exact, step, [one[:PROBED] for one in actual], spans)
            span = output_range(step, probe, result)
        live[step.outputs[0]] = Live(reference.batches, run(exact, step, actual, spans, span).batches, span)
        for dead in [name for name in live if last_use.get(name, -1) <= place]:
            del live[dead]
        tick()
    return result


def effort(model: ModelProto, photo: NDArray[np.uint8], entry: Range | None) -> list[float]:
    """What each tensor takes of a walk's time, in order, by those of one photo `[1, H, W, 3]`: two thirds
    of the time go by their size (activations), one third is alike for all (weights)."""
    names = [name for step in steps(model) for name in step.outputs]
    sizes = [out.size for out in looking(model, names, 2)(decoded(photo, entry))]
    return [0.5 + size * len(sizes) / sum(sizes) for size in sizes]


def by_output(step: Step) -> list[Step]:
    """The step for each of its outputs (Split has several), as if it had no other."""
    return [replace(step, outputs=(name,)) for name in step.outputs]


def first_reference(pixels: Sequence[Array], entry: Range | None) -> list[Array]:
    """The input of the float network: the values of the codes, or the pixels for a graph that casts them itself."""
    return [entry.dequantise(batch).astype(np.float16) for batch in pixels] if entry else list(pixels)


def macs(weight: Array, output: Array) -> int:
    """Multiplications of a convolution for one photo."""
    return int(output.size // len(output) * weight[0].size)


def run(
    model: ModelProto,
    step: Step,
    inputs: Sequence[Sequence[Array]],
    spans: Sequence[Range | None],
    span: Range | None = None,
) -> Outputs:
    """A step on every batch. Batches go in and come out as they are stored: codes (with `span`), float16, or float32
    where float16 would overflow."""
    dtypes = [one[0].dtype for one in inputs]
    for kind in (TensorProto.UINT8,) if span else (TensorProto.FLOAT16, TensorProto.FLOAT):
        engine = session(storing(model, step, dtypes, [*spans, span], kind), 2)
        stored, low, high = Stored(), np.inf, -np.inf
        for feed in zip(*inputs, strict=True):
            batch, least, most = engine.run(None, dict(zip(step.inputs, feed, strict=True)))
            stored.append(batch)
            low, high = min(low, float(least)), max(high, float(most))
        if max(-low, high) < FLOAT16_SAFE:
            break
    return Outputs(stored, low, high)


def storing(
    model: ModelProto, step: Step, dtypes: Sequence[np.dtype[Any]], spans: Sequence[Range | None], kind: int
) -> ModelProto:
    """A step's model that reads and writes stored batches, and gives the least and largest value too. The last of
    `spans` is the output's."""
    before, renamed, entries, weights = list[NodeProto](), dict[str, str](), [], list(model.graph.initializer)
    for name, dtype, span in zip(step.inputs, dtypes, spans[:-1], strict=True):
        entries.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), None))
        if span:
            weights += parameters(name, span)
            renamed[name] = f"{name}_float"
            before.append(helper.make_node("DequantizeLinear", [name, *names(name)], [renamed[name]]))
        elif dtype == np.float16:
            renamed[name] = f"{name}_float"
            before.append(helper.make_node("Cast", [name], [renamed[name]], to=TensorProto.FLOAT))
    out = step.outputs[0]
    if spans[-1]:
        weights += parameters(out, spans[-1])
        last = helper.make_node("QuantizeLinear", [out, *names(out)], ["stored"])
    else:
        last = helper.make_node("Cast", [out], ["stored"], to=kind)
    after = [
        last,
        helper.make_node("ReduceMin", [out], ["low"], keepdims=0),
        helper.make_node("ReduceMax", [out], ["high"], keepdims=0),
    ]
    nodes = [*before, *(copied(node, renamed) for node in model.graph.node), *after]
    results = [helper.make_tensor_value_info("stored", kind, None)]
    results += [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("low", "high")]
    return like(model, helper.make_graph(nodes, "step", entries, results, weights))


def names(tensor: str) -> tuple[str, str]:
    """Names of a u8 tensor's scale and zero point."""
    return f"{tensor}_scale", f"{tensor}_zero_point"


def parameters(tensor: str, span: Range) -> list[TensorProto]:
    """A u8 tensor's scale and zero point."""
    scale, zero_point = names(tensor)
    return [
        numpy_helper.from_array(np.array(span.scale, np.float32), scale),
        numpy_helper.from_array(np.array(span.zero_point, np.uint8), zero_point),
    ]


def copied(node: NodeProto, renamed: dict[str, str]) -> NodeProto:
    """A node that reads renamed tensors."""
    copy = NodeProto()
    copy.CopyFrom(node)
    rename(copy.input, renamed)
    return copy


def output_range(step: Step, outputs: Outputs, result: Quantisation) -> Range:
    """The range of a step's u8 output, recorded with its noise."""
    name = step.outputs[0]
    if step.op in PASSING and step.inputs[0] in result.ranges:
        result.ranges[name] = result.ranges[step.inputs[0]]
    else:
        values = ranges.sample(outputs.batches)
        result.ranges[name] = ranges.choose(values, outputs.low, outputs.high)
        result.noise[name] = result.ranges[name].noise(values)
    return result.ranges[name]


def round_convolution(node: NodeProto, values: dict[str, Array], source: Live, bits: int) -> Rounded:
    """Codes of a convolution's weights from sampled patches of its input."""
    weight = values[node.input[1]]
    bias = values[node.input[2]] if len(node.input) > 2 else np.zeros(weight.shape[0], np.float32)
    moments, rng = Moments(attribute(node, "group", 1)), np.random.default_rng(0)
    count, span = max(1, PATCHES // len(source.actual)), source.span
    for x, z in zip(source.reference, source.actual, strict=True):
        where = positions(node, weight.shape, x.shape, count, rng)
        exact = patches(node, weight.shape, moments.groups, x, where=where)
        codes = patches(node, weight.shape, moments.groups, z, where=where, span=span)
        moments.add(exact.astype(np.float32), decode(codes, span))
    order = None if depthwise(node, values) else kernel_order(weight.shape)
    unit = span.scale if span else 1.0
    return round_layer(weight.reshape(weight.shape[0], -1), bias, moments, bits=bits, order=order, unit=unit)


def kernel_order(shape: Sequence[int]) -> NDArray[np.intp]:
    """The order in which QLinearConv multiplies a kernel's weights `[I, H, W]`, of a group of its own each where there
    are groups: by row, column, then channel. (Its depthwise kernel adds in 32 bits: no order matters there.)"""
    return np.arange(int(np.prod(shape[1:]))).reshape(shape[1], -1).T.reshape(-1)


def decode(stored: Array, span: Range | None) -> NDArray[np.float32]:
    """float32 values of what is stored."""
    return span.dequantise(stored) if span else stored.astype(np.float32)


def geometry(node: NodeProto) -> tuple[list[int], list[int], list[int]]:
    """strides, dilations and pads (top, left, bottom, right) of a 2-D convolution."""
    return (
        attribute(node, "strides", [1, 1]),
        attribute(node, "dilations", [1, 1]),
        attribute(node, "pads", [0, 0, 0, 0]),
    )


def positions(
    node: NodeProto, kernel: Sequence[int], shape: Sequence[int], count: int, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """Random output positions: photo, row, column."""
    (sy, sx), (dy, dx), (top, left, bottom, right) = geometry(node)
    rows = (shape[2] + top + bottom - dy * (kernel[2] - 1) - 1) // sy + 1
    columns = (shape[3] + left + right - dx * (kernel[3] - 1) - 1) // sx + 1
    total = shape[0] * rows * columns
    chosen = rng.choice(total, min(count, total), replace=False)
    photo, row, column = np.unravel_index(chosen, (shape[0], rows, columns))
    return photo, row, column


def patches(
    node: NodeProto,
    kernel: Sequence[int],
    groups: int,
    x: Array,
    *,
    where: tuple[Array, Array, Array],
    span: Range | None = None,
) -> Array:
    """Input patches `[G, P, K]` under output positions, zero beyond the border, as stored."""
    zero = span.zero_point if span else 0
    (sy, sx), (dy, dx), (top, left, _, _) = geometry(node)
    photo, row, column = where
    rows = ((row * sy - top)[:, None] + np.arange(kernel[2]) * dy)[:, :, None]
    columns = ((column * sx - left)[:, None] + np.arange(kernel[3]) * dx)[:, None, :]
    height, width = x.shape[2:]
    near = rows.clip(0, height - 1), columns.clip(0, width - 1)
    taken = x[photo[:, None, None], :, near[0], near[1]]  # [P, kh, kw, C]
    taken[(rows < 0) | (rows >= height) | (columns < 0) | (columns >= width)] = zero
    taken = taken.transpose(0, 3, 1, 2).reshape(len(photo), groups, -1)
    return np.ascontiguousarray(taken.transpose(1, 0, 2))


def with_weights(model: ModelProto, rounded: Rounded, values: dict[str, Array]) -> ModelProto:
    """A step's model with the weights and bias that the int8 kernel will use."""
    conv = model.graph.node[0]
    shape = values[conv.input[1]].shape
    weight = (rounded.codes * rounded.scale[:, None]).reshape(shape).astype(np.float32)
    del conv.input[2:]
    conv.input[1:] = ["rounded_weight", "rounded_bias"]
    model.graph.initializer.append(numpy_helper.from_array(weight, "rounded_weight"))
    model.graph.initializer.append(numpy_helper.from_array(rounded.bias, "rounded_bias"))
    return model
