"""Residual blocks that change little are merged into others, and the answers stay."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from convert import merge
from convert.graph import Array
from convert.merge import Block, Depth, blocks, grouped, mergeable, merged, plain, runs, shortened
from convert.progress import Progress
from tests.convert.graphs import graph, normal, operators, run

CHANNELS, FEATURES = 8, 6
QUIET = Progress(quiet=True)


def network(sizes: Sequence[float], *, peeks: int | None = None) -> ModelProto:
    """A stem, a block whose shortcut is a convolution too, and one identity block for each size of branch: normalised
    stream, Relu, 3x3, Relu, 1x1. The head reads the last stream, and the one behind identity block `peeks` too."""
    values: dict[str, Array] = {"stem": normal(CHANNELS, 3, 1, 1) / 2, "axes": np.array([2, 3])}
    nodes = [
        helper.make_node("Transpose", ["image"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["first", "stem"], ["stem_out"]),
        helper.make_node("Relu", ["stem_out"], ["x"]),
    ]
    nodes += branch(values, "p", "x", 1.0)
    values["p_way"] = normal(CHANNELS, CHANNELS, 1, 1, seed=90) / 3
    nodes += [helper.make_node("Conv", ["x", "p_way"], ["p_way_out"]), add("p", "p_way_out")]
    stream = "p_sum"
    for place, size in enumerate(sizes):
        nodes += [*branch(values, f"b{place}", stream, size, seed=10 * place + 10), add(f"b{place}", stream)]
        stream = f"b{place}_sum"
    nodes.append(helper.make_node("ReduceMean", [stream, "axes"], ["pooled"], keepdims=0))
    head = "pooled"
    if peeks is not None:
        nodes.append(helper.make_node("ReduceMax", [f"b{peeks}_sum", "axes"], ["peek"], keepdims=0))
        nodes.append(helper.make_node("Add", ["pooled", "peek"], ["both"]))
        head = "both"
    values["dense"] = normal(CHANNELS, 4, seed=91)
    nodes += [helper.make_node("MatMul", [head, "dense"], ["logits"])]
    nodes += [helper.make_node("Softmax", ["logits"], ["probabilities"])]
    return graph(nodes, values, (10, 10, 3), axes=2)


def branch(values: dict[str, Array], name: str, stream: str, size: float, seed: int = 1) -> list[NodeProto]:
    """A branch off a stream, ending in a 1x1 convolution scaled by `size`."""
    values |= {
        f"{name}_norm": normal(CHANNELS, 1, 1, 1, seed=seed) / 4 + 1,
        f"{name}_inner": normal(FEATURES, CHANNELS, 3, 3, seed=seed + 1) / 8,
        f"{name}_last": size * normal(CHANNELS, FEATURES, 1, 1, seed=seed + 2) / 3,
        f"{name}_bias": size * normal(CHANNELS, seed=seed + 3),
    }
    return [
        helper.make_node("Conv", [stream, f"{name}_norm"], [f"{name}_n"], group=CHANNELS),
        helper.make_node("Relu", [f"{name}_n"], [f"{name}_u"]),
        helper.make_node("Conv", [f"{name}_u", f"{name}_inner"], [f"{name}_c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", [f"{name}_c"], [f"{name}_h"]),
        helper.make_node("Conv", [f"{name}_h", f"{name}_last", f"{name}_bias"], [f"{name}_out"], f"{name}_end"),
    ]


def add(name: str, stream: str) -> NodeProto:
    return helper.make_node("Add", [stream, f"{name}_out"], [f"{name}_sum"])


def feeds(count: int = 6) -> list[NDArray[np.float32]]:
    """Batches of four images."""
    return [normal(4, 10, 10, 3, seed=200 + place) for place in range(count)]


def sums(found: Sequence[Sequence[Block]]) -> list[list[str]]:
    return [[block.sum for block in group] for group in found]


def answers(model: ModelProto) -> NDArray[np.float32]:
    """To images that no convolution was fitted on."""
    return run(model, normal(64, 10, 10, 3, seed=300))[0]


def error(model: ModelProto, other: ModelProto) -> float:
    return float(np.square(answers(model) - answers(other)).mean())


def test_blocks_are_the_sums_with_the_convolutions_that_end_their_branches() -> None:
    first, second = blocks(network([0.1]))
    assert (first.sum, first.stream) == ("p_sum", "")
    assert {features for _, features in first.ends} == {"x", "p_h"}
    assert second == Block("b0_sum", "p_sum", (("b0_end", "b0_h"),))


def test_a_sum_that_broadcasts_is_no_block() -> None:
    values = {"a": normal(8, 3, 1, 1), "b": normal(8, 8, 1, 1, seed=1), "axes": np.array([2, 3])}
    nodes = [
        helper.make_node("Transpose", ["image"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["first", "a"], ["x"]),
        helper.make_node("ReduceMean", ["x", "axes"], ["pooled"]),
        helper.make_node("Conv", ["pooled", "b"], ["context"]),
        helper.make_node("Add", ["x", "context"], ["sum"]),
        helper.make_node("Conv", ["sum", "b"], ["y"]),
        helper.make_node("Add", ["sum", "y"], ["probabilities"]),
    ]
    model = graph(nodes, values, (10, 10, 3))
    assert [block.sum for block in blocks(model)] == ["sum", "probabilities"]
    assert [block.sum for block in plain(model, blocks(model), feeds(1)[0])] == ["probabilities"]


def test_only_small_branches_are_merged() -> None:
    model = network([0.02, 1.0, 0.02, 0.02])
    assert mergeable(model, blocks(model), feeds()) == {"b0_sum", "b2_sum", "b3_sum"}


def test_a_stream_that_something_else_reads_keeps_the_block_behind_it() -> None:
    model = network([0.02, 0.02, 0.02], peeks=1)
    assert mergeable(model, blocks(model), feeds()) == {"b0_sum", "b1_sum"}


def test_small_blocks_join_the_one_before_them_up_to_a_size() -> None:
    model = network([0.02] * 5 + [1.0])
    found = blocks(model)
    small = {f"b{place}_sum" for place in range(5)}
    assert sums(grouped(found, small)) == [
        ["p_sum", "b0_sum", "b1_sum"],
        ["b2_sum", "b3_sum", "b4_sum"],
        ["b5_sum"],
    ]
    assert sums(grouped(found, {"b1_sum", "b4_sum"})) == [
        ["p_sum"],
        ["b0_sum", "b1_sum"],
        ["b2_sum"],
        ["b3_sum", "b4_sum"],
        ["b5_sum"],
    ]
    assert runs(found, {"b0_sum", "b1_sum", "b4_sum"}) == [{"b0_sum", "b1_sum"}, {"b4_sum"}]


def test_what_a_block_adds_without_its_input_is_taken_over_exactly() -> None:
    model = network([0.5, 0.5, 1.0])
    for tensor in model.graph.initializer:
        if tensor.name in {"b0_last", "b1_last"}:  # nothing but their biases is left
            tensor.CopyFrom(helper.make_tensor(tensor.name, 1, tensor.dims, np.zeros(CHANNELS * FEATURES)))
    found = merged(model, grouped(blocks(model), {"b0_sum", "b1_sum"}), feeds(), lambda: None)
    assert operators(found).count("Add") == 2
    assert error(found, model) < 1e-8


def test_a_merged_block_does_most_of_the_work_of_those_that_went() -> None:
    model = network([0.1] * 4 + [1.0, 1.0])
    small, found = {f"b{place}_sum" for place in range(4)}, blocks(model)
    result = merged(model, grouped(found, small), feeds(12), lambda: None)
    assert len(blocks(result)) == 4
    left_out = ModelProto()
    left_out.CopyFrom(model)
    for group in grouped(found, small):
        merge.drop(left_out, group[-1].sum, group[0].sum)
    assert error(result, model) < 0.1 * error(left_out, model)


def test_blocks_behind_the_merged_ones_are_fitted_to_their_errors() -> None:
    model = network([0.3] * 4 + [1.0, 1.0])
    groups = grouped(blocks(model), {f"b{place}_sum" for place in range(4)})
    fitted, alone = (merged(model, some, feeds(12), lambda: None) for some in (groups, groups[:2]))
    assert error(fitted, model) < 0.9 * error(alone, model)


def test_weights_that_no_feature_speaks_of_are_kept() -> None:
    features = normal(16, FEATURES, 3, 3)
    features[:, 2] = 0
    stream, weight, bias = normal(16, CHANNELS, 3, 3, seed=1), normal(CHANNELS, FEATURES, seed=2), normal(CHANNELS)
    true, shift = normal(CHANNELS, FEATURES, seed=3), normal(CHANNELS, seed=4)
    target = stream + np.einsum("oi,nihw->nohw", true, features) + shift[:, None, None]
    found, added = merge.solve([(features, stream)], [target], weight, bias)
    assert np.allclose(found[:, 2], weight[:, 2])
    assert np.allclose(np.delete(found, 2, 1), np.delete(true, 2, 1), atol=2e-3)
    assert np.allclose(added, shift, atol=2e-3)


def depths(tried: list[int], accepted_at: int) -> Callable[[ModelProto], bool]:
    """Accepts the network tried at this place, and notes the blocks of all."""

    def accepted(candidate: ModelProto) -> bool:
        tried.append(len(blocks(candidate)))
        return len(tried) > accepted_at

    return accepted


def test_the_runs_that_cost_most_a_block_are_the_first_to_be_left_as_they_are() -> None:
    model, tried = network([0.02, 1.0, 0.05, 0.05, 1.0, 0.01]), list[int]()
    result, depth = shortened(model, feeds(), lambda other: error(other, model), depths(tried, 1), QUIET)
    assert (depth, tried) == (Depth(7, 2), [3, 5])
    left = network([0.02, 1.0, 0.05, 0.05, 1.0, 0.01])
    kept = merged(left, grouped(blocks(left), {"b0_sum", "b5_sum"}), feeds(), lambda: None)
    assert result == kept


def test_a_network_whose_answers_would_not_stay_keeps_every_block() -> None:
    model, tried = network([0.02, 0.02]), list[int]()
    result, depth = shortened(model, feeds(), unused, depths(tried, 9), QUIET)
    assert result is model
    assert (depth, tried) == (Depth(3, 0), [1])


def test_a_network_of_large_branches_is_not_tried_at_all() -> None:
    model = network([1.0, 1.0])
    assert shortened(model, feeds(), unused, unused, QUIET) == (model, Depth(3, 0))


def unused(_: ModelProto) -> float:
    raise AssertionError
