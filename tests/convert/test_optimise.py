"""Graph rewrites change no answer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from convert.graph import Array, tidy
from convert.optimise import affine_to_depthwise, fold_input, merge_pointwise, pads_into_pools, prepare
from tests.convert.graphs import graph, normal, operators, pictures, run

node = helper.make_node


def entered(chain: Sequence[NodeProto], constants: dict[str, Array], *, group: int = 1, pads: int = 0) -> ModelProto:
    """Pixels, cast, through `chain` (from `p` to `x`), into a convolution."""
    weight = normal(6, 3 // group, 3, 3)
    nodes = [
        node("Cast", ["image"], ["p"], to=TensorProto.FLOAT),
        *chain,
        node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w", "b"], ["probabilities"], group=group, pads=[pads] * 4, strides=[2, 2]),
    ]
    return graph(nodes, {"w": weight, "b": normal(6, seed=1), **constants}, [12, 12, 3], pixels=True)


def scalar(value: float) -> Array:
    return np.array(value, np.float32)


def colours(*values: float) -> Array:
    return np.array(values, np.float32)


CHAINS: dict[str, tuple[list[NodeProto], dict[str, Array]]] = {
    "0 to 1": ([node("Mul", ["p", "s"], ["x"])], {"s": scalar(1 / 255)}),
    "-1 to 1": (
        [node("Mul", ["p", "s"], ["q"]), node("Sub", ["q", "o"], ["x"])],
        {"s": scalar(2 / 255), "o": scalar(1)},
    ),
    "divided": (
        [node("Div", ["p", "s"], ["q"]), node("Add", ["o", "q"], ["x"])],
        {"s": scalar(127.5), "o": scalar(-1)},
    ),
    "mean and deviation a colour": (
        [node("Mul", ["s", "p"], ["q"]), node("Sub", ["q", "m"], ["r"]), node("Div", ["r", "d"], ["x"])],
        {
            "s": scalar(1 / 255),
            "m": colours(0.485, 0.456, 0.406),
            "d": colours(0.229, 0.224, 0.225).reshape(1, 1, 1, 3),
        },
    ),
    "Caffe's means": ([node("Sub", ["p", "m"], ["x"])], {"m": colours(103.939, 116.779, 123.68)}),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_normalisation_disappears_into_the_first_convolution(chain: str) -> None:
    model = entered(*CHAINS[chain])
    image = pictures()
    expected = run(model, image)[0]
    folded = prepare(model)
    assert folded.entry is not None
    assert operators(folded.model) == ["Transpose", "Conv"]
    found = run(folded.model, folded.entry.dequantise(image))[0]
    assert np.abs(found - expected).max() < 1e-5 * max(1, np.abs(expected).max())
    assert operators(model)[0] == "Cast"  # the model given is left as it is


def test_half_a_level_at_the_padded_border_is_all_that_changes() -> None:
    model = entered(*CHAINS["-1 to 1"], pads=1)
    image = pictures()
    folded = prepare(model)
    assert folded.entry is not None
    found, expected = run(folded.model, folded.entry.dequantise(image))[0], run(model, image)[0]
    assert np.abs(found - expected)[:, :, 1:-1, 1:-1].max() < 1e-4
    border = np.abs(run(model, image)[0] - found).max()
    assert border <= 1 / 255 * np.abs(normal(6, 3, 3, 3)).sum((1, 2, 3)).max() + 1e-4


UNFOLDABLE: dict[str, Any] = {
    "negative scale": ([node("Mul", ["p", "s"], ["x"])], {"s": scalar(-1 / 255)}),
    "divisor": ([node("Div", ["s", "p"], ["x"])], {"s": scalar(255)}),
    "a constant for every pixel": ([node("Sub", ["p", "m"], ["x"])], {"m": normal(1, 12, 12, 3)}),
    "colours turned round": (
        [node("Gather", ["p", "order"], ["q"], axis=3), node("Mul", ["q", "s"], ["x"])],
        {"order": np.array([2, 1, 0]), "s": scalar(1 / 255)},
    ),
}


@pytest.mark.parametrize("chain", UNFOLDABLE)
def test_what_cannot_be_folded_is_left_alone(chain: str) -> None:
    model = entered(*UNFOLDABLE[chain])
    image = pictures()
    folded = prepare(model)
    assert folded.entry is None
    assert np.array_equal(run(folded.model, image)[0], run(model, image)[0], equal_nan=True)


@pytest.mark.parametrize(("offset", "is_folded"), [(10, True), (30, False)])
def test_colours_with_zeros_far_apart_are_not_folded_where_the_border_is_padded(offset: float, is_folded: bool) -> None:
    chain = [node("Sub", ["p", "m"], ["x"])], {"m": colours(100 - offset, 100, 100 + offset)}
    assert (fold_input(entered(*chain, pads=1)) is not None) == is_folded
    assert fold_input(entered(*chain)) is not None


def test_a_grouped_first_convolution_is_not_folded() -> None:
    assert fold_input(entered(*CHAINS["0 to 1"], group=3)) is None


def test_pixels_read_twice_are_not_folded() -> None:
    model = entered(*CHAINS["0 to 1"])
    model.graph.node.append(node("ReduceMean", ["p"], ["other"], "second"))
    assert fold_input(model) is None


def batch_norm(shape: Sequence[int], following: str = "Add") -> ModelProto:
    nodes = [
        node("Conv", ["image", "w"], ["c"]),
        node("Mul", ["c", "a"], ["m"]),
        node(following, ["b", "m"], ["n"]),
        node("Relu", ["n"], ["r"]),
        node("Add", ["r", "c"], ["probabilities"]),
    ]
    constants = {"w": normal(5, 3, 1, 1), "a": normal(*shape, seed=1), "b": normal(*shape, seed=2)}
    return graph(nodes, constants, [3, 6, 6])


@pytest.mark.parametrize("shape", [(1, 5, 1, 1), (5, 1, 1)])
def test_a_pre_activation_batch_norm_becomes_a_depthwise_convolution(shape: tuple[int, ...]) -> None:
    model, image = batch_norm(shape), normal(2, 3, 6, 6)
    expected = run(model, image)[0]
    affine_to_depthwise(model)
    assert operators(model) == ["Conv", "Conv", "Relu", "Add"]
    assert np.abs(run(model, image)[0] - expected).max() < 1e-5


@pytest.mark.parametrize(("shape", "following"), [((1,), "Add"), ((1, 5, 6, 6), "Add"), ((1, 5, 1, 1), "Sub")])
def test_other_products_are_left_alone(shape: tuple[int, ...], following: str) -> None:
    model = batch_norm(shape, following)
    affine_to_depthwise(model)
    assert "Mul" in operators(model)


def test_one_channel_that_becomes_many_is_left_alone() -> None:
    model = batch_norm((1, 5, 1, 1))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(normal(1, 3, 1, 1), "w"))
    expected = run(model, normal(2, 3, 6, 6))[0]
    affine_to_depthwise(model)
    assert "Mul" in operators(model)
    np.testing.assert_array_equal(run(model, normal(2, 3, 6, 6))[0], expected)


def bottleneck(inner: int, *last: NodeProto, **attributes: Any) -> ModelProto:
    """Two 1x1 convolutions, 8 to `inner` to 12 channels, with nothing between them; what reads the second is given."""
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["a"]),
        node("Conv", ["a", "w2"], ["b"], **attributes),
        *(last or (node("Relu", ["b"], ["probabilities"]),)),
    ]
    weights = {"w1": normal(inner, 8, 1, 1), "b1": normal(inner, seed=1), "w2": normal(12, inner, 1, 1, seed=2)}
    return graph(nodes, weights, [8, 6, 6])


def test_two_1x1_convolutions_with_nothing_between_them_become_one() -> None:
    model, image = bottleneck(4), normal(2, 8, 6, 6, seed=3)
    expected = run(model, image)[0]
    merge_pointwise(model)
    assert operators(model) == ["Conv", "Relu"]
    np.testing.assert_allclose(run(tidy(model), image)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        bottleneck(2),  # one matrix of 8 x 12 has over 1.5 x the multiplications of 8 x 2 and 2 x 12
        bottleneck(4, strides=[2, 2]),
        bottleneck(4, node("Flatten", ["a"], ["c"]), node("Flatten", ["b"], ["probabilities"])),
    ],
    ids=["narrow", "strided", "read twice"],
)
def test_other_pairs_are_left_alone(model: ModelProto) -> None:
    before = operators(model)
    merge_pointwise(model)
    assert operators(model) == before


def pooled(before: str, border: Sequence[int], value: float, **own: Any) -> ModelProto:
    """An activation, a Pad of `border` and a MaxPool of 3x3."""
    nodes = [
        node(before, ["image"], ["r"]),
        node("Pad", ["r", "border", "value"], ["p"]),
        node("MaxPool", ["p"], ["probabilities"], kernel_shape=[3, 3], strides=[2, 2], **own),
    ]
    return graph(nodes, {"border": np.array(border), "value": scalar(value)}, [2, 9, 9])


AROUND = (0, 0, 1, 1, 0, 0, 1, 1)


@pytest.mark.parametrize("border", [AROUND, (0, 0, 0, 0, 0, 0, 2, 1)])
@pytest.mark.parametrize("own", [{}, {"auto_pad": "VALID"}, {"pads": [0, 1, 0, 0]}, {"ceil_mode": 1}])
def test_zeros_around_what_a_relu_gives_become_the_border_of_the_pooling(
    border: Sequence[int], own: dict[str, Any]
) -> None:
    model, x = pooled("Relu", border, 0.0, **own), normal(2, 2, 9, 9) - 1.0
    (before,) = run(model, x)
    pads_into_pools(model)
    assert operators(model) == ["Relu", "MaxPool"]
    assert np.array_equal(run(model, x)[0], before)


@pytest.mark.parametrize(
    "model",
    [
        pooled("Tanh", AROUND, 0.0),  # a zero is more than the least
        pooled("Relu", AROUND, 1.0),
        pooled("Relu", (0, 1, 1, 1, 0, 0, 1, 1), 0.0),  # a channel more
        pooled("Relu", (0, 0, -1, 1, 0, 0, 1, 1), 0.0),  # cut, not padded
        pooled("Relu", (0, 0, 3, 3, 0, 0, 3, 3), 0.0),  # windows of nothing but zeros
        pooled("Relu", AROUND, 0.0, dilations=[2, 2]),
        pooled("Relu", AROUND, 0.0, auto_pad="SAME_UPPER"),
    ],
)
def test_other_pads_are_left_alone(model: ModelProto) -> None:
    pads_into_pools(model)
    assert "Pad" in operators(model)


def test_tidy_names_depend_on_the_graph_alone() -> None:
    one, other = batch_norm((5, 1, 1)), batch_norm((5, 1, 1))
    for place, name in enumerate(other.graph.node[0].output):
        other.graph.node[0].output[place] = f"another/{name}"
    other.graph.node[1].input[0] = other.graph.node[4].input[1] = "another/c"
    other.graph.initializer[0].name = other.graph.node[0].input[1] = "weights:0"
    other.graph.initializer.append(helper.make_tensor("unread", TensorProto.FLOAT, [1], [1.0]))
    assert tidy(one).SerializeToString() == tidy(other).SerializeToString()
