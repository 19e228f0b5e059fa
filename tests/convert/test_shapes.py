"""Sizes computed at run time."""

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from convert.errors import ConvertError
from convert.shapes import constant_shapes
from tests.convert.graphs import graph, operators, pictures, run

node = helper.make_node


def flatten() -> list[NodeProto]:
    """What Keras' Flatten is exported to: [batch size, everything else]."""
    return [
        node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "first"], ["batch"]),
        node("Concat", ["batch", "rest"], ["wanted"], axis=0),
        node("Reshape", ["x", "wanted"], ["probabilities"]),
    ]


def of(nodes: list[NodeProto]) -> ModelProto:
    return graph(
        nodes,
        {"first": np.array([0]), "rest": np.array([432])},
        [12, 12, 3],
        pixels=True,
        axes=2 if nodes[-1].op_type == "Reshape" else 4,
    )


def test_the_shape_of_a_flatten_becomes_a_constant_for_every_batch_size() -> None:
    model = of(flatten())
    expected = run(model, pictures(5))[0]
    found = constant_shapes(model)
    assert operators(found) == ["Cast", "Reshape"]
    assert np.array_equal(run(found, pictures(5))[0], expected)
    assert run(found, pictures(1))[0].shape == (1, 432)


def test_a_size_that_a_reshape_finds_itself_is_known_beside_the_batch_size() -> None:
    """Heads of an attention layer: [2 x batch size, whatever is left, 72]."""
    nodes = flatten()
    nodes[2:3] = [node("Gather", ["shape", "first"], ["one"]), node("Mul", ["one", "heads"], ["batch"])]
    model = graph(
        nodes,
        {"first": np.array([0]), "heads": np.array([2]), "rest": np.array([-1, 72])},
        [12, 12, 3],
        pixels=True,
        axes=3,
    )
    expected = run(model, pictures(5))[0]
    assert expected.shape == (10, 3, 72)
    assert np.array_equal(run(constant_shapes(model), pictures(5))[0], expected)


def test_a_graph_without_any_is_left_alone() -> None:
    model = of([node("Cast", ["image"], ["probabilities"], to=TensorProto.FLOAT)])
    before = model.SerializeToString()
    assert constant_shapes(model).SerializeToString() == before


@pytest.mark.parametrize(
    "last",
    [
        [node("Expand", ["x", "shape"], ["probabilities"])],  # the batch size where Expand has no name for it
        [node("ArgMax", ["x"], ["i"], axis=3), node("Cast", ["i"], ["probabilities"], to=TensorProto.FLOAT)],  # pixels
    ],
    ids=["batch size", "pixels"],
)
def test_sizes_that_are_no_constant_are_refused_with_the_node(last: list[NodeProto]) -> None:
    nodes = [node("Cast", ["image"], ["x"], to=TensorProto.FLOAT), node("Shape", ["x"], ["shape"]), *last]
    with pytest.raises(ConvertError, match=r"node '(Expand|Cast)_3?2?' .* takes sizes computed at run time"):
        constant_shapes(of(nodes))


def test_a_comparison_of_values_is_told_as_such() -> None:
    nodes = [
        node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        node("Greater", ["x", "limit"], ["above"]),
        node("Cast", ["above"], ["mask"], to=TensorProto.FLOAT),
        node("Mul", ["x", "mask"], ["probabilities"]),
    ]
    model = graph(nodes, {"limit": np.array(100, np.float32)}, [12, 12, 3], pixels=True)
    with pytest.raises(ConvertError, match=r"node 'Cast_2' .* takes a comparison of values"):
        constant_shapes(model)
