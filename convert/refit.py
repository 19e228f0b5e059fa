"""Least squares for convolutions of a narrower network: what they give is to be what the whole network gives there.

Front to back, every convolution that reads fewer channels is fitted to the output of the whole one (He et al. 2017,
arXiv 1707.06168), or in front of a residual sum to what the sum lacks, so that a block makes good for the errors before
it.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from convert.graph import Array, Step, attribute, bias_of, part, readers, set_weights, steps, weight_of
from convert.optimise import Folded
from convert.walk import by_output, first_reference, patches, positions, run

SAMPLES = 24_000  # positions that a convolution is fitted on
RIDGE = 1e-3  # of the mean variance

Live = tuple[Sequence[Array], Sequence[Array]]  # a tensor of the whole and of the narrow network, in batches


def refit(
    folded: Folded,
    small: ModelProto,
    written: Mapping[str, NDArray[np.intp]],
    pixels: Sequence[NDArray[np.uint8]],
    tick: Callable[[], None],
) -> None:
    """Fit `small` in place, which has fewer channels than the whole network: `written` are those that its convolutions
    write, in order, by node name. Both run side by side, step by step; only tensors still to be read are kept, in
    files."""
    model, first = folded.model, first_reference(pixels, folded.entry)
    sides = ([one for step in steps(network) for one in by_output(step)] for network in (model, small))
    pairs = list(zip(*sides, strict=True))
    last_use = {name: place for place, (step, _) in enumerate(pairs) for name in step.inputs}
    live: dict[str, Live] = {model.graph.input[0].name: (first, first)}
    for place, (whole, narrow) in enumerate(pairs):
        exact, approximate = ([live[name][side] for name in whole.inputs] for side in (0, 1))
        wanted = run(part(model, whole), whole, exact, [None] * len(exact)).batches
        if reads_fewer(whole.nodes[0], exact[0][0], approximate[0][0]):
            node = whole.nodes[0]
            kept = written.get(whole.name, np.arange(len(weight_of(model, node))))
            target = weight_of(model, node)[kept], bias_of(model, node)[kept]
            before = weight_of(small, narrow.nodes[0]), bias_of(small, narrow.nodes[0])
            other = joined(model, whole, live, wanted[0].shape)
            set_weights(small, narrow.nodes[0], *fitted(node, target, before, live[whole.inputs[0]], other))
        found = run(part(small, narrow), narrow, approximate, [None] * len(exact)).batches
        live[whole.outputs[0]] = (wanted, found)
        for dead in [name for name in live if last_use.get(name, -1) <= place]:
            del live[dead]
        tick()


def reads_fewer(node: NodeProto, whole: Array, narrow: Array) -> bool:
    """Whether a node is a convolution over all channels of its input, and the narrow network's has fewer."""
    return node.op_type == "Conv" and attribute(node, "group", 1) == 1 and narrow.shape[1] < whole.shape[1]


def joined(model: ModelProto, step: Step, live: Mapping[str, Live], shape: Sequence[int]) -> Live | None:
    """What a step's output of that shape is added to, where that is its only use."""
    following = readers(model, step.outputs[0])
    if len(following) != 1 or following[0].op_type != "Add" or len(step.nodes) > 1:
        return None
    return next((live[name] for name in following[0].input if name in live and live[name][0][0].shape == shape), None)


def fitted(
    node: NodeProto, target: Sequence[Array], before: Sequence[Array], inputs: Live, other: Live | None
) -> tuple[Array, Array]:
    """Weight and bias with the least squared error of a convolution's output, plus the `other` operand of its sum, in
    the narrow network. `target` are the whole network's weight and bias, `before` those to start from: they stay where
    the inputs do not say otherwise."""
    (weight, bias), (wide, shift), rng = before, target, np.random.default_rng(0)
    flat, moments, cross = weight.reshape(len(weight), -1), np.zeros(()), np.zeros(())
    count = max(1, SAMPLES // len(inputs[0]))
    for place, (x, z) in enumerate(zip(*inputs, strict=True)):
        where = positions(node, wide.shape, x.shape, count, rng)
        exact, narrow = (
            patches(node, shape, 1, one, where=where)[0].astype(np.float32)
            for shape, one in ((wide.shape, x), (weight.shape, z))
        )
        lacks = exact @ wide.reshape(len(wide), -1).T + shift - narrow @ flat.T - bias
        if other:
            photo, row, column = where
            whole, small = (side[place][photo, :, row, column].astype(np.float32) for side in other)
            lacks += whole - small
        narrow = with_ones(narrow)
        moments = moments + (narrow.T @ narrow).astype(np.float64)
        cross = cross + (narrow.T @ lacks).astype(np.float64)
    mean, covariance = centred(moments)
    error, cross = cross[-1] / moments[-1, -1], cross[:-1] / moments[-1, -1]
    change = np.linalg.solve(covariance, cross - np.outer(mean, error))
    return weight + change.T.reshape(weight.shape), bias + error - mean @ change


def with_ones(x: Array) -> Array:
    """`[P, K]` with a column of ones behind."""
    return np.concatenate([x, np.ones_like(x[:, :1])], 1)


def centred(moments: Array) -> tuple[Array, Array]:
    """Mean `[K]` and damped covariance `[K, K]`, from sums of products `[K + 1, K + 1]` with a column of ones."""
    total = moments.astype(np.float64) / moments[-1, -1]
    mean, covariance = total[-1, :-1], total[:-1, :-1] - np.outer(total[-1, :-1], total[-1, :-1])
    np.einsum("ii->i", covariance)[:] += max(RIDGE * np.trace(covariance) / max(len(mean), 1), 1e-12)
    return mean, covariance
