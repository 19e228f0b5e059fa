"""Channel pruning without training: fewer multiplications for answers that stay, by least squares alone.

A channel between two convolutions may go when the convolution that reads it can make good for it from the other
channels. Which ones, and at what error of that convolution's output, is found as in Optimal Brain Surgeon (Hassibi and
Stork 1993; over whole channels as in Kurtic et al. 2023, ZipLM, arXiv 2302.04089). How much an error counts is measured
at the answers. Then channels go where they cost least a multiplication, and what reads the others is fitted to them
(convert.refit).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from convert.errors import ConvertError
from convert.graph import (
    Array,
    attribute,
    bias_of,
    constants,
    depthwise,
    looking,
    node_of,
    readers,
    set_weights,
    tidy,
    weight_of,
    weighted,
)
from convert.optimise import Folded
from convert.progress import Progress
from convert.ranges import decoded
from convert.refit import SAMPLES, centred, refit, with_ones
from convert.walk import effort, macs, patches, positions
from service.cpu import cores

CHUNK = 16  # channels go by so many: kernels work on them together
WITHIN = 0.02  # of the share asked for
MEASURED = 32  # batches that channels are measured on
LEAST_ANSWER = 1e-6  # probability below which answers do not differ
PROBES = 2  # batches that an effect is measured on
MOST_BYTES = 1 << 30  # of moments at a time


@dataclass(frozen=True)
class Site:
    """Channels of one tensor that a convolution writes and another one alone reads. Node names; `between` are the
    depthwise convolutions on the way."""

    writer: str
    between: tuple[str, ...]
    reader: str
    tensor: str
    channels: int


@dataclass(frozen=True)
class Curve:
    """A site's channels in the order in which they go, the squared error of the reader's output (mean a position) after
    none, CHUNK, 2 CHUNK, ... of them, and where about half are gone: that error, the reader's weight with zeros in
    their place, and what its bias changes by."""

    order: NDArray[np.intp]
    errors: Array
    half: tuple[float, Array, Array]


def sites(model: ModelProto) -> list[Site]:
    """Where channels can go, in order."""
    values = constants(model)
    writers = {name: node for node in model.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        if not dense(node, values):
            continue
        between, source = list[str](), writers.get(node.input[0])
        while source is not None and len(readers(model, source.output[0])) == 1:
            if dense(source, values):
                channels = values[source.input[1]].shape[0]
                found.append(Site(source.name, tuple(between), node.name, node.input[0], channels))
                break
            if depthwise(source, values):
                between.append(source.name)
            elif source.op_type not in {"Relu", "Clip"}:
                break
            source = writers.get(source.input[0])
    return found


def dense(node: NodeProto, values: Mapping[str, Array]) -> bool:
    """Whether every output channel of a convolution takes every input channel."""
    return weighted(node, values) and attribute(node, "group", 1) == 1


def prune(folded: Folded, pixels: Sequence[NDArray[np.uint8]], share: float, progress: Progress) -> Folded:
    """The network with channels taken out until about `share` of its multiplications is left. `pixels` are batches
    `[N, H, W, 3]` of calibration photos.

    Raises:
        ConvertError: the network has no room for that.
    """
    model, entry = folded.model, folded.entry
    found, work = sites(model), macs_of(model, decoded(pixels[0][:1], entry))
    curves = measured(folded, found, pixels[:MEASURED], progress)
    with progress.stage("measure what channels do", len(found)) as tick:
        effects = effects_of(model, curves, [decoded(batch, entry) for batch in pixels[:PROBES]], tick)
    widths = allocate(curves, effects, work, share)
    remaining = left(work, widths) / sum(work.values())
    if remaining > share + WITHIN:
        raise ConvertError(
            f"{100 * remaining:.1f} % of the multiplications is the least that pruning leaves of this network (it takes"
            " channels between two convolutions with nothing but ReLU and depthwise ones between them): give"
            f" --macs {ceil(100 * remaining)} or more"
        )
    chosen = {site: curves[site].order[site.channels - width :] for site, width in widths.items()}
    small, written = narrowed(model, chosen), {site.writer: np.sort(channels) for site, channels in chosen.items()}
    with progress.stage("prune and fit", effort(model, pixels[0][:1], entry)) as tick:
        refit(folded, small, written, pixels, tick)
    progress.note(f"pruned: {100 * remaining:.1f} % of the multiplications are left")
    return Folded(tidy(small), entry, remaining)


def macs_of(model: ModelProto, feed: Array) -> dict[str, int]:
    """Multiplications of every convolution for one photo, by node name."""
    values = constants(model)
    nodes = [node for node in model.graph.node if weighted(node, values)]
    outputs = looking(model, [node.output[0] for node in nodes], cores())(feed)
    return {node.name: macs(values[node.input[1]], out) for node, out in zip(nodes, outputs, strict=True)}


def measured(
    folded: Folded, found: Sequence[Site], pixels: Sequence[NDArray[np.uint8]], progress: Progress
) -> dict[Site, Curve]:
    """The curve of every site, as many sites at a time as their moments fit memory."""
    model, curves = folded.model, dict[Site, Curve]()
    nodes = {site: node_of(model, site.reader) for site in found}
    weights = {site: weight_of(model, node) for site, node in nodes.items()}
    parts = portions({site: 4 * weight[0].size ** 2 for site, weight in weights.items()})
    with progress.stage("measure channels", len(parts) * len(pixels) + len(found)) as tick:
        for portion in parts:
            moments = dict.fromkeys(portion, np.zeros((), np.float32))
            look, rng = looking(model, [site.tensor for site in portion], cores()), np.random.default_rng(0)
            for batch in pixels:
                for site, tensor in zip(portion, look(decoded(batch, folded.entry)), strict=True):
                    x = rows(nodes[site], weights[site], tensor, SAMPLES // len(pixels), rng)
                    moments[site] = moments[site] + x.T @ x
                tick()
            del look  # its session keeps every tensor of a batch
            for site in portion:
                curves[site] = curve(weights[site], moments.pop(site))
                tick()
    return curves


def portions(sizes: Mapping[Site, int]) -> list[list[Site]]:
    """Sites in order, as many together as MOST_BYTES hold, one at least."""
    found, room = list[list[Site]](), 0
    for site, size in sizes.items():
        if size > room:
            found.append([])
            room = MOST_BYTES
        found[-1].append(site)
        room -= size
    return found


def rows(node: NodeProto, weight: Array, tensor: Array, count: int, rng: np.random.Generator) -> Array:
    """Input patches `[P, K + 1]` under random output positions of a convolution; the last column is 1."""
    where = positions(node, weight.shape, tensor.shape, max(1, count), rng)
    return with_ones(patches(node, weight.shape, 1, tensor, where=where)[0].astype(np.float32))


def curve(weight: Array, moments: Array) -> Curve:
    """The order in which the input channels of a convolution `[O, C, h, w]` go, and what that costs."""
    mean, covariance = centred(moments)
    inverse, w = np.linalg.inv(covariance).astype(np.float32), weight.reshape(len(weight), -1).astype(np.float32)
    alive, gone, errors = np.arange(weight.shape[1]), list[NDArray[np.intp]](), [0.0]
    half = (0.0, weight, np.zeros(len(weight)))
    while len(alive) > CHUNK:
        columns = np.arange(w.shape[1]).reshape(len(alive), -1)
        cheapest = np.argsort(costs(w, inverse, columns), kind="stable")[:CHUNK]
        out, stay = columns[cheapest].reshape(-1), np.delete(columns, cheapest, 0).reshape(-1)
        push = np.linalg.solve(inverse[np.ix_(out, out)].astype(np.float64), w[:, out].T.astype(np.float64))
        errors.append(errors[-1] + float((push * w[:, out].T).sum()))
        w = w[:, stay] - push.T.astype(np.float32) @ inverse[np.ix_(out, stay)]
        spread = np.linalg.solve(inverse[np.ix_(out, out)].astype(np.float64), inverse[np.ix_(out, stay)])
        inverse = inverse[np.ix_(stay, stay)] - inverse[np.ix_(stay, out)] @ spread.astype(np.float32)
        gone.append(alive[cheapest])
        alive = np.delete(alive, cheapest)
        if len(gone) == 1 or 2 * len(alive) >= weight.shape[1]:
            half = (errors[-1], *spread_out(weight, w, alive, mean))
    return Curve(np.concatenate([*gone, alive]), np.array(errors), half)


def costs(w: Array, inverse: Array, columns: NDArray[np.intp]) -> Array:
    """The squared error of leaving out each group of columns, the others making good for it (Optimal Brain Surgeon):
    trace of W_g (H^-1_gg)^-1 W_g^T."""
    blocks = inverse[columns[:, :, None], columns[:, None, :]].astype(np.float64)
    own = w[:, columns].astype(np.float64)
    found: Array = np.einsum("ogk,gkl,ogl->g", own, np.linalg.inv(blocks), own, optimize=True)
    return found


def spread_out(weight: Array, w: Array, alive: NDArray[np.intp], mean: Array) -> tuple[Array, Array]:
    """The weight `[O, C, h, w]` with zeros for all channels but those alive, and what the bias changes by."""
    full = np.zeros(weight.shape, np.float32)
    full[:, alive] = w.reshape(len(w), len(alive), *weight.shape[2:])
    return full, (weight - full).reshape(len(w), -1) @ mean


def effects_of(
    model: ModelProto, curves: Mapping[Site, Curve], feeds: Sequence[Array], tick: Callable[[], None]
) -> dict[Site, float]:
    """Squared error of the answers' logarithms for one of a reader's output, measured with about half of a site's
    channels gone. (Of logarithms, because errors of answers themselves come from the few undecided photos alone.)"""
    exact, effects = logarithms(model, feeds), dict[Site, float]()
    for site, found in curves.items():
        error, weight, change = found.half
        copy = ModelProto()
        copy.CopyFrom(model)
        node = node_of(copy, site.reader)
        set_weights(copy, node, weight, bias_of(copy, node) + change)
        effects[site] = float(np.square(logarithms(copy, feeds) - exact).sum()) / max(error, 1e-30)
        tick()
    return effects


def logarithms(model: ModelProto, feeds: Sequence[Array]) -> Array:
    """Logarithms of the answers to all feeds, each photo's around 0."""
    look = looking(model, [output.name for output in model.graph.output], cores())
    found = np.log(np.maximum(np.concatenate([look(feed)[0] for feed in feeds]), LEAST_ANSWER))
    around: Array = found - found.mean(1, keepdims=True)
    return around


