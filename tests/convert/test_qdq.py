"""How the quantised graph is written."""

import numpy as np
import pytest
from onnx import ModelProto, helper

from convert import qdq
from convert.graph import one_position
from convert.walk import Quantisation, Recipe, walk
from tests.convert.graphs import ENTRY, batches, fused, graph, normal, operators, pictures, run

node = helper.make_node


def quantised(model: ModelProto) -> Quantisation:
    return walk(model, batches(), ENTRY, Recipe(), lambda: None)


def bordered(value: float = 0.0) -> ModelProto:
    """The stem of a ResNet V2: signed values, a border around them, the largest of 3 x 3, a convolution."""
    nodes = [
        node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Pad", ["c", "border", "value"], ["p"]),
        node("MaxPool", ["p"], ["m"], kernel_shape=[3, 3], strides=[2, 2]),
        node("Conv", ["m", "v"], ["o"]),
        node("Relu", ["o"], ["s"]),
        node("Conv", ["s", "u"], ["probabilities"]),
    ]
    weights = {"w": normal(8, 3, 3, 3), "v": normal(4, 8, 3, 3, seed=1), "u": normal(4, 4, 1, 1, seed=2)}
    border = {"border": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "value": np.array(value, np.float32)}
    return graph(nodes, weights | border, [12, 12, 3])


def test_a_border_of_zeros_is_put_around_the_codes_and_the_answers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bordered()
    found = quantised(model)
    written = qdq.write(model, found)
    monkeypatch.setattr(qdq, "zeros_around", lambda *_: None)
    decoded = qdq.write(model, found)
    np.testing.assert_array_equal(run(written, pictures())[0], run(decoded, pictures())[0])
    assert fused(decoded)["QuantizeLinear"] == 1
    assert "QuantizeLinear" not in fused(written)


def test_a_border_of_another_value_is_put_around_the_values() -> None:
    model = bordered(value=-0.5)
    written = qdq.write(model, quantised(model))
    pad = next(each for each in written.graph.node if each.op_type == "Pad")
    assert pad.input[0].endswith("_dq")
    expected = run(model, ENTRY.dequantise(pictures()))[0]
    np.testing.assert_allclose(run(written, pictures())[0], expected, atol=0.05 * expected.max())


def strided() -> ModelProto:
    """A product of codes, every other position of it, and what reads both."""
    nodes = [
        node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "v"], ["o"]),
        node("MaxPool", ["o"], ["half"], kernel_shape=[1, 1], strides=[2, 2]),
        node("Sigmoid", ["half"], ["probabilities"]),
    ]
    return graph(nodes, {"w": normal(8, 3, 3, 3), "v": normal(4, 8, 1, 1, seed=1)}, [13, 12, 3])


def test_a_pooling_of_single_positions_takes_them_as_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    model = strided()
    pixels = [np.pad(batch, ((0, 0), (0, 1), (0, 0), (0, 0)), mode="edge") for batch in batches()]
    found = walk(model, pixels, ENTRY, Recipe(), lambda: None)
    written = qdq.write(model, found)
    monkeypatch.setattr(qdq, "one_position", lambda _: False)
    pooled = qdq.write(model, found)
    np.testing.assert_array_equal(run(written, pixels[0])[0], run(pooled, pixels[0])[0])
    assert "Slice" in operators(written)
    assert "MaxPool" not in operators(written)


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [1, 2]},
        {"kernel_shape": [1, 1], "pads": [0, 0, 1, 1]},
        {"kernel_shape": [2, 2], "strides": [2, 2]},
    ],
)
def test_other_poolings_are_none_of_single_positions(attributes: dict[str, list[int]]) -> None:
    assert one_position(node("MaxPool", ["a"], ["b"], kernel_shape=[1, 1]))
    assert not one_position(node("MaxPool", ["a"], ["b"], **attributes))
    assert not one_position(node("AveragePool", ["a"], ["b"], kernel_shape=[1, 1]))
