"""The mean over positions is a product with a row."""

import numpy as np
import pytest
from onnx import ModelProto, helper

from convert.means import multiply
from tests.convert.graphs import fused, graph, normal, operators, run

node = helper.make_node


def averaged(axes: list[int], *, keepdims: int = 0) -> ModelProto:
    """A mean of `[N, 6, 5, 7]` that lies channels last in memory, as behind a product of codes."""
    nodes = [
        node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        node("Relu", ["t"], ["r"]),
        node("ReduceMean", ["r", "axes"], ["probabilities"], keepdims=keepdims),
    ]
    return graph(nodes, {"axes": np.array(axes)}, [5, 7, 6], axes=4 if keepdims else 4 - len(axes))


@pytest.mark.parametrize("count", [1, 3])
def test_a_mean_over_all_positions_is_a_product_and_the_answers_stay(count: int) -> None:
    model, image = averaged([2, 3]), normal(count, 5, 7, 6)
    expected = run(model, image)[0]
    found = multiply(model)
    assert "ReduceMean" not in operators(found)
    np.testing.assert_allclose(run(found, image)[0], expected, atol=1e-6)


def test_onnx_runtime_transposes_nothing_for_it() -> None:
    assert fused(averaged([2, 3]))["Transpose"] == 1
    kernels = fused(multiply(averaged([2, 3])))
    assert "Transpose" not in kernels
    assert kernels["MatMul"] == 1


@pytest.mark.parametrize(("axes", "keepdims"), [([2], 0), ([1, 2], 0), ([2, 3], 1)])
def test_other_means_are_left_alone(axes: list[int], keepdims: int) -> None:
    model = averaged(axes, keepdims=keepdims)
    before = model.SerializeToString()
    assert multiply(model).SerializeToString() == before
