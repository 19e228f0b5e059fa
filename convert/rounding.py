"""Weight rounding by least squares: integer codes that keep a layer's output, not each weight. numpy only.

For one layer the float network has y = W x + b; the quantised network hands it inputs z (x with the errors of all
layers before). Wanted are integer codes Q and a bias c that minimise E|s Q z + c - (W x + b)|^2. The best real weights
are W C H^-1 with H = Cov(z), C = Cov(x, z). They are rounded column by column, each column's error being pushed into
the columns not yet rounded (OBQ, GPTQ: Frantar et al. 2022, arXiv 2210.17323; with the float network's outputs as
targets: Li et al. 2025, GPTAQ, arXiv 2504.02692), and then improved by coordinate descent over the codes. The mean
error leaves through the bias (bias correction: Nagel et al. 2019, arXiv 1906.04721).
"""

from dataclasses import dataclass, field
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Codes = NDArray[np.int8]

LIMIT = 127  # of a code
PAIR = 128  # of two neighbouring codes of one sign
DAMPING = 0.01  # of the mean variance, added to every variance
LEAST_DAMPING = 1e-6  # of the mean square: columns that never vary have no variance
SEARCHED = 25  # kernels of up to this many weights (5x5) are searched over their codes
BIAS_LIMIT = 2.0**30
SHRINKS = np.array([1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
MOST_STEPS = 400  # of one descent
BLOCK = 128  # columns rounded before the columns behind them are updated


@dataclass
class Moments:
    """Running moments of a layer's input patches x (float network) and z (quantised network), each `[G, P, K]` float32:
    G groups, P sampled positions, K weights a kernel.

    They are taken about the means of the first positions: float32 products of values that vary little beside their
    mean would lose the variance, and with it the damping that keeps Cov(z) positive definite."""

    groups: int
    count: int = 0
    centres: list[Array] = field(default_factory=list)  # of x and z, [G, 1, K]
    sums: list[Array] = field(default_factory=list)

    def add(self, x: Array, z: Array) -> None:
        """Take P more positions: x and z `[G, P, K]`."""
        if not self.centres:
            self.centres = [part.mean(1, dtype=np.float64, keepdims=True).astype(np.float32) for part in (x, z)]
        new = sums_of(x - self.centres[0], z - self.centres[1])
        if self.sums:
            for total, part in zip(self.sums, new, strict=True):
                np.add(total, part, out=total)
        else:
            self.sums = [part.astype(np.float64) for part in new]
        self.count += x.shape[1]

    def damped(self) -> tuple[Array, Array, Array, Array]:
        """mean x `[G, K]`, mean z `[G, K]`, Cov(z) and Cov(x, z) `[G, K, K]`, float64, both with the same constant on
        their diagonals. Uses the moments up: large kernels' would fill the memory twice."""
        mx, mz, h, c = (np.divide(total, self.count, out=total) for total in self.sums)
        self.sums = []
        h -= mz[:, :, None] * mz[:, None, :]
        c -= mx[:, :, None] * mz[:, None, :]
        mx += self.centres[0][:, 0]
        mz += self.centres[1][:, 0]
        variance = np.einsum("gii->gi", h).mean(1, keepdims=True)
        square = variance + np.square(mz).mean(1, keepdims=True)
        damping = np.maximum(DAMPING * variance, np.maximum(LEAST_DAMPING * square, 1e-12))
        for matrix in (h, c):
            np.einsum("gii->gi", matrix)[:] += damping
        return mx, mz, h, c


def sums_of(x: Array, z: Array) -> list[Array]:
    """Sums over positions of x and z `[G, K]`, and of their products z z and x z `[G, K, K]`."""
    ones = np.ones((1, x.shape[1]), x.dtype)  # of few columns numpy adds up a product faster than a sum
    return [(ones @ x)[:, 0], (ones @ z)[:, 0], products(z, z), products(x, z)]


def products(a: Array, b: Array) -> Array:
    """a^T b of every group. (Of one group by itself: numpy does half the work where a is b.)"""
    found: Array = (a[0].T @ b[0])[None] if len(a) == 1 else a.transpose(0, 2, 1) @ b
    return found


@dataclass(frozen=True)
class Rounded:
    """Codes `[O, K]` int8, scale `[O]` float32 (weight = scale * code) and the corrected bias `[O]` float32."""

    codes: Codes
    scale: Array
    bias: Array


def round_layer(
    weight: Array, bias: Array, moments: Moments, *, bits: int, order: NDArray[np.intp] | None, unit: float
) -> Rounded:
    """Codes for weight `[O, K]` and bias `[O]`; output channels are split evenly over the groups of `moments`.

    `order` `[K]` is the order in which a kernel multiplies the columns, None for one that adds in 32 bits at once. With
    7 bits, codes go up to 127 too, but two of one sign that VPMADDUBSW adds in 16 bits stay within 128 together, as two
    7-bit codes do: 255 * 128 < 2^15. So no x86 CPU saturates, and the step is finer than that of 7 bits a code. `unit`
    is the scale of the layer's input: the bias is stored as a 32-bit multiple of it and the weight's scale.
    """
    mx, mz, h, c = moments.damped()
    w = weight.reshape(moments.groups, -1, weight.shape[1]).astype(np.float64)
    target = (w @ c).transpose(0, 2, 1)
    del c
    best = np.linalg.solve(h, target).transpose(0, 2, 1)
    pairs = pairs_of(order) if bits == 7 and order is not None else None
    largest = np.abs(bias).reshape(w.shape[:2]) + sum(np.abs((w @ mean[..., None])[..., 0]) for mean in (mx, mz))
    scale = scales(best, h, pairs, largest / (unit * BIAS_LIMIT))
    codes = np.stack([round_columns(*one, pairs) for one in zip(best, h, scale, strict=True)])
    if h.shape[1] <= SEARCHED:
        codes = search_codes(best, h, scale, codes, pairs)
    else:
        codes = np.stack([refine(*one, pairs) for one in zip(best, h, scale, codes, strict=True)])
    rounded = codes * scale[..., None]
    corrected = bias + ((w @ mx[..., None])[..., 0] - (rounded @ mz[..., None])[..., 0]).reshape(-1)
    return Rounded(
        codes.reshape(weight.shape).astype(np.int8), scale.reshape(-1).astype(np.float32), corrected.astype(np.float32)
    )


def pairs_of(order: NDArray[np.intp]) -> NDArray[np.intp]:
    """The columns that VPMADDUBSW adds, `[K // 2, 2]`: the first and second, the third and fourth, and so on."""
    return order[: len(order) // 2 * 2].reshape(-1, 2)


def scales(w: Array, h: Array, pairs: NDArray[np.intp] | None, least: Array) -> Array:
    """Scale of each output channel `[G, O]`: what its largest weight and pair need, or as much less as costs least by
    plain rounding (a channel that hardly varies may have a large weight that matters little). Never under `least`:
    channels of next to no weight keep a scale at which their bias fits."""
    need = np.abs(w).max(-1) / LIMIT
    if pairs is not None:
        a, b = w[..., pairs[:, 0]], w[..., pairs[:, 1]]
        need = np.maximum(need, np.where(a * b > 0, np.abs(a + b), 0).max(-1, initial=0) / PAIR)
    variance = np.einsum("gii->gi", h)[:, None, :]
    candidates = np.maximum(need * SHRINKS[:, None, None], np.maximum(least, 1e-12))
    errors = []
    for scale in candidates:
        s = scale[..., None]
        codes = within_pairs(np.clip(np.rint(w / s), -LIMIT, LIMIT), variance, pairs)
        errors.append((variance * (w - s * codes) ** 2).sum(-1))
    best: Array = np.take_along_axis(candidates, np.argmin(errors, 0)[None], 0)[0]
    return best


def within_pairs(codes: Array, variance: Array, pairs: NDArray[np.intp] | None) -> Array:
    """Codes `[..., K]` with the one that varies less of each pair cut back until both are within PAIR."""
    if pairs is None:
        return codes
    first = variance[..., pairs[:, 0]] < variance[..., pairs[:, 1]]
    a, b = codes[..., pairs[:, 0]], codes[..., pairs[:, 1]]
    over = np.where(a * b > 0, np.maximum(np.abs(a + b) - PAIR, 0), 0)
    codes[..., pairs[:, 0]] -= np.sign(a) * np.where(first, over, 0)
    codes[..., pairs[:, 1]] -= np.sign(b) * np.where(first, 0, over)
    return codes


def round_columns(w: Array, h: Array, scale: Array, pairs: NDArray[np.intp] | None) -> Array:
    """GPTQ on one group: w `[O, K]`, h `[K, K]`, scale `[O]` to codes `[O, K]`, columns by falling variance.

    With `pairs`, codes of one sign stay within PAIR together.
    """
    order = np.argsort(-np.diag(h), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(h[np.ix_(order, order)])).T
    w, limits, codes = w[:, order].copy(), Limits(w.shape, pairs), np.empty_like(w)
    for start in range(0, w.shape[1], BLOCK):
        end = min(start + BLOCK, w.shape[1])
        errors = np.empty((w.shape[0], end - start))
        for k in range(start, end):
            column = limits.clip(np.rint(w[:, k] / scale), int(order[k]))
            codes[:, order[k]] = column
            errors[:, k - start] = (w[:, k] - column * scale) / upper[k, k]
            w[:, k + 1 : end] -= np.outer(errors[:, k - start], upper[k, k + 1 : end])
        w[:, end:] -= errors @ upper[start:end, end:]
    return codes


class Limits:
    """How far each code `[O, K]` may go, given the neighbours that are fixed already."""

    def __init__(self, shape: tuple[int, ...], pairs: NDArray[np.intp] | None) -> None:
        self.most, self.least = np.full(shape, float(LIMIT)), np.full(shape, -float(LIMIT))
        both = [] if pairs is None else [*pairs.tolist(), *pairs[:, ::-1].tolist()]
        self.partner: dict[int, int] = dict(both)

    def clip(self, codes: Array, column: int) -> Array:
        """The codes of one column within their limits, which narrow those of its neighbours."""
        codes = np.clip(codes, self.least[:, column], self.most[:, column])
        if (other := self.partner.get(column)) is not None:
            self.most[:, other] = np.minimum(self.most[:, other], PAIR - np.maximum(codes, 0))
            self.least[:, other] = np.maximum(self.least[:, other], -PAIR - np.minimum(codes, 0))
        return codes


def partners(width: int, pairs: NDArray[np.intp] | None) -> NDArray[np.intp]:
    """The other column of each column's pair, `[K]`; -1 for none."""
    found = np.full(width, -1)
    if pairs is not None:
        found[pairs[:, 0]], found[pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    return found


def refine(w: Array, h: Array, scale: Array, codes: Array, pairs: NDArray[np.intp] | None) -> Array:
    """Coordinate descent on one group: in every row at once the single step of one code that lowers the loss most."""
    partner = partners(w.shape[1], pairs)
    s, curvature = scale[:, None], np.diag(h) * scale[:, None] ** 2
    gradient = (w - codes * s) @ h
    rows = np.arange(len(w))
    for _ in range(MOST_STEPS):
        direction = np.sign(gradient)
        other = np.where(partner >= 0, codes[:, partner], 0)
        limit = np.minimum(LIMIT, PAIR - np.maximum(direction * other, 0)) if pairs is not None else LIMIT
        change = np.where(direction * codes + 1 <= limit, curvature - 2 * s * np.abs(gradient), 0)
        chosen = change.argmin(1)
        better = change[rows, chosen] < -1e-12
        if not better.any():
            break
        step = np.where(better, direction[rows, chosen], 0)
        codes[rows, chosen] += step
        gradient -= (step * scale)[:, None] * h[chosen]
    return codes


def search_codes(w: Array, h: Array, scale: Array, gptq: Array, pairs: NDArray[np.intp] | None) -> Array:
    """Codes `[G, O, K]` for kernels of few weights: descent by single and paired steps of one code, from two starts."""
    plain = np.clip(np.rint(w / scale[..., None]), -LIMIT, LIMIT)
    moves = steps(w.shape[-1])
    starts = (gptq, plain) if pairs is None else (gptq,)
    found = [descend(w, h, scale, start, moves=moves, pairs=pairs) for start in starts]
    losses = np.stack([loss(w, h, scale, one) for one in found])
    best: Array = np.take_along_axis(np.stack(found), losses.argmin(0)[None, ..., None], 0)[0]
    return best


def steps(width: int) -> Array:
    """All moves of one or two codes by one, `[M, K]`."""
    eye = np.eye(width)
    single = [sign * eye[i] for i in range(width) for sign in (1, -1)]
    pairs = [a * eye[i] + b * eye[j] for i, j in combinations(range(width), 2) for a, b in product((1, -1), repeat=2)]
    return np.array(single + pairs)


def loss(w: Array, h: Array, scale: Array, codes: Array) -> Array:
    """Output variance lost a channel, `[G, O]`."""
    e = w - codes * scale[..., None]
    lost: Array = np.einsum("gok,gkl,gol->go", e, h, e)
    return lost


def descend(w: Array, h: Array, scale: Array, codes: Array, *, moves: Array, pairs: NDArray[np.intp] | None) -> Array:
    """Take, in every channel at once, the move that lowers the loss most, until none does."""
    s = scale[..., None]
    curvature = np.einsum("mk,gkl,ml->gm", moves, h, moves)[:, None, :] * s**2
    for _ in range(MOST_STEPS):
        gradient = (w - codes * s) @ h
        change = curvature - 2 * s * (gradient @ moves.T)
        change = np.where(allowed(codes[..., None, :] + moves, pairs), change, 0)
        chosen = change.argmin(-1)
        better = np.take_along_axis(change, chosen[..., None], -1) < -1e-12
        if not better.any():
            break
        codes = codes + np.where(better, moves[chosen], 0)
    return codes


def allowed(codes: Array, pairs: NDArray[np.intp] | None) -> NDArray[np.bool_]:
    """Whether codes `[..., K]` keep their limits."""
    within: NDArray[np.bool_] = np.abs(codes).max(-1) <= LIMIT
    if pairs is None:
        return within
    a, b = codes[..., pairs[:, 0]], codes[..., pairs[:, 1]]
    within &= np.where(a * b > 0, np.abs(a + b), 0).max(-1, initial=0) <= PAIR
    return within
