"""Channels of one range."""

import numpy as np
import pytest
from onnx import ModelProto, helper

from convert.equalise import equalise
from convert.graph import Array
from tests.convert.graphs import ENTRY, batches, graph, network, normal, run

node = helper.make_node


def activations(model: ModelProto, name: str) -> Array:
    return run(model, ENTRY.dequantise(np.concatenate(batches())), name)[0]


def test_equalisation_changes_no_answer_and_no_clip_binds_more() -> None:
    model, plain = network(), network()
    equalise(model, batches(), ENTRY, lambda: None)
    image = ENTRY.dequantise(np.concatenate(batches()))
    assert model.SerializeToString() != plain.SerializeToString()
    assert run(model, image)[0] == pytest.approx(run(plain, image)[0], abs=1e-4)


def test_equalised_channels_have_one_range() -> None:
    nodes = [
        node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w0", "b0"], ["c0"]),
        node("Relu", ["c0"], ["r0"]),
        node("Conv", ["r0", "w1"], ["probabilities"]),
    ]
    weight = normal(6, 3, 3, 3) * np.logspace(-1, 1, 6, dtype=np.float32).reshape(-1, 1, 1, 1)
    weights = {"w0": weight, "b0": np.ones(6, np.float32), "w1": normal(4, 6, 1, 1, seed=2)}
    model = graph(nodes, weights, [12, 12, 3])
    before = activations(model, "r0").max((0, 2, 3))
    answers = activations(model, "probabilities")
    equalise(model, batches(), ENTRY, lambda: None)
    after = activations(model, "c0")
    after = np.abs(after).max((0, 2, 3))
    assert before.max() / before.min() > 5
    assert after.max() / after.min() < 1.01
    assert activations(model, "probabilities") == pytest.approx(answers, abs=1e-4 * float(np.abs(answers).max()))


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_channels_before_a_border_of_a_value_keep_their_ranges(value: float) -> None:
    nodes = [
        node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w0"], ["c0"]),
        node("Relu", ["c0"], ["r0"]),
        node("Pad", ["r0", "border", "value"], ["p"]),
        node("Conv", ["p", "w1"], ["probabilities"]),
    ]
    weight = normal(6, 3, 3, 3) * np.logspace(-1, 1, 6, dtype=np.float32).reshape(-1, 1, 1, 1)
    border = {"border": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "value": np.array(value, np.float32)}
    model = graph(nodes, {"w0": weight, "w1": normal(4, 6, 3, 3, seed=2), **border}, [12, 12, 3])
    before, answers = activations(model, "r0"), activations(model, "probabilities")
    equalise(model, batches(), ENTRY, lambda: None)
    assert np.array_equal(activations(model, "r0"), before) == bool(value)
    assert activations(model, "probabilities") == pytest.approx(answers, abs=1e-4 * float(np.abs(answers).max()))


def test_a_sum_of_one_channel_and_many_keeps_its_ranges() -> None:
    nodes = [
        node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w0"], ["many"]),
        node("Conv", ["t", "w1"], ["one"]),
        node("Add", ["many", "one"], ["s"]),
        node("Conv", ["s", "w2"], ["probabilities"]),
    ]
    weights = {"w0": normal(6, 3, 3, 3), "w1": normal(1, 3, 3, 3, seed=1), "w2": normal(4, 6, 1, 1, seed=2)}
    model = graph(nodes, weights, [12, 12, 3])
    before = activations(model, "s")
    equalise(model, batches(), ENTRY, lambda: None)
    assert np.array_equal(activations(model, "s"), before)