def allocate(
    curves: Mapping[Site, Curve], effects: Mapping[Site, float], work: Mapping[str, int], share: float
) -> dict[Site, int]:
    """Channels that stay at each site: those go first that cost the answers least for a multiplication saved."""
    widths, total = {site: site.channels for site in curves}, sum(work.values())
    while left(work, widths) > share * total:
        narrower = [site for site, width in widths.items() if width > CHUNK]
        if not narrower:
            break
        price = {site: added(curves[site], site.channels - widths[site]) * effects[site] for site in narrower}
        now = left(work, widths)
        chosen = min(narrower, key=lambda site: price[site] / (now - left(work, widths | {site: widths[site] - CHUNK})))
        widths[chosen] -= CHUNK
    return widths


def added(found: Curve, gone: int) -> float:
    """What one chunk more adds to the error."""
    return float(found.errors[gone // CHUNK + 1] - found.errors[gone // CHUNK])


def left(work: Mapping[str, int], widths: Mapping[Site, int]) -> float:
    """Multiplications of a network of these widths, from those of the whole one."""
    shares = dict.fromkeys(work, 1.0)
    for site, width in widths.items():
        for name in (site.writer, *site.between, site.reader):
            shares[name] *= width / site.channels
    return sum(shares[name] * count for name, count in work.items())


def narrowed(model: ModelProto, chosen: Mapping[Site, NDArray[np.intp]]) -> ModelProto:
    """A copy with only the chosen channels of each site, all weights otherwise as they were."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for site, channels in chosen.items():
        stay = np.sort(channels)
        for node in [node_of(copy, name) for name in (site.writer, *site.between)]:
            set_weights(copy, node, weight_of(copy, node)[stay], bias_of(copy, node)[stay])
            if node.name in site.between:
                next(a for a in node.attribute if a.name == "group").i = len(stay)
        node = node_of(copy, site.reader)
        set_weights(copy, node, weight_of(copy, node)[:, stay], bias_of(copy, node))
    del copy.graph.value_info[:]
    return copy
