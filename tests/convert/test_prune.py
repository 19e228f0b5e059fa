"""Channels go where the answers need them least, and what reads them makes good for it."""

from itertools import pairwise

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper

from convert import prune as module
from convert.errors import ConvertError
from convert.graph import Array, constants
from convert.optimise import Folded
from convert.progress import Progress
from convert.prune import CHUNK, Curve, Site, allocate, curve, effects_of, left, prune, sites
from convert.ranges import Range
from tests.convert.graphs import graph, normal, operators, run

ENTRY = Range(1 / 32, 128)
WIDE = 3 * CHUNK


def conv(source: str, name: str, **attributes: object) -> NodeProto:
    """A convolution with weight NAME_w and bias NAME_b."""
    return helper.make_node("Conv", [source, f"{name}_w", f"{name}_b"], [name], name, **attributes)


def weights(name: str, *shape: int, seed: int) -> dict[str, Array]:
    scale = np.float32(np.prod(shape[1:]) ** -0.5)
    return {f"{name}_w": normal(*shape, seed=seed) * scale, f"{name}_b": normal(shape[0], seed=seed + 1)}


def doubled(found: dict[str, Array], name: str, kept: int) -> dict[str, Array]:
    """The convolution's outputs beyond the first `kept` repeat them, three times as large."""
    for key in (f"{name}_w", f"{name}_b"):
        value = found[key]
        found[key] = np.concatenate([value[:kept], 3 * np.resize(value[:kept], (len(value) - kept, *value.shape[1:]))])
    return found


