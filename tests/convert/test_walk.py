"""The walk through both networks, and the quantised graph that is written from it."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, helper

from convert import qdq
from convert.centre import centre
from convert.graph import Array, constants, looking, steps
from convert.ranges import Range
from convert.rounding import PAIR
from convert.streams import place, split
from convert.walk import Quantisation, Recipe, effort, kernel_order, macs, patches, positions, walk
from tests.convert.graphs import ENTRY, batches, fused, graph, network, normal, pictures, run

node = helper.make_node


def quantised(recipe: Recipe) -> tuple[ModelProto, Quantisation, ModelProto]:
    model = network()
    found = walk(model, batches(), ENTRY, recipe, lambda: None)
    return model, found, qdq.write(model, found)


def test_two_thirds_of_a_walks_time_are_expected_to_go_by_the_size_of_tensors() -> None:
    model, photo = network(), batches()[0][:1]
    names = [name for step in steps(model) for name in step.outputs]
    sizes = np.array([out.size for out in looking(model, names, 1)(ENTRY.dequantise(photo))])
    assert len(set(sizes)) > 1
    expected = effort(model, photo, ENTRY)
    assert np.array(expected) - np.mean(expected) / 3 == pytest.approx(sizes / sizes.mean())


# ---- patches


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 2, 0, 1]},
        {"strides": [2, 3], "pads": [1, 1, 1, 1]},
        {"dilations": [2, 1], "pads": [2, 1, 2, 1]},
        {"group": 2, "pads": [1, 1, 1, 1]},
        {"group": 4},
    ],
)
def test_patches_times_weights_are_the_convolution(attributes: Mapping[str, int | list[int]]) -> None:
    groups = int(attributes.get("group", 1))  # type: ignore[arg-type]  # the group is one number
    conv = node("Conv", ["image", "w"], ["probabilities"], **attributes)
    weight, x = normal(8, 4 // groups, 3, 2), normal(2, 4, 9, 8, seed=1)
    expected = run(graph([conv], {"w": weight}, [4, 9, 8]), x)[0]
    where = positions(conv, weight.shape, x.shape, 10_000, np.random.default_rng(0))
    photo, row, column = where
    assert len(set(zip(photo, row, column, strict=True))) == expected[:, 0].size  # every position, once
    taken = patches(conv, weight.shape, groups, x, where=where)
    found = np.einsum("gpk,gok->pgo", taken, weight.reshape(groups, 8 // groups, -1)).reshape(-1, 8)
    assert found == pytest.approx(expected[photo, :, row, column], abs=1e-4)
    assert macs(weight, expected) == expected[0].size * weight[0].size


def test_beyond_the_border_are_codes_of_zero() -> None:
    conv = node("Conv", ["image", "w"], ["probabilities"], pads=[1, 1, 1, 1])
    codes = np.full((1, 1, 2, 2), 7, np.uint8)
    where = (np.array([0]), np.array([0]), np.array([0]))
    taken = patches(conv, (1, 1, 3, 3), 1, codes, where=where, span=Range(1.0, 100))
    assert taken.reshape(3, 3).tolist() == [[100, 100, 100], [100, 7, 7], [100, 7, 7]]


def test_kernels_are_multiplied_by_place_then_channel() -> None:
    assert kernel_order((8, 2, 1, 3)).tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize(("groups", "outputs", "paired"), [(2, 8, True), (4, 4, True), (8, 16, True), (8, 8, False)])
def test_all_but_depthwise_kernels_keep_their_pairs_within_sixteen_bits(
    groups: int, outputs: int, paired: bool
) -> None:
    """Depth multipliers are GEMMs too: ONNX Runtime has a 32-bit kernel for one input and one output a group only."""
    shape = (outputs, 8 // groups, 3, 3)
    nodes = [
        node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w0"], ["c0"]),
        node("Relu", ["c0"], ["r0"]),
        node("Conv", ["r0", "w1"], ["probabilities"], name="grouped", group=groups),
    ]
    weights = {"w0": normal(8, 3, 3, 3), "w1": (1 + 0.1 * normal(*shape, seed=1)).astype("f")}  # of one sign
    found = walk(graph(nodes, weights, [12, 12, 3]), batches(), ENTRY, Recipe(), lambda: None)
    codes = found.weights["grouped"].codes.astype(int)[:, kernel_order(shape)]
    even = codes.shape[1] // 2 * 2
    assert (np.abs(codes[:, :even:2] + codes[:, 1:even:2]).max() <= PAIR) == paired


# ---- the walk and what is written


@pytest.mark.parametrize("bits", [7, 8])
def test_a_quantised_network_answers_like_the_float_one(bits: int) -> None:
    model, found, written = quantised(Recipe(bits))
    image = np.concatenate(batches())
    expected, answers = run(model, ENTRY.dequantise(image))[0], run(written, image)[0]
    assert np.abs(answers - expected).mean() < 0.01
    assert np.abs(answers - expected).max() < 0.1
    assert found.weights.keys() == {step.name for step in steps(model) if step.op == "Conv"}
    assert {rounded.codes.dtype.name for rounded in found.weights.values()} == {"int8"}


def test_ranges_of_what_only_passes_are_those_of_its_input() -> None:
    _, found, _ = quantised(Recipe())
    assert found.ranges["t"] == found.ranges["image"] == ENTRY
    assert found.ranges["r0"].zero_point == found.ranges["r1"].zero_point == 0
    assert {"r0", "r1"} == found.noise.keys()


def test_sums_and_what_only_they_read_stay_float() -> None:
    _, found, written = quantised(Recipe())
    assert found.ranges.keys() == {"image", "t", "r0", "r1"}
    assert {"c2", "a", "r2", "m"}.isdisjoint(tensor.removesuffix("_q") for tensor in outputs(written))
    products = [one for one in written.graph.node if one.op_type == "MatMul"]
    assert len(products) == 1  # the projection, whose float sums of int8 products go into the sum
    assert fused(written)["MatMulIntegerToFloat"] == 1


def outputs(model: ModelProto) -> set[str]:
    return {one.output[0] for one in model.graph.node if one.op_type == "QuantizeLinear"}


def stream() -> ModelProto:
    """A residual stream: stem, then two blocks of 1x1 convolutions around a depthwise one, biases out of centre."""
    nodes = [
        node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w0", "b0"], ["s0"], name="stem", strides=[2, 2], pads=[0, 0, 1, 1]),
    ]
    weights: dict[str, Array] = {"w0": normal(6, 3, 3, 3) * 0.4, "b0": normal(6, seed=1)}
    for block in (1, 2):
        i, e, d, p, s = (f"{kind}{block}" for kind in "iedps")
        nodes += [
            node("Conv", [f"s{block - 1}", f"we{block}", f"be{block}"], [i], name=e),
            node("Relu", [i], [f"r{i}"], name=f"r{i}"),
            node("Conv", [f"r{i}", f"wd{block}"], [d], name=d, group=12, pads=[1, 1, 1, 1]),
            node("Relu", [d], [f"r{d}"], name=f"r{d}"),
            node("Conv", [f"r{d}", f"wp{block}", f"bp{block}"], [p], name=p),
            node("Add", [f"s{block - 1}", p], [s], name=s),
        ]
        weights |= {
            f"we{block}": normal(12, 6, 1, 1, seed=block) * 0.5,
            f"be{block}": normal(12, seed=block + 10) + 1,
            f"wd{block}": normal(12, 1, 3, 3, seed=block + 20) * 0.4,
            f"wp{block}": normal(6, 12, 1, 1, seed=block + 30) * 0.3,
            f"bp{block}": normal(6, seed=block + 40) * 3,
        }
    nodes += [
        node("Conv", ["s2", "wl"], ["l"], name="last"),
        node("Relu", ["l"], ["probabilities"], name="end"),
    ]
    weights["wl"] = normal(5, 6, 1, 1, seed=50)
    return graph(nodes, weights, [12, 12, 3])


def test_what_reads_a_sum_in_int8_gets_a_copy_to_round() -> None:
    model = stream()
    split(model)
    copies = {one.input[0]: one.output[0] for one in model.graph.node if one.op_type == "Identity"}
    assert copies == {"s1": "s1_copy"}  # s0 comes as u8 from the stem, s2 is read by a convolution alone
    placement = place(model, frozenset(), entry=True)
    assert placement.u8 == {"image", "t", "s0", "ri1", "rd1", "s1_copy", "ri2", "rd2", "s2"}
    assert placement.int8 == {"stem", "e1", "d1", "p1", "e2", "d2", "p2", "last"}
    found = walk(model, batches(), ENTRY, Recipe(), lambda: None)
    image = np.concatenate(batches())
    expected, answers = run(model, ENTRY.dequantise(image))[0], run(qdq.write(model, found), image)[0]
    assert np.abs(answers - expected).mean() < 0.02 * expected.std()


def test_a_normalised_sum_is_scaled_in_float_and_rounded_after_its_activation() -> None:
    nodes = [
        node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w0"], ["s0"], name="stem"),
        node("Conv", ["s0", "w1"], ["p"], name="branch"),
        node("Add", ["s0", "p"], ["s1"], name="sum"),
        node("Conv", ["s1", "factor", "shift"], ["n"], name="normalise", group=6),
        node("Relu", ["n"], ["r"], name="relu"),
        node("Conv", ["r", "w2"], ["probabilities"], name="last"),
    ]
    weights = {
        "w0": normal(6, 3, 3, 3) * 0.4,
        "w1": normal(6, 6, 1, 1, seed=1),
        "factor": normal(6, 1, 1, 1, seed=2) + 2,
        "shift": normal(6, seed=3),
        "w2": normal(5, 6, 1, 1, seed=4),
    }
    model = graph(nodes, weights, [12, 12, 3])
    found = walk(model, batches(), ENTRY, Recipe(), lambda: None)
    assert found.ranges.keys() == {"image", "t", "s0", "r"}
    written = qdq.write(model, found)
    assert Counter(one.op_type for one in written.graph.node)["Conv"] == 1  # the stem; 1x1 ones are products
    assert fused(written)["MatMulIntegerToFloat"] == 2
    image = np.concatenate(batches())
    expected, answers = run(model, ENTRY.dequantise(image))[0], run(written, image)[0]
    assert np.abs(answers - expected).mean() < 0.02 * expected.std()


def several() -> ModelProto:
    """Half the channels through a convolution, the other half read by one and by a sum (keras.ops.split)."""
    nodes = [
        node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w0"], ["c0"]),
        node("Relu", ["c0"], ["r0"]),
        node("Split", ["r0"], ["a", "b", "unread"], axis=1, num_outputs=3),
        node("Conv", ["a", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        node("Conv", ["b", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        node("Add", ["c1", "b"], ["s"]),
        node("Add", ["s", "c2"], ["probabilities"]),
    ]
    weights = {"w0": normal(12, 3, 3, 3), "w1": normal(4, 4, 3, 3, seed=1), "w2": normal(4, 4, 3, 3, seed=2)}
    return graph(nodes, weights, [12, 12, 3])


def test_every_output_of_a_node_is_placed_and_walked() -> None:
    model, plain = several(), several()
    split(model)
    assert [one.input[0] for one in model.graph.node if one.op_type == "Identity"] == ["b"]  # the sum reads it as float
    found = walk(model, batches(), ENTRY, Recipe(), lambda: None)
    assert {"a", "b_copy"} <= found.ranges.keys()
    assert {"b", "unread"}.isdisjoint(found.ranges)
    assert found.weights.keys() == {step.name for step in steps(model) if step.op == "Conv"}
    image, written = np.concatenate(batches()), qdq.write(model, found)
    expected = run(plain, ENTRY.dequantise(image))[0]
    served = onnxruntime.InferenceSession(written.SerializeToString(), providers=["CPUExecutionProvider"])
    for answers in (run(written, image)[0], served.run(None, {"image": image})[0]):
        assert np.abs(answers - expected).mean() < 0.02 * expected.std()


def test_centring_keeps_all_answers_and_uses_all_codes_of_a_sum() -> None:
    model, plain = stream(), stream()
    split(model)
    centre(model, batches(), ENTRY, lambda: None)
    image = ENTRY.dequantise(np.concatenate(batches()))
    assert run(model, image)[0] == pytest.approx(run(plain, image)[0], abs=1e-4)
    for name in ("s0", "s1_copy", "s2"):
        values = run(model, image, name)[0]
        low, high = values.min((0, 2, 3)), values.max((0, 2, 3))
        assert low + high == pytest.approx(0, abs=1e-4 * float((high - low).max()))


def test_int8_kernels_give_the_walks_own_tensors_within_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk multiplies float values of codes, the service integers: they may differ by rounding alone."""
    from convert import walk as module  # noqa: PLC0415

    kept: dict[str, list[Array]] = {}

    made = module.run

    def keeping(
        model: ModelProto, step: module.Step, inputs: Array, spans: Array, span: Range | None = None
    ) -> module.Outputs:
        outputs = made(model, step, inputs, spans, span)
        if span:
            kept[step.outputs[0]] = outputs.batches
        return outputs

    monkeypatch.setattr(module, "run", keeping)
    *_, written = quantised(Recipe())
    assert {"r0", "r1"} <= kept.keys()
    for name in kept:
        written.graph.output.append(helper.make_empty_tensor_value_info(f"{name}_q"))
    engine = onnxruntime.InferenceSession(written.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, codes in kept.items():
        found = np.concatenate([engine.run([f"{name}_q"], {"image": batch})[0] for batch in batches()])
        apart = np.abs(found.astype(int) - np.concatenate(codes).astype(int))
        assert apart.max() <= 1
        assert np.mean(apart > 0) < 0.01


def test_weights_stored_are_those_found() -> None:
    _, found, written = quantised(Recipe())
    values = constants(written)
    for name, rounded in found.weights.items():
        stored = values[f"{name}_weight_codes"]
        assert np.array_equal(values[f"{name}_weight_scale"], rounded.scale)
        if f"{name}_bias" in values:  # a product with float results
            assert np.array_equal(stored.T, rounded.codes)
            assert values[f"{name}_bias"].reshape(-1) == pytest.approx(rounded.bias)
            continue
        assert np.array_equal(stored.reshape(rounded.codes.shape), rounded.codes)
        assert values[f"{name}_bias_codes"].dtype == np.int32
        assert values[f"{name}_bias_codes"] * values[f"{name}_bias_scale"] == pytest.approx(rounded.bias, abs=1e-4)


def test_a_tensor_kept_float_takes_its_steps_with_it() -> None:
    model, found, written = quantised(Recipe(keep_float=frozenset({"r1"})))
    by_output = {step.outputs[0]: step.name for step in steps(model)}
    assert "r1" not in found.ranges
    assert found.weights.keys() == {by_output["r0"]}
    image = np.concatenate(batches())
    expected = run(model, ENTRY.dequantise(image))[0]
    assert np.abs(run(written, image)[0] - expected).mean() < 0.01


def test_pixels_that_the_graph_casts_itself_are_walked_too() -> None:
    nodes = [
        node("Cast", ["image"], ["x"], to=1),
        node("Mul", ["x", "s"], ["y"]),
        node("Transpose", ["y"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w"], ["probabilities"]),
    ]
    model = graph(nodes, {"s": np.array(1 / 255, np.float32), "w": normal(4, 3, 3, 3)}, [12, 12, 3], pixels=True)
    found = walk(model, batches(), None, Recipe(), lambda: None)
    image = pictures()
    expected, answers = run(model, image)[0], run(qdq.write(model, found), image)[0]
    assert np.abs(answers - expected).mean() < 0.02 * expected.std()


def test_the_walk_is_the_same_each_time() -> None:
    assert quantised(Recipe())[2].SerializeToString() == quantised(Recipe())[2].SerializeToString()
