"""What runs on int8 kernels, and which tensors are u8."""

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, helper

from convert.graph import Array
from convert.streams import place, split
from tests.convert.graphs import graph, normal, run

node = helper.make_node
STEM = [
    node("Transpose", ["image"], ["t"], "t", perm=[0, 3, 1, 2]),
    node("Conv", ["t", "w0"], ["c0"], "stem", pads=[1, 1, 1, 1]),
    node("Relu", ["c0"], ["r0"], "r0"),
]
SQUARE = {"w0": normal(6, 3, 3, 3), "w1": normal(6, 6, 3, 3, seed=1), "w2": normal(6, 6, 1, 1, seed=2)}


def behind(nodes: Sequence[NodeProto], **more: Array) -> ModelProto:
    """A stem of six channels, then these nodes, to `probabilities`."""
    return graph([*STEM, *nodes], SQUARE | more, [8, 8, 3], axes=4)


def u8(model: ModelProto) -> frozenset[str]:
    return place(model, frozenset(), entry=True).u8


def test_products_of_tensors_stay_float_and_what_multiplies_them_by_weights_reads_them_as_u8() -> None:
    model = behind(
        [
            node("Conv", ["r0", "w1"], ["c1"], "gate", pads=[1, 1, 1, 1]),
            node("Sigmoid", ["c1"], ["s"], "s"),
            node("Mul", ["r0", "s"], ["m"], "m"),
            node("Conv", ["m", "w2"], ["probabilities"], "last"),
        ]
    )
    found = place(model, frozenset(), entry=True)
    assert found.int8 == {"stem", "gate", "last"}
    assert "m" in found.u8
    assert "s" not in found.u8


def test_a_map_of_one_position_stays_float() -> None:
    model = behind(
        [
            node("GlobalAveragePool", ["r0"], ["g"], "g"),
            node("Conv", ["g", "w2"], ["probabilities"], "head"),
        ]
    )
    found = place(model, frozenset(), entry=True)
    assert found.int8 == {"stem"}
    assert "g" not in found.u8


def test_joined_tensors_are_u8_where_int8_kernels_multiply_them() -> None:
    joined = [
        node("Conv", ["r0", "w1"], ["c1"], "c1", pads=[1, 1, 1, 1]),
        node("Concat", ["r0", "c1"], ["j"], "j", axis=1),
    ]
    read = behind([*joined, node("Conv", ["j", "w3"], ["probabilities"], "last")], w3=normal(5, 12, 3, 3))
    assert {"r0", "c1", "j"} <= u8(read)
    unread = behind([*joined, node("GlobalAveragePool", ["j"], ["probabilities"], "g")])
    assert "j" not in u8(unread)


def test_a_dense_layer_stands_between_no_u8_tensors_also_through_what_hands_on() -> None:
    """ONNX Runtime would quantise its weights, with codes that saturate where there is no VNNI."""
    nodes = [
        node("Conv", ["r0", "w1"], ["c1"], "c1", pads=[1, 1, 1, 1]),
        node("Flatten", ["c1"], ["f"], "f"),
        node("Gemm", ["f", "wd"], ["d"], "d"),
        node("Relu", ["d"], ["rd"], "rd"),
        node("Reshape", ["rd", "shape"], ["m"], "m"),
        node("Conv", ["m", "w1"], ["probabilities"], "last"),
    ]
    model = behind(nodes, wd=normal(6 * 64, 6 * 16), shape=np.array([-1, 6, 4, 4]))
    found = place(model, frozenset(), entry=True)
    assert {"d", "rd", "m"}.isdisjoint(found.u8)
    assert found.int8 == {"stem", "c1"}


def test_copies_are_put_behind_writers_that_read_copies_themselves() -> None:
    """A convolution that reads a copied sum, and is read by another and by the next sum."""
    nodes = [node("Conv", ["r0", "w2"], ["p0"], "p0"), node("Add", ["r0", "p0"], ["s0"], "s0")]
    for block in (1, 2):
        before, (i, p, b, s) = f"s{block - 1}", (f"{kind}{block}" for kind in "ipbs")
        nodes += [
            node("Conv", [before, "w2"], [i], i),
            node("Conv", [i, "w1"], [p], p, pads=[1, 1, 1, 1]),
            node("Add", [i, p], [b], b),
            node("Add", [before, b], [s], s),
        ]
    model = behind([*nodes, node("Relu", ["s2"], ["probabilities"], "end")])
    image = normal(2, 8, 8, 3)
    expected = run(model, image)[0]
    split(model)
    copied = [one.input[0] for one in model.graph.node if one.op_type == "Identity"]
    assert copied == ["s0", "i1", "s1", "i2"]
    np.testing.assert_array_equal(run(model, image)[0], expected)
