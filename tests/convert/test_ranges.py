"""Scales and zero points of u8 tensors."""

import numpy as np
import pytest
from numpy.typing import NDArray

from convert.ranges import Range, choose, covering, sample

Array = NDArray[np.float32]


def values(seed: int = 0) -> Array:
    """Bell-shaped, with a few far outliers on one side."""
    rng = np.random.default_rng(seed)
    found = rng.normal(0.5, 1, 200_000).astype(np.float32)
    found[:10] = 30
    return found


def test_codes_are_those_of_onnx_runtime() -> None:
    import onnxruntime  # noqa: PLC0415
    from onnx import TensorProto, helper  # noqa: PLC0415

    span = Range(0.037, 113)
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [None])],
        [
            helper.make_tensor("s", TensorProto.FLOAT, [], [span.scale]),
            helper.make_tensor("z", TensorProto.UINT8, [], [113]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    engine = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.concatenate([values(), np.arange(-300, 300, dtype=np.float32) * np.float32(0.037 / 2)])
    assert np.array_equal(span.quantise(x), engine.run(None, {"x": x})[0])


def test_dequantised_codes_are_within_half_a_step() -> None:
    span = covering(-5.0, 30.0)
    x = np.linspace(-5, 30, 1001, dtype=np.float32)
    assert np.abs(span.dequantise(span.quantise(x)) - x).max() <= span.scale * 0.5001


def test_a_range_covers_everything_and_zero_is_a_code() -> None:
    span = covering(2.0, 30.0)
    assert span == Range(30 / 255, 0)
    span = covering(-30.0, -2.0)
    assert (span.scale, span.zero_point) == (pytest.approx(30 / 255), 255)
    for low, high in ((-1.0, 3.0), (-0.3, 7.7)):
        span = covering(low, high)
        assert span.dequantise(np.array([span.zero_point], np.uint8))[0] == 0


def test_nothing_is_cut_from_a_side_that_has_no_values() -> None:
    x = np.abs(values())
    assert choose(x, 0.0, float(x.max())).zero_point == 0


@pytest.mark.parametrize("seed", range(3))
def test_least_squares_ranges_lose_least(seed: int) -> None:
    x = values(seed)
    limits = float(x.min()), float(x.max())
    noise = choose(x, *limits).noise(x)
    assert noise < covering(*limits).noise(x)
    brute = min(
        Range(
            (limits[1] * b - limits[0] * a) / 255, round(-limits[0] * a / ((limits[1] * b - limits[0] * a) / 255))
        ).noise(x)
        for a in np.linspace(0.3, 1, 8)
        for b in np.linspace(0.3, 1, 29)
    )
    assert noise <= brute * 1.02


def test_noise_is_the_share_of_the_variance_lost() -> None:
    x = np.random.default_rng(0).uniform(0, 255, 100_000).astype(np.float32)
    assert Range(1.0, 0).noise(x) == pytest.approx((1 / 12) / x.var(), rel=0.02)
    assert Range(1.0, 0).noise(np.full(10, 3, np.float32)) == 0


def test_a_tensor_of_zeros_gets_a_usable_range() -> None:
    span = choose(np.zeros(100, np.float32), 0.0, 0.0)
    assert span.scale > 0
    assert span.dequantise(span.quantise(np.zeros(3, np.float32))).tolist() == [0, 0, 0]


def test_a_sample_takes_every_column_of_every_batch() -> None:
    batches = [np.full((8, 64, 64, 64), index, np.float16) for index in range(4)]
    batches[2][..., 1::2] = 9  # seen only if the stride is odd
    found = sample(batches)
    assert found.dtype == np.float32
    assert found.size < 5_000_000
    assert set(np.unique(found)) == {0, 1, 2, 3, 9}
