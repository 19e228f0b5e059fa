"""Per-channel additions wait for the next one."""

from collections import Counter

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper

from convert.graph import Array, constants
from convert.shifts import carry
from tests.convert.graphs import graph, normal, operators, run

C = 5
VALUES: dict[str, Array] = {
    **{f"{name}_bias": normal(1, C, 1, 1, seed=k) for k, name in enumerate("abcd")},
    "factor": normal(1, C, 1, 1, seed=7),
    "shift": normal(1, C, 1, 1, seed=8),
}


def node(kind: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], output, **attributes)


def blocks(*last: NodeProto) -> ModelProto:
    """Two biased branches, pooled, and a third one on top; what reads the sum is given."""
    nodes = [
        node("Sin", "image", "a"),
        node("Add", "a a_bias", "a2"),
        node("Cos", "image", "b"),
        node("Add", "b_bias b", "b2"),
        node("Add", "a2 b2", "sum"),
        node("MaxPool", "sum", "pooled", kernel_shape=[1, 1], strides=[2, 2]),
        node("Relu", "pooled2", "c"),
        node("Add", "c c_bias", "c2"),
        node("Add", "pooled c2", "sum2"),
    ]
    nodes.insert(6, node("Mul", "pooled factor", "scaled"))
    nodes.insert(7, node("Add", "scaled shift", "pooled2"))
    return graph([*nodes, *last], VALUES, [C, 6, 6])


NORMALISED = [node("Mul", "sum2 factor", "scaled2"), node("Add", "scaled2 d_bias", "probabilities")]


def test_a_normalisation_takes_the_biases_of_every_branch_before_it() -> None:
    model, image = blocks(*NORMALISED), normal(2, C, 6, 6)
    carried = carry(model)
    np.testing.assert_allclose(run(carried, image)[0], run(blocks(*NORMALISED), image)[0], atol=1e-5)
    assert Counter(operators(carried))["Add"] == 4  # two sums and two shifts of seven
    assert not {"a_bias", "b_bias", "c_bias"} & constants(carried).keys()


@pytest.mark.parametrize(
    "last",
    [
        [node("Relu", "sum2", "probabilities")],
        [*NORMALISED[:1], node("Relu", "scaled2", "probabilities")],
        [node("Relu", "sum2", "e"), node("Add", "sum2 e", "probabilities")],
        [node("Mul", "sum2 sum2", "probabilities")],
        [node("Identity", "sum2", "probabilities")],
    ],
)
def test_a_bias_stays_where_any_reader_needs_it(last: list[NodeProto]) -> None:
    copy, image = ModelProto(), normal(2, C, 6, 6)
    copy.CopyFrom(blocks(*last))
    carried = carry(copy)
    np.testing.assert_allclose(run(carried, image)[0], run(blocks(*last), image)[0], atol=1e-5)
    assert {"a_bias", "c_bias"} <= constants(carried).keys()


def test_a_graph_without_such_additions_stays_the_same_to_the_byte() -> None:
    model = graph([node("Relu", "image", "a"), node("Mul", "a factor", "probabilities")], VALUES, [C, 6, 6])
    before = carry(model).SerializeToString()
    assert carry(carry(model)).SerializeToString() == before
