"""Weight rounding against brute force on small layers."""

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from convert.rounding import (
    LIMIT,
    PAIR,
    Moments,
    allowed,
    loss,
    pairs_of,
    refine,
    round_columns,
    round_layer,
    scales,
    search_codes,
)

Array = NDArray[np.float64]


def layer(seed: int, rows: int, width: int) -> tuple[Array, Array]:
    """Weights `[rows, width]` and a covariance `[width, width]` of correlated inputs."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width)) + 1.5
    return rng.normal(size=(rows, width)), mixing @ mixing.T / width + 0.05 * np.eye(width)


def plain(w: Array, scale: Array) -> Array:
    """Each weight rounded by itself."""
    return np.clip(np.rint(w / scale[:, None]), -LIMIT, LIMIT)


def lost(w: Array, h: Array, scale: Array, codes: Array) -> Array:
    return loss(w[None], h[None], scale[None], codes[None])[0]


def brute_force(w: Array, h: Array, scale: float, reach: int) -> float:
    """The least loss of any codes within `reach` of the weights."""
    middle = np.rint(w / scale)
    offsets = np.array(list(product(range(-reach, reach + 1), repeat=len(w))))
    e = w - (middle + offsets) * scale
    return float(np.einsum("nk,kl,nl->n", e, h, e).min())


def test_the_search_finds_the_best_codes_of_four_weight_kernels() -> None:
    shares = []
    for seed in range(8):
        w, h = layer(seed, 5, 4)
        scale = np.full(5, 0.11)
        start = round_columns(w, h, scale, None)[None]
        found = search_codes(w[None], h[None], scale[None], start, None)[0]
        best = np.array([brute_force(row, h, 0.11, 4) for row in w])
        shares += (lost(w, h, scale, found) / best).tolist()
    assert min(shares) > 1 - 1e-9
    assert np.mean(np.array(shares) < 1 + 1e-9) >= 0.9  # a descent of single and paired steps may miss one
    assert np.mean(shares) < 1.05


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", [9, 40, 200])  # within one block of columns, and over two
def test_rounding_by_columns_loses_less_than_rounding_each_weight(seed: int, width: int) -> None:
    w, h = layer(seed, 8, width)
    scale = np.abs(w).max(1) / 30
    found = round_columns(w, h, scale, None)
    assert lost(w, h, scale, found).sum() < 0.7 * lost(w, h, scale, plain(w, scale)).sum()
    assert np.array_equal(found, np.rint(found))


def test_inputs_without_correlation_leave_nothing_to_gain() -> None:
    w, _ = layer(0, 6, 12)
    scale = np.abs(w).max(1) / 30
    assert np.array_equal(round_columns(w, np.eye(12), scale, None), plain(w, scale))


@pytest.mark.parametrize("width", [8, 41])
def test_codes_of_a_pair_stay_within_what_sixteen_bits_hold(width: int) -> None:
    w, h = layer(3, 16, width)
    w[:, :4] = np.abs(w[:, :4]) + 2  # neighbours of one sign, all at the limit
    pairs = pairs_of(np.arange(width))
    scale = scales(w[None], h[None], pairs, np.zeros((1, 16)))[0]
    codes = round_columns(w, h, scale, pairs)
    refined = refine(w, h, scale, codes.copy(), pairs)
    for found in (codes, refined):
        a, b = found[:, pairs[:, 0]], found[:, pairs[:, 1]]
        assert np.abs(found).max() <= LIMIT
        assert np.abs(np.where(a * b > 0, a + b, 0)).max() <= PAIR
    assert np.abs(codes[:, 0] + codes[:, 1]).max() > 100  # the limit was near: the test tests something


def test_refinement_never_loses() -> None:
    w, h = layer(5, 12, 60)
    scale = np.abs(w).max(1) / 12
    start = plain(w, scale)
    found = refine(w, h, scale, start.copy(), None)
    assert (lost(w, h, scale, found) <= lost(w, h, scale, start) + 1e-9).all()
    assert lost(w, h, scale, found).sum() < 0.9 * lost(w, h, scale, start).sum()


def test_allowed_counts_pairs_of_one_sign_only() -> None:
    codes = np.array(
        [[127, 1, 0, 0], [127, 2, 0, 0], [127, -127, 0, 0], [-100, -29, 0, 0], [128, -1, 0, 0], [0, 100, 100, 0]]
    )
    assert allowed(codes, pairs_of(np.arange(4))).tolist() == [True, False, True, False, False, True]
    assert allowed(codes, None).tolist() == [True, True, True, True, False, True]


def test_moments_are_those_of_all_patches_together() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(2, 1, (3, 90, 5)).astype(np.float32)
    z = (x + rng.normal(0, 0.1, x.shape)).astype(np.float32)
    moments = Moments(3)
    for part in range(0, 90, 30):
        moments.add(x[:, part : part + 30], z[:, part : part + 30])
    mx, mz, h, c = moments.damped()
    for group in range(3):
        assert mx[group] == pytest.approx(x[group].mean(0), abs=1e-4)
        assert mz[group] == pytest.approx(z[group].mean(0), abs=1e-4)
        both = np.cov(x[group].T, z[group].T, bias=True)
        damping = 0.01 * np.diag(both[5:, 5:]).mean() * np.eye(5)
        assert h[group] == pytest.approx(both[5:, 5:] + damping, abs=1e-4)
        assert c[group] == pytest.approx(both[:5, 5:] + damping, abs=1e-4)


def patches(groups: int, positions: int, width: int) -> Array:
    rng = np.random.default_rng(1)
    common = rng.gamma(2, 1, (groups, positions, 1))
    return (common + rng.gamma(1, 0.5, (groups, positions, width))).astype(np.float32)


@pytest.mark.parametrize(("groups", "rows", "width"), [(1, 8, 27), (1, 6, 9), (16, 1, 9), (4, 3, 18), (4, 3, 36)])
@pytest.mark.parametrize("bits", [7, 8])
def test_a_rounded_layer_answers_nearer_than_one_rounded_weight_by_weight(
    groups: int, rows: int, width: int, bits: int
) -> None:
    rng = np.random.default_rng(2)
    x = patches(groups, 4000, width)
    weight, bias = rng.normal(size=(groups * rows, width)).astype("f"), rng.normal(size=groups * rows).astype("f")
    moments = Moments(groups)
    moments.add(x, x)
    order = None if (groups, rows) == (16, 1) else np.arange(width)
    found = round_layer(weight, bias, moments, bits=bits, order=order, unit=0.01)
    assert (found.codes.dtype, found.codes.shape) == (np.int8, weight.shape)

    def outputs(w: Array, b: Array) -> Array:
        return np.concatenate([x[g] @ part.T for g, part in enumerate(np.split(w, groups))], 1) + b

    limit = 127 if bits == 8 else 63
    step = np.abs(weight).max(1, keepdims=True) / limit
    nearest = outputs(np.rint(weight / step) * step, bias)
    exact, ours = outputs(weight, bias), outputs(found.codes * found.scale[:, None], found.bias)
    assert np.square(ours - exact).mean() < 0.5 * np.square(nearest - exact).mean()
    assert (ours - exact).mean(0) == pytest.approx(np.zeros(groups * rows), abs=1e-3)  # no bias is left


@pytest.mark.parametrize(("groups", "rows", "width"), [(1, 6, 18), (4, 3, 18), (4, 3, 36), (12, 2, 9)])
def test_codes_of_every_group_that_is_multiplied_in_pairs_stay_within_sixteen_bits(
    groups: int, rows: int, width: int
) -> None:
    weight = 1 + 0.1 * np.random.default_rng(3).normal(size=(groups * rows, width)).astype("f")  # of one sign
    for order, within in ((np.arange(width), True), (None, False)):
        moments = Moments(groups)
        moments.add(patches(groups, 500, width), patches(groups, 500, width))
        bias = np.zeros(groups * rows, np.float32)
        codes = round_layer(weight, bias, moments, bits=7, order=order, unit=0.01).codes.astype(int)
        pairs = pairs_of(np.arange(width))
        assert (np.abs(codes[:, pairs].sum(-1)).max() <= PAIR) == within


@pytest.mark.parametrize("width", [1, 9])
@pytest.mark.parametrize("positions", [375, 12_000])
def test_channels_of_one_value_keep_their_weights(width: int, positions: int) -> None:
    values = np.linspace(0.01, 6, 40, dtype=np.float32)[:, None, None]  # the network before answers nothing else
    x = np.repeat(np.broadcast_to(values, (40, positions, 1)), width, 2)
    weight, bias = np.random.default_rng(6).normal(size=(40, width)).astype("f"), np.zeros(40, np.float32)
    moments = Moments(40)
    for _ in range(3):
        moments.add(x + np.float32(0.001), x)
    found = round_layer(weight, bias, moments, bits=7, order=None, unit=0.01)
    rounded = found.codes * found.scale[:, None]
    assert rounded == pytest.approx(weight, abs=float(np.abs(weight).max()) / LIMIT)
    exact = (weight * (x[:, 0] + 0.001)).sum(1)
    assert (rounded * x[:, 0]).sum(1) + found.bias == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("spread", [0.0005, 0.005, 0.05])  # of the values beside their mean
def test_columns_that_vary_little_and_alike_keep_their_damping(spread: float) -> None:
    rng = np.random.default_rng(0)
    width, mean = 480, 0.1 + rng.random(480)
    moments, kept = Moments(1), []
    for _ in range(6):
        alike = rng.normal(size=(128, 3)) @ rng.normal(size=(3, width))
        z = (mean * (1 + spread * alike)).astype(np.float32)[None]
        moments.add(z, z)
        kept.append(z[0])
    exact = np.concatenate(kept).astype(np.float64)
    damping = max(0.01 * exact.var(0).mean(), 1e-6 * np.square(exact).mean())
    _, mz, h, _ = moments.damped()
    assert np.linalg.eigvalsh(h[0]).min() == pytest.approx(damping, rel=0.1)
    assert mz[0] == pytest.approx(exact.mean(0), rel=1e-5)


def test_errors_of_the_layers_before_are_made_good() -> None:
    rng = np.random.default_rng(4)
    x = patches(1, 5000, 12)
    z = (0.9 * x + 0.3 + rng.normal(0, 0.05, x.shape)).astype(np.float32)  # too small, and shifted
    weight, bias = rng.normal(size=(5, 12)).astype("f"), np.zeros(5, np.float32)
    moments = Moments(1)
    moments.add(x, z)
    found = round_layer(weight, bias, moments, bits=8, order=np.arange(12), unit=0.01)
    exact = x[0] @ weight.T
    before = z[0] @ weight.T
    after = z[0] @ (found.codes * found.scale[:, None]).T + found.bias
    assert np.square(after - exact).mean() < 0.3 * np.square(before - exact).mean()


def test_a_channel_of_zeros_gets_codes_and_a_finite_scale() -> None:
    moments = Moments(1)
    moments.add(patches(1, 500, 9), patches(1, 500, 9))
    weight = np.zeros((3, 9), np.float32)
    weight[0] = 1
    found = round_layer(weight, np.array([1, 2, 3], np.float32), moments, bits=7, order=np.arange(9), unit=0.01)
    assert not found.codes[1:].any()
    assert np.isfinite(found.scale).all()
    assert (found.scale > 0).all()
    assert found.bias[1:] == pytest.approx([2, 3])


def test_a_channel_of_next_to_no_weight_keeps_a_scale_at_which_its_bias_fits() -> None:
    moments = Moments(1)
    moments.add(patches(1, 500, 9), patches(1, 500, 9))
    weight = np.full((2, 9), 1e-9, np.float32)
    unit = 0.02
    found = round_layer(weight, np.array([50, -3], np.float32), moments, bits=7, order=np.arange(9), unit=unit)
    assert (np.abs(found.bias / (found.scale.astype(np.float64) * unit)) < 2**31).all()
