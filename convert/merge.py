"""Residual blocks that change little are merged into the block before them, as many as the answers allow.

A block adds a branch to its stream: s' = s + f(s). Successive blocks with small branches see nearly the same stream,
and the features of one branch can stand for those of the others: its last convolution is fitted by least squares to the
stream behind all of them, and they go. Every later block's last convolution is fitted too, on the stream as the merged
network has it, so that errors are corrected instead of handed on.

Sources: residual networks keep their answers without single blocks (Veit et al. 2016, arXiv 1605.06431); least-squares
reconstruction of what a network without some of its parts should give (He et al. 2017, arXiv 1707.06168).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from convert.graph import Array, add_constant, constants, like, pointwise, readers, rename, session, tidy
from convert.progress import Progress
from convert.walk import Stored, narrowed, widened
from service.cpu import cores

SMALL = 0.01  # of the variance of its sum: a branch that may be merged
SIZE = 3  # blocks that become one, at most
FITTED = 512  # photos that convolutions are fitted on
MEASURED = 48  # photos that branches are measured on
DAMPING = 1e-4  # of the mean square of the features


@dataclass(frozen=True)
class Block:
    """One sum: its tensor, the stream that it adds to ("" where both operands end in a convolution), and the 1x1
    convolutions that end its branches, each with the features that it takes."""

    sum: str
    stream: str
    ends: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Depth:
    """How many residual blocks a network had, and how many of them others do the work of now."""

    blocks: int = 0
    merged: int = 0


Groups = Sequence[Sequence[Block]]


def blocks(model: ModelProto) -> list[Block]:
    """The residual blocks in order."""
    values, writers = constants(model), {name: node for node in model.graph.node for name in node.output}
    found = []
    for add in [node for node in model.graph.node if node.op_type == "Add" and values.keys().isdisjoint(node.input)]:
        ends = [writers[name] for name in add.input if name in writers and ends_branch(model, writers[name], values)]
        streams = [name for name in add.input if name not in {node.output[0] for node in ends}]
        if ends and len(set(add.input)) == 2:
            branches = tuple((node.name, node.input[0]) for node in ends)
            found.append(Block(add.output[0], streams[0] if streams else "", branches))
    return found


def ends_branch(model: ModelProto, node: NodeProto, values: Mapping[str, Array]) -> bool:
    """Whether a node is a 1x1 convolution that is read once."""
    return pointwise(node, values) and len(readers(model, node.output[0])) == 1


def plain(model: ModelProto, found: Sequence[Block], feed: Array) -> list[Block]:
    """The blocks whose sum takes each of its operands as it is, without broadcasting, on one batch of input."""
    operands = {node.output[0]: list(node.input) for node in model.graph.node}
    names = list(dict.fromkeys(name for block in found for name in (block.sum, *operands[block.sum])))
    if not names:
        return []
    values = session(between(model, set(), names), cores()).run(names, {model.graph.input[0].name: feed})
    shapes = {name: value.shape for name, value in zip(names, values, strict=True)}
    return [block for block in found if {shapes[name] for name in operands[block.sum]} == {shapes[block.sum]}]


def mergeable(model: ModelProto, found: Sequence[Block], feeds: Sequence[Array]) -> set[str]:
    """Sums of blocks whose branch changes the stream by next to nothing and that can go: all that reads the stream
    before them are they themselves."""
    outputs = {node.name: node.output[0] for node in model.graph.node}
    sums = {block.sum for block in found}
    candidates = [block for block in found if block.stream in sums and ends_stream(model, block)]
    names = list(dict.fromkeys(name for block in candidates for name in (outputs[block.ends[0][0]], block.sum)))
    if not names:
        return set()
    spread = variances(model, names, feeds)
    return {block.sum for block in candidates if spread[outputs[block.ends[0][0]]] < SMALL * spread[block.sum]}


def ends_stream(model: ModelProto, block: Block) -> bool:
    """Whether nothing but this block reads the stream before it."""
    others = needed(model, [output.name for output in model.graph.output], {block.sum})
    return not any(block.stream in node.input for node in others)


def variances(model: ModelProto, names: Sequence[str], feeds: Sequence[Array]) -> dict[str, float]:
    """The variance of each tensor `[N, C, H, W]` over photos and places, summed over channels."""
    totals = {name: np.zeros((2, 1)) for name in names}
    engine, count = session(between(model, set(), names), cores()), 0
    for feed in feeds:
        for name, found in zip(names, engine.run(list(names), {model.graph.input[0].name: feed}), strict=True):
            flat = found.astype(np.float64).transpose(1, 0, 2, 3).reshape(found.shape[1], -1)
            totals[name] = totals[name] + np.stack([flat.mean(1), np.square(flat).mean(1)])
        count += 1
    return {name: float((square / count - np.square(mean / count)).sum()) for name, (mean, square) in totals.items()}


def runs(found: Sequence[Block], small: Set[str]) -> list[set[str]]:
    """Sums of small blocks that follow one another, in order, the first of them behind another block."""
    joined = list[set[str]]()
    for before, block in pairwise(found):
        if block.sum in small and block.stream == before.sum:
            if before.sum not in small or not joined:
                joined.append(set())
            joined[-1].add(block.sum)
    return joined


def grouped(found: Sequence[Block], small: Set[str]) -> list[list[Block]]:
    """Blocks in groups of up to SIZE, of which the first stays: small ones join the group before them."""
    groups = list[list[Block]]()
    for block in found:
        follows = groups and block.sum in small and block.stream == groups[-1][-1].sum
        if follows and len(groups[-1]) < SIZE:
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups


def shortened(
    model: ModelProto,
    feeds: Sequence[Array],
    error: Callable[[ModelProto], float],
    accepted: Callable[[ModelProto], bool],
    progress: Progress,
) -> tuple[ModelProto, Depth]:
    """The network with as many blocks merged as is accepted: all runs of small blocks, then all but the dearest, and so
    on. What a run costs, the squared `error` of the answers a block saved, is measured with it merged alone. `feeds`
    are batches of the network's input that convolutions are fitted on."""
    found = plain(model, blocks(model), feeds[0][:1])
    with progress.stage("measure residual branches", 1) as tick:
        joined = runs(found, mergeable(model, found, feeds[: -(-MEASURED // len(feeds[0]))]))
        tick()
    cheapest = by_cost(model, found, joined, feeds, error=error, progress=progress) if len(joined) > 1 else joined
    for count in range(len(cheapest), 0, -1):
        groups = grouped(found, set().union(*cheapest[:count]))
        with progress.stage(f"merge {len(found)} residual blocks to {len(groups)}", len(groups)) as tick:
            result = merged(model, groups, feeds, tick)
        if accepted(result):
            return result, Depth(len(found), len(found) - len(groups))
    return model, Depth(len(found), 0)


def by_cost(
    model: ModelProto,
    found: Sequence[Block],
    joined: Sequence[set[str]],
    feeds: Sequence[Array],
    *,
    error: Callable[[ModelProto], float],
    progress: Progress,
) -> list[set[str]]:
    """Runs of small blocks, the one that costs least a block saved first."""
    costs = []
    with progress.stage("merge residual blocks, run by run", len(joined)) as tick:
        for run in joined:
            groups = grouped(found, run)
            last = max(place for place, group in enumerate(groups) if len(group) > 1)
            alone = merged(model, groups[: last + 1], feeds, lambda: None)
            costs.append(error(alone) / (len(found) - len(groups)))
            tick()
    return [joined[place] for place in np.argsort(costs, kind="stable")]


def merged(model: ModelProto, groups: Groups, feeds: Sequence[Array], tick: Callable[[], None]) -> ModelProto:
    """The network with one block a group. From the first group that loses a block on, every group's last convolution is
    fitted to the stream that the whole network has behind it; `tick` is called after each."""
    first = next(place for place, group in enumerate(groups) if len(group) > 1)
    fitted, source = groups[first:], model.graph.input[0].name
    wanted = streams(model, [group[-1].sum for group in fitted], feeds)
    result = ModelProto()
    result.CopyFrom(model)
    known: dict[str, Sequence[Array]] = {source: feeds}
    renamed = dict[str, str]()
    for group in fitted:
        leader, end = group[0], group[-1].sum
        leader = replace(leader, stream=renamed.get(leader.stream, leader.stream))
        inputs = Inputs(result, leader, known)
        weight, bias = solve(inputs, wanted.pop(end), *weights(result, leader))
        replace_weights(result, leader, weight, bias)
        known = {source: feeds, leader.sum: inputs.sums(weight, bias)}
        drop(result, end, leader.sum)
        renamed[end] = leader.sum
        tick()
    return tidy(result)


def streams(model: ModelProto, names: Sequence[str], feeds: Sequence[Array]) -> dict[str, Stored]:
    """Tensors of the whole network, in batches."""
    found = {name: Stored() for name in names}
    engine = session(between(model, set(), names), cores())
    for feed in feeds:
        for into, batch in zip(found.values(), engine.run(list(found), {model.graph.input[0].name: feed}), strict=True):
            into.append(narrowed(batch))
    return found


class Inputs:
    """What a block adds, in batches: the stream `[N, O, H, W]`, if there is one, and the features `[N, I, H, W]` that
    its last convolutions take, one behind the other. Computed from the tensors that are `known`."""

    def __init__(self, model: ModelProto, block: Block, known: Mapping[str, Sequence[Array]]) -> None:
        self.features, self.streams = Stored(), Stored()
        names = [features for _, features in block.ends]
        wanted = sorted({*names, block.stream} - known.keys() - {""})
        engine = session(between(model, known.keys(), wanted), cores())
        inputs = [entry.name for entry in engine.get_inputs()]
        for batches in zip(*known.values(), strict=True):
            values = {name: widened(batch) for name, batch in zip(known, batches, strict=True)}
            values |= zip(wanted, engine.run(wanted, {name: values[name] for name in inputs}), strict=True)
            self.features.append(narrowed(np.concatenate([values[name] for name in names], 1)))
            if block.stream:
                self.streams.append(narrowed(values[block.stream]))

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        for place, features in enumerate(self.features):
            yield widened(features), widened(self.streams[place]) if self.streams else np.zeros(1, np.float32)

    def sums(self, weight: Array, bias: Array) -> Stored:
        """The block's sums with this weight `[O, I]` and bias `[O]`."""
        found = Stored()
        for features, stream in self:
            branch = np.matmul(weight, features.reshape(*features.shape[:2], -1)) + bias[:, None]
            found.append(narrowed(stream + branch.reshape(len(branch), -1, *features.shape[2:])))
        return found


def solve(
    inputs: Iterable[tuple[Array, Array]], wanted: Sequence[Array], weight: Array, bias: Array
) -> tuple[Array, Array]:
    """Weight `[O, I]` and bias `[O]`, float32, with the least squared error of stream + weight features + bias; those
    given are kept where the features do not say otherwise (ridge regression of the change)."""
    square, cross, count = np.zeros(()), np.zeros(()), 0
    for (features, stream), target in zip(inputs, wanted, strict=True):
        x = rows(features)
        y = rows(widened(target) - stream) - (x @ weight.T + bias)
        x = np.concatenate([x, np.ones_like(x[:, :1])], 1)
        square = square + (x.T @ x).astype(np.float64)
        cross = cross + (x.T @ y).astype(np.float64)
        count += len(x)
    diagonal = np.einsum("ii->i", square)[:-1]
    diagonal += DAMPING * diagonal.mean() + 1e-12 * count
    change = np.linalg.solve(square, cross).astype(np.float32)
    return weight + change[:-1].T, bias + change[-1]


def weights(model: ModelProto, block: Block) -> tuple[Array, Array]:
    """The weights `[O, I]` of a block's last convolutions, one behind the other, and the sum of their biases `[O]`."""
    values, nodes = constants(model), {node.name: node for node in model.graph.node}
    ends = [nodes[name].input for name, _ in block.ends]
    weight = np.concatenate([values[names[1]][:, :, 0, 0] for names in ends], 1)
    zero = np.zeros(len(weight), np.float32)
    return weight, sum((values[names[2]] for names in ends if len(names) > 2), start=zero)


def rows(tensor: Array) -> Array:
    """`[N, C, H, W]` as `[N H W, C]`."""
    return np.ascontiguousarray(tensor.transpose(0, 2, 3, 1)).reshape(-1, tensor.shape[1])


def replace_weights(model: ModelProto, block: Block, weight: Array, bias: Array) -> None:
    """Give a block's last convolutions a weight of their own each, and the first of them the bias."""
    values, nodes, start = constants(model), {node.name: node for node in model.graph.node}, 0
    for name, _ in block.ends:
        node, own = nodes[name], f"{name}_{block.sum}"
        width = values[node.input[1]].shape[1]
        inputs = [add_constant(model, f"{own}_weight", weight[:, start : start + width, None, None])]
        if not start:
            inputs.append(add_constant(model, f"{own}_bias", bias))
        del node.input[1:]
        node.input.extend(inputs)
        start += width


def drop(model: ModelProto, tensor: str, other: str) -> None:
    """Let all that reads a tensor read another one, and remove what nothing reads any more."""
    if tensor != other:
        for node in model.graph.node:
            rename(node.input, {tensor: other})
    kept = needed(model, [output.name for output in model.graph.output])
    del model.graph.node[:]
    model.graph.node.extend(kept)


def needed(model: ModelProto, wanted: Iterable[str], given: Set[str] = frozenset()) -> list[NodeProto]:
    """The nodes that compute the wanted tensors where some are given, in order."""
    kept, read = list[NodeProto](), set(wanted)
    for node in reversed(model.graph.node):
        if not read.isdisjoint(node.output) and given.isdisjoint(node.output):
            kept.append(node)
            read.update(node.input)
    return kept[::-1]


def between(model: ModelProto, given: Set[str], wanted: Sequence[str]) -> ModelProto:
    """The part of a network that computes some tensors from others and, where those do not suffice, its input."""
    nodes, source = needed(model, wanted, given), model.graph.input[0]
    read = {name for node in nodes for name in node.input}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in sorted(given - {source.name})]
    inputs = [entry for entry in (source, *inputs) if entry.name in read]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted]
    weights = [tensor for tensor in model.graph.initializer if tensor.name in read]
    return like(model, helper.make_graph(nodes, "part", inputs, outputs, weights))
