"""A bias behind a product of codes is the product's own."""

from collections import Counter

import numpy as np
import onnxruntime
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


def answers(model: ModelProto, images: Array) -> Array:
    """By the kernels that serve."""
    engine = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: Array = engine.run(None, {"image": images})[0]
    return found


SUMS = {
    "a sum": [node("Conv", ["r", "w2"], ["q"]), node("Add", ["p", "q"], ["probabilities"])],
    "two readers": [node("Relu", ["p"], ["q"]), node("Add", ["p", "q"], ["probabilities"])],
    "the answer": [node("Relu", ["p"], ["probabilities"])],
}


@pytest.mark.parametrize("last", SUMS.values(), ids=SUMS)
def test_a_chain_of_integers_takes_the_bias_of_a_product_and_the_answers_stay(last: list[NodeProto]) -> None:
    model = branch(*last, w2=normal(C, 8, 1, 1, seed=4))
    before, expected = Counter(operators(model)), run(model, pictures(3))[0]
    absorbed = absorb(model)
    after = Counter(operators(absorbed))
    assert before["MatMul"] == after["MatMulInteger"] > 0 == after["MatMul"]
    np.testing.assert_allclose(run(absorbed, pictures(3))[0], expected, atol=1e-5 * np.abs(expected).max())


def test_onnx_runtime_runs_it_as_one_kernel_and_copies_nothing() -> None:
    kernels = fused(absorb(branch(*SUMS["a sum"], w2=normal(C, 8, 1, 1, seed=4))))
    assert kernels["MatMulIntegerToFloat"] == 2
    assert kernels["Add"] == 1
    assert kernels["Transpose"] == 1  # of the answer, which is channels first
    assert {"MatMul", "MatMulInteger", "Mul", "DequantizeLinear"}.isdisjoint(kernels)


@pytest.mark.parametrize("count", [1, 8])
def test_the_kernel_answers_as_product_and_addition_do_at_any_batch_size(count: int) -> None:
    model, images = branch(*SUMS["two readers"]), pictures(count)
    expected = answers(model, images)
    np.testing.assert_allclose(answers(absorb(model), images), expected, atol=1e-6 * np.abs(expected).max())


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
