"""A bias behind a product of codes is the product's own."""

from collections import Counter

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper

from convert import qdq
from convert.biases import absorb
from convert.graph import Array
from convert.ranges import Range
from convert.walk import Recipe, walk
from tests.convert.graphs import fused, graph, normal, operators, pictures, run

node = helper.make_node
C = 6


def branch(*last: NodeProto, **constants: Array) -> ModelProto:
    """A stem and a biased 1x1 convolution `p` beside it, as `convert.qdq` writes them; what reads it is given."""
    nodes = [
        node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w0"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "w1", "b1"], ["p"]),
    ]
    weights = {"w0": normal(8, 3, 3, 3) * 0.4, "w1": normal(C, 8, 1, 1, seed=1), "b1": normal(C, seed=2) * 3}
    model = graph([*nodes, *last], {**weights, **constants}, [12, 12, 3])
    return qdq.write(model, walk(model, [pictures(8)], Range(1 / 128, 128), Recipe(), lambda: None))


SUMS = {
    "a sum": [node("Conv", ["r", "w2"], ["q"]), node("Add", ["p", "q"], ["probabilities"])],
    "two readers": [node("Relu", ["p"], ["q"]), node("Add", ["p", "q"], ["probabilities"])],
    "the answer": [node("Relu", ["p"], ["probabilities"])],
}


@pytest.mark.parametrize("last", SUMS.values(), ids=SUMS)
def test_a_gemm_takes_the_bias_of_a_product_and_the_answers_stay(last: list[NodeProto]) -> None:
    model = branch(*last, w2=normal(C, 8, 1, 1, seed=4))
    before, expected = Counter(operators(model)), run(model, pictures(3))[0]
    absorbed = absorb(model)
    after = Counter(operators(absorbed))
    assert before["MatMul"] == after["Gemm"] > 0 == after["MatMul"]
    assert before["Add"] - after["Add"] == after["Gemm"]
    np.testing.assert_allclose(run(absorbed, pictures(3))[0], expected, atol=1e-3 * np.abs(expected).max())


def test_onnx_runtime_runs_it_on_int8_codes_and_copies_nothing() -> None:
    kernels = fused(absorb(branch(*SUMS["a sum"], w2=normal(C, 8, 1, 1, seed=4))))
    assert kernels["QGemm"] == 2
    assert kernels["Add"] == 1
    assert kernels["Transpose"] == 1  # of the answer, which is channels first
    assert {"MatMul", "Gemm", "MatMulIntegerToFloat", "DequantizeLinear"}.isdisjoint(kernels)


def test_a_models_own_product_of_float_values_stays() -> None:
    last = [
        node("Relu", ["p"], ["a"]),
        node("Transpose", ["a"], ["b"], perm=[0, 2, 3, 1]),
        node("MatMul", ["b", "dense"], ["d"]),
        node("Transpose", ["d"], ["e"], perm=[0, 3, 1, 2]),
        node("Add", ["e", "shift"], ["probabilities"]),
    ]
    model = branch(*last, dense=normal(C, 4, seed=5), shift=normal(1, 4, 1, 1, seed=6))
    expected = run(model, pictures(3))[0]
    absorbed = absorb(model)
    assert Counter(operators(absorbed))["MatMul"] == 1
    np.testing.assert_allclose(run(absorbed, pictures(3))[0], expected, atol=1e-3 * np.abs(expected).max())


def test_a_graph_without_biased_products_stays_the_same_to_the_byte() -> None:
    model = absorb(branch(*SUMS["the answer"]))
    before = model.SerializeToString()
    assert absorb(model).SerializeToString() == before