def network(kept: int = WIDE, sharpness: float = 1.0) -> ModelProto:
    """A convolution of WIDE channels, of which `kept` are different, a depthwise one, and one that reads them; a block
    with a shortcut behind it. The logits are multiplied by `sharpness`."""
    values = {
        "sharpness": np.float32(sharpness),
        **doubled(weights("a", WIDE, 3, 3, 3, seed=1), "a", kept),
        "d_w": np.ones((WIDE, 1, 3, 3), np.float32) / 9,
        "d_b": np.zeros(WIDE, np.float32),
        **weights("b", 8, WIDE, 3, 3, seed=5),
        **weights("c", WIDE, 8, 1, 1, seed=7),
        **weights("e", 8, WIDE, 1, 1, seed=9),
    }
    nodes = [
        conv("image", "a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["a2"]),
        conv("a2", "d", group=WIDE),
        helper.make_node("Relu", ["d"], ["d2"]),
        conv("d2", "b"),
        conv("b", "c"),
        helper.make_node("Relu", ["c"], ["c2"]),
        conv("c2", "e"),
        helper.make_node("Add", ["b", "e"], ["sum"]),
        helper.make_node("GlobalAveragePool", ["sum"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Mul", ["flat", "sharpness"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    return graph(nodes, values, [3, 12, 12], axes=2)


def photos(count: int = 8) -> list[Array]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (8, 3, 12, 12)).astype(np.uint8) for _ in range(count)]


def pruned(model: ModelProto, share: float) -> Folded:
    copy = ModelProto()
    copy.CopyFrom(model)
    return prune(Folded(copy, ENTRY), photos(), share, Progress(quiet=True))


def error(model: ModelProto, other: ModelProto) -> float:
    """Largest difference of answers to photos that nothing was fitted on."""
    image = ENTRY.dequantise(np.random.default_rng(9).integers(0, 256, (16, 3, 12, 12)).astype(np.uint8))
    return float(np.abs(run(model, image)[0] - run(other, image)[0]).max())


def test_channels_that_others_repeat_go_without_a_trace() -> None:
    model = network(kept=CHUNK)
    whole = left(module.macs_of(model, ENTRY.dequantise(photos()[0])), {})
    found = pruned(model, 0.5)
    assert found.macs <= 0.5
    assert left(module.macs_of(found.model, ENTRY.dequantise(photos()[0])), {}) == pytest.approx(found.macs * whole)
    assert error(model, found.model) < 0.005
    assert error(model, found_without_fit(model, 0.5).model) > 0.02
    assert operators(found.model) == operators(model)
    shapes = {name: value.shape for name, value in constants(found.model).items()}
    assert (CHUNK, 1, 3, 3) in shapes.values()


def test_what_is_left_is_fitted_and_not_only_cut_out() -> None:
    model = network()
    found = pruned(model, 0.6)
    cut = found_without_fit(model, 0.6)
    assert found.macs == cut.macs <= 0.6
    assert error(model, found.model) < 0.5 * error(model, cut.model)


def found_without_fit(model: ModelProto, share: float) -> Folded:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "refit", lambda *_: None)
        return pruned(model, share)


def test_pruning_twice_gives_the_same_network() -> None:
    a, b = (pruned(network(), 0.7).model.SerializeToString() for _ in range(2))
    assert a == b


def test_everything_prunable_goes_down_to_a_chunk_and_no_further() -> None:
    with pytest.raises(ConvertError, match=r"33\.3 % .* is the least that pruning leaves .* give --macs 34 or more"):
        pruned(network(), 0.01)
    found = pruned(network(), 0.334)
    assert found.macs == pytest.approx(1 / 3, abs=0.001)
    assert {value.shape[0] for name, value in constants(found.model).items() if value.ndim == 4} == {8, CHUNK}


def test_sites_are_between_convolutions_that_only_each_other_see() -> None:
    found = sites(network())
    assert [(site.writer, site.between, site.reader, site.channels) for site in found] == [
        ("a", ("d",), "b", WIDE),
        ("c", (), "e", WIDE),
    ]


@pytest.mark.parametrize("case", ["two readers", "grouped", "another operator"])
def test_channels_that_others_see_stay(case: str) -> None:
    values = {**weights("a", 4, 3, 1, 1, seed=1), **weights("b", 4, 2 if case == "grouped" else 4, 1, 1, seed=3)}
    between = helper.make_node("Sigmoid" if case == "another operator" else "Relu", ["a"], ["r"])
    last = {
        "two readers": [conv("r", "b"), helper.make_node("Add", ["b", "r"], ["probabilities"])],
        "grouped": [conv("r", "b", group=2), helper.make_node("Relu", ["b"], ["probabilities"])],
    }.get(case, [conv("r", "b"), helper.make_node("Relu", ["b"], ["probabilities"])])
    model = graph([conv("image", "a"), between, *last], values, [3, 5, 5])
    assert sites(model) == []


def test_the_error_of_a_curve_is_that_of_the_best_fit_of_the_channels_left() -> None:
    rng, channels = np.random.default_rng(0), 3 * CHUNK
    mixed = rng.normal(size=(4 * channels, channels)) ** 3
    x = (rng.normal(size=(4000, 4 * channels)) @ mixed).reshape(4000, channels)
    weight = rng.normal(size=(5, channels, 1, 1)).astype(np.float32)
    ones = np.concatenate([x, np.ones((4000, 1))], 1)
    found = curve(weight, ones.T @ ones)
    y = x @ weight[:, :, 0, 0].T
    for gone in (CHUNK, 2 * CHUNK):
        stay = np.concatenate([x[:, found.order[gone:]], np.ones((4000, 1))], 1)
        best = y - stay @ np.linalg.lstsq(stay, y, rcond=None)[0]
        assert found.errors[gone // CHUNK] == pytest.approx(np.square(best).sum(1).mean(), rel=0.02)
    assert sorted(found.order) == list(range(channels))
    assert all(a <= b for a, b in pairwise(found.errors))


def test_the_half_of_a_curve_is_the_network_with_so_many_channels_gone() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(1, 1, (3000, 2 * CHUNK)) @ rng.normal(size=(2 * CHUNK, 2 * CHUNK))
    weight = rng.normal(size=(5, 2 * CHUNK, 1, 1)).astype(np.float32)
    ones = np.concatenate([x, np.ones((3000, 1))], 1)
    lost, halved, change = curve(weight, ones.T @ ones).half
    assert np.count_nonzero(np.abs(halved).sum((0, 2, 3))) == CHUNK
    difference = x @ (weight - halved)[:, :, 0, 0].T - change
    assert np.square(difference).sum(1).mean() == pytest.approx(lost, rel=0.02)


def test_the_effect_of_a_site_of_less_than_two_chunks_is_measured_too() -> None:
    x = normal(3000, CHUNK + 8, seed=1)
    ones = np.concatenate([x, np.ones((3000, 1), np.float32)], 1)
    lost, halved, _ = curve(normal(5, CHUNK + 8, 1, 1, seed=2), ones.T @ ones).half
    assert lost > 0
    assert np.count_nonzero(np.abs(halved).sum((0, 2, 3))) == 8


def test_the_effect_of_a_site_is_measured_at_the_answers() -> None:
    def effects(model: ModelProto) -> list[float]:
        found = module.measured(Folded(model, ENTRY), sites(model), photos(), Progress(quiet=True))
        return list(effects_of(model, found, [ENTRY.dequantise(photos()[0])], lambda: None).values())

    dull, sharp = effects(network(sharpness=0.1)), effects(network(sharpness=0.2))
    assert min(dull) > 0
    np.testing.assert_allclose(sharp, np.multiply(dull, 4), rtol=0.01)  # squares of logits


def test_channels_go_first_where_they_cost_the_answers_least_for_a_multiplication() -> None:
    first, second = (Site(f"{name}1", (), f"{name}2", name, 2 * CHUNK) for name in "ab")
    alike = Curve(np.arange(2 * CHUNK), np.array([0.0, 1.0]), (1.0, np.zeros(1), np.zeros(1)))
    curves, work = {first: alike, second: alike}, {"a1": 100, "a2": 100, "b1": 100, "b2": 100}
    assert allocate(curves, {first: 1.0, second: 2.0}, work, 0.75) == {first: CHUNK, second: 2 * CHUNK}
    assert allocate(curves, {first: 2.0, second: 1.0}, work, 0.75) == {first: 2 * CHUNK, second: CHUNK}
    assert allocate(curves, {first: 1.0, second: 2.0}, work | {"b1": 400}, 0.75) == {first: 2 * CHUNK, second: CHUNK}
    assert allocate(curves, {first: 1.0, second: 2.0}, work, 0.1) == {first: CHUNK, second: CHUNK}
    assert allocate(curves, {first: 1.0, second: 2.0}, work, 1.0) == {first: 2 * CHUNK, second: 2 * CHUNK}
