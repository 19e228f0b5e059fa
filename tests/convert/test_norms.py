"""Normalisations of residual sums lose their factors and shifts, and no answer changes."""

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper

from convert import qdq
from convert.biases import absorb
from convert.graph import Array, affine, constants, tidy
from convert.norms import MOST_GROWTH, growth, simplify
from convert.optimise import affine_to_depthwise
from convert.shifts import carry
from convert.streams import split
from convert.walk import Recipe, walk
from tests.convert.graphs import ENTRY, batches, fused, graph, normal, pictures, run

C, BLOCKS = 16, 3
node = helper.make_node
SHARED = np.exp(normal(C, seed=40))


def normed(source: str, k: int) -> list[NodeProto]:
    return [
        node("Mul", [source, f"f{k}"], [f"m{k}"]),
        node("Add", [f"m{k}", f"s{k}"], [f"n{k}"]),
        node("Relu", [f"n{k}"], [f"r{k}"]),
    ]


def block(source: str, k: int, shortcut: str = "", **attributes: Sequence[int]) -> list[NodeProto]:
    """What a block adds to the stream, which becomes `a{k + 1}`."""
    return [
        *normed(source, k),
        node("Conv", [f"r{k}", f"h{k}"], [f"c{k}"], pads=[1, 1, 1, 1], **attributes),
        node("Relu", [f"c{k}"], [f"i{k}"]),
        node("Conv", [f"i{k}", f"p{k}", f"b{k}"], [f"o{k}"]),
        node("Add", [shortcut or source, f"o{k}"], [f"a{k + 1}"]),
    ]


def network(*, wide: bool = False, raw: bool = False, **own: Array) -> ModelProto:
    """Three blocks of ResNet V2, the last at half the size; constants may be given. A `wide` kernel of 3 x 3 ends a
    block, which gives u8 only; a `raw` convolution reads a sum itself, by a u8 copy."""
    nodes = [
        node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "p", "b"], ["a0"]),
        *block("a0", 0),
        *block("a1", 1),
        node("MaxPool", ["a2"], ["quarter" if raw else "half"], kernel_shape=[1, 1], strides=[2, 2]),
        *([node("Conv", ["quarter", "x"], ["half"])] if raw else []),
        *block("a2", 2, "half", strides=[2, 2]),
        *normed("a3", 3),
        node("ReduceMean", ["r3", "axes"], ["g"], keepdims=0),
        node("Gemm", ["g", "d", "e"], ["l"]),
        node("Softmax", ["l"], ["probabilities"], axis=1),
    ]
    values: dict[str, Array] = {"w": normal(8, 3, 3, 3), "p": normal(C, 8, 1, 1, seed=1), "b": normal(C, seed=2)}
    for k in range(BLOCKS):
        values |= {f"h{k}": normal(8, C, 3, 3, seed=k + 3) * 0.2, f"p{k}": normal(C, 8, 1, 1, seed=k + 6) * 0.2}
        values |= {f"b{k}": normal(C, seed=k + 9)}
    for k in range(BLOCKS + 1):
        factor = SHARED * np.exp(0.1 * normal(C, seed=k + 20)) * (k + 1)
        values |= {f"f{k}": factor.reshape(1, C, 1, 1), f"s{k}": normal(1, C, 1, 1, seed=k + 30)}
    values |= {"d": normal(C, 5, seed=14) * 0.3, "e": normal(5, seed=15), "axes": np.array([2, 3])}
    if wide:
        last = next(each for each in nodes if each.output[0] == "o1")
        last.attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
        values["p1"] = normal(C, 8, 3, 3, seed=60) * 0.1
    values |= {"x": normal(C, C, 1, 1, seed=61) * 0.2} if raw else {}
    model = graph(nodes, values | own, [12, 12, 3], axes=2)
    affine_to_depthwise(model)
    split(model)
    tidy(model)
    return model


