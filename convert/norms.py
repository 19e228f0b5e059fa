"""Normalisations of residual sums that cost nothing (ResNet V2): before its Relu, each block's x f + s becomes x.

The factors of a channel hardly differ from block to block: the stream takes what they share, and the convolution behind
each Relu the rest, so that the Relu's u8 channels keep nearly the same range. The stream carries the shifts, too: each
branch's bias takes the difference that the next sum needs. Exact in float; of four passes over a sum two are left.
"""

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto

from convert.centre import Shifts
from convert.equalise import Group, Groups, scale_input, scale_output, set_constants
from convert.graph import Array, affine, pointwise

MOST_GROWTH = 1.5  # times the rounding noise of a Relu's u8 copy, whose channels equalise() gave one range
ROUNDING = 1e-5  # of the largest shift: what adding and subtracting it may leave


def simplify(model: ModelProto) -> None:
    """Free the normalisations of an equalised graph from factors and shifts, in place, as far as they are alike."""
    carry_shifts(model, share_factors(model))


def share_factors(model: ModelProto) -> set[str]:
    """Make the factors 1 where the channels' ranges stay near each other; the names of those normalisations."""
    found, freed = Groups(model), set[str]()
    for stream in {id(group): group for group in found.member.values()}.values():
        movable = norms(stream, found) if stays_float(stream, found.values) else []
        factors = [found.values[node.input[1]].reshape(-1).astype(np.float64) for node, _ in movable]
        chosen = alike(factors)
        if not chosen:
            continue
        shared = mean([factors[index] for index in chosen])
        for node in stream.writers:
            scale_output(node, found.values, shared)
        for node in stream.readers:
            scale_input(node, found.values, 1 / shared)
        for index in chosen:
            (node, relu), rest = movable[index], factors[index] / shared
            scale_output(node, found.values, 1 / rest)
            found.values[node.input[1]] = np.ones_like(found.values[node.input[1]])  # without their rounding
            for reader in relu.readers:
                scale_input(reader, found.values, rest)
            freed.add(node.name)
    set_constants(model, found.values)
    return freed


def stays_float(stream: Group, values: dict[str, Array]) -> bool:
    """Whether none of a stream's tensors is u8, whose channels have one range and lie in its middle."""
    written = all(pointwise(node, values) for node in stream.writers)
    return written and all(affine(node, values) for node in stream.readers) and not stream.fixed


def norms(stream: Group, found: Groups) -> list[tuple[NodeProto, Group]]:
    """The normalisations of a stream by positive factors, each alone behind a Relu that can be rescaled, and its group
    of tensors."""
    pairs = [(node, found.of(node.output[0])) for node in stream.readers if affine(node, found.values)]
    return [
        (node, relu)
        for node, relu in pairs
        if not relu.fixed and relu.readers and relu.writers == [node] and np.isinf(relu.limit)
        if len(node.input) > 2 and found.values[node.input[1]].min() > 0
    ]


def mean(factors: Sequence[Array]) -> Array:
    """The geometric mean of each channel, `[C]`."""
    found: Array = np.exp(np.mean(np.log(factors), axis=0))
    return found


def alike(factors: Sequence[Array]) -> list[int]:
    """Which of the factors `[C]` are near enough to their mean: all but those that are farthest off, one by one."""
    chosen = list(range(len(factors)))
    while chosen:
        shared = mean([factors[index] for index in chosen])
        growths = [growth(factors[index] / shared) for index in chosen]
        if max(growths) <= MOST_GROWTH:
            break
        del chosen[int(np.argmax(growths))]
    return chosen


def growth(rest: Array) -> float:
    """How much more noise one u8 scale makes in channels of one range when they are divided by `rest` `[C]`."""
    return float(np.sqrt(np.mean(rest**2)) / rest.min())


def carry_shifts(model: ModelProto, freed: set[str]) -> None:
    """Make the shifts of these normalisations 0, where all that reads the sums can give them back."""
    shifts = Shifts(model, frozenset())
    values = shifts.values
    found = [
        node
        for node in model.graph.node
        if node.name in freed and shifts.op(node.input[0]) == "Add" and shifts.free(node.input[0])
    ]
    largest = [np.abs(values[node.input[2]]).max() for node in found]
    shifts.apply({node.input[0]: -values[node.input[2]] for node in found})
    for node, most in zip(found, largest, strict=True):
        if np.abs(values[node.input[2]]).max() <= ROUNDING * most:
            values[node.input[2]] = np.zeros_like(values[node.input[2]])
    set_constants(model, values)
