"""What runs on int8 kernels and which tensors are u8: those that int8 kernels multiply, and no others.

A residual sum rounded to u8 costs answers at every block, and int8 gains next to nothing there. So sums and products of
computed tensors, and what feeds nothing else, stay float, and convolutions read a u8 copy. Maps of one position (heads,
squeeze and excitation) stay float, too: little is multiplied there, and much depends on it. A 1x1 convolution gives
float values of its int8 products (ONNX Runtime's MatMulIntegerToFloat, see convert.qdq); other int8 kernels give u8
only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, helper

from convert.graph import (
    ACTIVATIONS,
    JOINING,
    PASSING,
    Array,
    Step,
    affine,
    constants,
    pointwise,
    rename,
    sizes,
    steps,
    weighted,
)


@dataclass(frozen=True)
class Placement:
    """Names of the steps that run on int8 kernels, and of the tensors that are u8."""

    int8: frozenset[str]
    u8: frozenset[str]


@dataclass(frozen=True)
class Graph:
    """Steps with who reads what, the tensors that must stay float, and those of one position."""

    found: Sequence[Step]
    values: dict[str, Array]
    keep_float: frozenset[str]
    single: frozenset[str]

    def ask(self, name: str) -> list[Step]:
        """The steps that would read a tensor as u8."""
        return [step for step in self.found if name in step.inputs and self.asks(step)]

    def asks(self, step: Step) -> bool:
        """Whether a step would read u8: one that multiplies on int8 kernels, or hands on to such a step."""
        node, out = step.nodes[0], step.outputs[0]
        if step.op in PASSING:
            return out not in self.keep_float and bool(self.ask(out))
        return self.multiplies(step) and not affine(node, self.values)

    def multiplies(self, step: Step) -> bool:
        """Whether a step can run in int8, given u8 inputs."""
        if not self.keep_float.isdisjoint(step.inputs):
            return False
        gives = step.outputs[0] not in self.keep_float or pointwise(step.nodes[0], self.values)
        joins = step.op in JOINING and len(step.inputs) > 1 and self.feeds(step.outputs[0])
        convolves = weighted(step.nodes[0], self.values) and step.inputs[0] not in self.single
        return gives and (joins or convolves)

    def feeds(self, name: str) -> bool:
        """Whether int8 kernels multiply a tensor, as it is or handed on."""
        return any(
            self.feeds(step.outputs[0]) if step.op in PASSING | JOINING else self.multiplies(step)
            for step in self.found
            if name in step.inputs
        )


def graph_of(model: ModelProto, keep_float: frozenset[str]) -> Graph:
    """What is asked of a prepared graph."""
    found, shapes = steps(model), sizes(model)
    single = frozenset(name for name, size in shapes.items() if len(size) == 4 and size[2:] == [1, 1])
    return Graph(found, constants(model), keep_float | unroundable(found), single)


def unroundable(found: Sequence[Step]) -> set[str]:
    """What float matrix products give, also handed on: ONNX Runtime would quantise the weights of one that stands
    between u8 tensors itself, with one scale and 8 bits, which saturate without VNNI."""
    names = set[str]()
    for step in found:
        hands_on = step.op in PASSING | ACTIVATIONS | {"Identity"} and not names.isdisjoint(step.inputs)
        if hands_on or step.op in {"Gemm", "ConvTranspose"}:
            names.update(step.outputs)
    return names


def place(model: ModelProto, keep_float: frozenset[str], *, entry: bool) -> Placement:
    """Where int8 kernels run in a prepared graph whose input is u8 already if `entry`."""
    graph = graph_of(model, keep_float)
    int8, u8 = set[str](), {model.graph.input[0].name} if entry else set[str]()
    for step in graph.found:
        if graph.multiplies(step) and u8.issuperset(step.inputs):
            int8.add(step.name)
            rounds = not pointwise(step.nodes[0], graph.values)
        else:
            rounds = step.op in PASSING and u8.issuperset(step.inputs)
        u8.update(out for out in step.outputs if out not in graph.keep_float and (rounds or graph.ask(out)))
    return Placement(frozenset(int8), frozenset(u8))


def split(model: ModelProto) -> None:
    """Give the int8 readers of a tensor that others read as float a copy of their own (Identity), to be rounded in its
    place."""
    graph = graph_of(model, frozenset())
    for writer, out in [(step, out) for step in graph.found for out in step.outputs]:
        asking = {reader.nodes[0].name for reader in graph.ask(out)}
        others = [reader for reader in graph.found if out in reader.inputs and reader.nodes[0].name not in asking]
        if asking and others and gives_float(writer, graph.values):
            copy_for(model, writer.nodes[-1], out, asking)


def gives_float(step: Step, values: dict[str, Array]) -> bool:
    """Whether a step gives float values whatever reads them."""
    node = step.nodes[0]
    return pointwise(node, values) or not (weighted(node, values) or step.op in {*JOINING, *PASSING})


def copy_for(model: ModelProto, writer: NodeProto, source: str, asking: set[str]) -> None:
    """Put a copy of a node's output behind it for the readers `asking`."""
    name = f"{source}_copy"
    for node in model.graph.node:
        if node.name in asking:
            rename(node.input, {source: name})
    nodes = list(model.graph.node)
    place = next(index for index, node in enumerate(nodes) if node.name == writer.name)
    nodes.insert(place + 1, helper.make_node("Identity", [source], [name], name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