def left(model: ModelProto) -> list[tuple[bool, bool]]:
    """Of each normalisation, whether it has a factor and a shift."""
    values = constants(model)
    found = [[values[name] for name in each.input[1:]] for each in model.graph.node if affine(each, values)]
    return [(bool(np.any(factor != 1)), bool(np.any(shift != 0))) for factor, shift in found]


def assert_same_answers(model: ModelProto, other: ModelProto) -> None:
    image = ENTRY.dequantise(np.concatenate(batches()))
    np.testing.assert_allclose(run(model, image)[0], run(other, image)[0], atol=2e-5)


def test_factors_and_shifts_behind_sums_disappear_and_no_answer_changes() -> None:
    model, plain = network(), network()
    simplify(model)
    assert left(plain) == [(True, True)] * 4
    assert left(model) == [(False, True), *[(False, False)] * 3]  # the first stands behind no sum
    assert_same_answers(model, plain)


def test_a_normalisation_unlike_the_others_keeps_its_factor_and_its_shift() -> None:
    unlike = np.exp(normal(1, C, 1, 1, seed=50)) * SHARED.reshape(1, C, 1, 1)
    model, plain = network(f1=unlike), network(f1=unlike)
    assert growth(unlike.reshape(-1) / SHARED) > MOST_GROWTH
    simplify(model)
    assert [factor for factor, _ in left(model)] == [False, True, False, False]
    assert left(model)[1] == (True, True)
    assert_same_answers(model, plain)


@pytest.mark.parametrize("kept", ["a negative factor", "the answer"])
def test_what_cannot_move_stays(kept: str) -> None:
    model = network(**({"f2": -SHARED.reshape(1, C, 1, 1)} if kept == "a negative factor" else {}))
    if kept == "the answer":
        model.graph.output.append(helper.make_empty_tensor_value_info("Add_15:0"))
    plain = ModelProto()
    plain.CopyFrom(model)
    simplify(model)
    assert left(model)[2] == (True, True)
    assert left(model)[1] == ((False, False) if kept == "a negative factor" else (True, True))
    assert_same_answers(model, plain)


@pytest.mark.parametrize("changed", [{"wide": True}, {"raw": True}])
def test_a_stream_with_a_u8_tensor_stays_as_it_is(changed: dict[str, bool]) -> None:
    model = network(**changed)
    before = left(model)
    simplify(model)
    assert left(model)[:3] == before[:3]  # behind the raw convolution is another stream
    assert_same_answers(model, network(**changed))


def test_a_graph_without_streams_stays_the_same() -> None:
    weights = {"w": normal(8, 3, 3, 3), "v": normal(4, 8, 1, 1, seed=1)}
    nodes = [
        node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "v"], ["probabilities"]),
    ]
    model = graph(nodes, weights, [12, 12, 3])
    before = model.SerializeToString()
    simplify(model)
    assert model.SerializeToString() == before


def test_noise_grows_with_the_spread_of_what_channels_are_divided_by() -> None:
    assert growth(np.full(C, 3.0)) == pytest.approx(1)
    assert growth(np.array([1.0, 1.0, 1.0, 0.5])) == pytest.approx(np.sqrt(3.25 / 4) / 0.5)


def test_onnx_runtime_adds_shortcuts_and_nothing_else_and_turns_no_tensor() -> None:
    model, plain = network(), network()
    simplify(model)
    written, costly = (
        absorb(carry(qdq.write(one, walk(one, batches(), ENTRY, Recipe(), lambda: None)))) for one in (model, plain)
    )
    kernels, before = fused(written), fused(costly)
    assert before["Mul"] - kernels["Mul"] == BLOCKS + 1
    assert before["Add"] - kernels["Add"] >= BLOCKS
    assert kernels["Add"] == BLOCKS + 1  # and the first normalisation's shift
    assert kernels["Slice"] == 1
    assert {"MaxPool", "ReorderInput"}.isdisjoint(kernels)
    np.testing.assert_allclose(run(written, pictures())[0], run(plain, ENTRY.dequantise(pictures()))[0], atol=0.05)
