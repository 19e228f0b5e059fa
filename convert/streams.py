"""What runs on int8 kernels and which tensors are u8: those that int8 kernels multiply, and no others.

A residual sum rounded to u8 costs answers at every block, and int8 gains next to nothing there. So sums of computed
tensors, and what feeds nothing else, stay float, and convolutions read a u8 copy. A 1x1 convolution gives float values
of its int8 products (ONNX Runtime's MatMulIntegerToFloat, see convert.qdq); other int8 kernels give u8 only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, helper

from convert.graph import (
    ELEMENTWISE,
    PASSING,
    Array,
    Step,
    affine,
    constants,
    pointwise,
    rename,
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
    """Steps with who reads what, and the tensors that must stay float."""

    found: Sequence[Step]
    values: dict[str, Array]
    keep_float: frozenset[str]

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
        arithmetic = step.op in ELEMENTWISE and len(step.inputs) > 1
        return gives and (arithmetic or weighted(step.nodes[0], self.values))


def place(model: ModelProto, keep_float: frozenset[str], *, entry: bool) -> Placement:
    """Where int8 kernels run in a prepared graph whose input is u8 already if `entry`."""
    graph = Graph(steps(model), constants(model), keep_float)
    int8, u8 = set[str](), {model.graph.input[0].name} if entry else set[str]()
    for step in graph.found:
        if graph.multiplies(step) and u8.issuperset(step.inputs):
            int8.add(step.name)
            rounds = not pointwise(step.nodes[0], graph.values)
        else:
            rounds = step.op in PASSING and u8.issuperset(step.inputs)
        u8.update(out for out in step.outputs if out not in keep_float and (rounds or graph.ask(out)))
    return Placement(frozenset(int8), frozenset(u8))


def split(model: ModelProto) -> None:
    """Give the int8 readers of a tensor that others read as float a copy of their own (Identity), to be rounded in its
    place."""
    graph = Graph(steps(model), constants(model), frozenset())
    for writer, out in [(step, out) for step in graph.found for out in step.outputs]:
        asking = {reader.nodes[0].name for reader in graph.ask(out)}
        others = [reader for reader in graph.found if out in reader.inputs and reader.nodes[0].name not in asking]
        if asking and others and gives_float(writer, graph.values):
            copy_for(model, writer.nodes[-1], out, asking)


def gives_float(step: Step, values: dict[str, Array]) -> bool:
    """Whether a step gives float values whatever reads them."""
    node = step.nodes[0]
    return pointwise(node, values) or not (weighted(node, values) or step.op in {*ELEMENTWISE, *PASSING})


def copy_for(model: ModelProto, writer: NodeProto, source: str, asking: set[str]) -> None:
    """Put a copy of a node's output behind it for the readers `asking`."""
    name = f"{source}_copy"
    for node in model.graph.node:
        if node.name in asking:
            rename(node.input, {source: name})
    nodes = list(model.graph.node)
    nodes.insert(nodes.index(writer) + 1, helper.make_node("Identity", [source], [name], name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
