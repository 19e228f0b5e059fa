"""Rates and percentiles with 95 % intervals, by a block bootstrap over the time of a load.

Requests that are neighbours in time wait for each other, so the load's time is cut into equal blocks and whole blocks
are drawn again (Kuensch 1989, moving-block bootstrap in its simplest form). The draws are seeded: the same samples
give the same intervals.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCKS = 20
DRAWS = 300
Z = 1.96  # of the normal distribution, for 95 %

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A measured value and the 95 % interval of what the same load would give again."""

    value: float
    low: float
    high: float


def rate(finished_s: Floats, elapsed_s: float) -> Interval:
    """Answers a second, from the moments of the answers (seconds after the first send)."""
    counts = np.bincount(_block(finished_s, elapsed_s), minlength=BLOCKS)
    draws = counts[_draws()].sum(axis=1) / elapsed_s
    return _interval(len(finished_s) / elapsed_s, draws)


def percentiles(finished_s: Floats, elapsed_s: float, values: Floats, wanted: tuple[float, ...]) -> list[Interval]:
    """The wanted percentiles of `values` (one an answer).

    No interval is narrower than that of independent answers by order statistics (David and Nagaraja, 7.1): whole blocks
    hold too few of the slowest for the bootstrap alone. Of fewer than `enough` values it ends at the slowest and may be
    too narrow.
    """
    if not len(values):
        return [Interval(float("nan"), float("nan"), float("nan"))] * len(wanted)
    block = _block(finished_s, elapsed_s)
    blocks = [values[block == k] for k in range(BLOCKS)]
    drawn = (np.concatenate([blocks[k] for k in draw]) for draw in _draws())
    draws = np.array([np.percentile(d, wanted) for d in drawn if len(d)])
    point = np.percentile(values, wanted)
    return [_widened(_interval(float(point[k]), draws[:, k]), values, p) for k, p in enumerate(wanted)]


def _widened(interval: Interval, values: Floats, p: float) -> Interval:
    half = Z * float(np.sqrt(p * (100 - p) / len(values)))
    low, high = np.percentile(values, (max(0.0, p - half), min(100.0, p + half)))
    return Interval(interval.value, min(interval.low, float(low)), max(interval.high, float(high)))


def enough(p: float, n: int) -> bool:
    """Whether n values hold a slower one than the upper end of percentile p's 95 % interval."""
    return p + Z * float(np.sqrt(p * (100 - p) / n)) <= 100


def per(spent: Floats, done: Floats, value: float) -> Interval:
    """What was spent for each thing done, `value` in all, from both in equal parts of a load's time, `[n]`, n > 0."""
    drawn = _draws(len(spent))
    draws = spent[drawn].sum(axis=1) / np.maximum(1, done[drawn].sum(axis=1))
    return _interval(value, draws)


def median(values: Floats) -> Interval:
    """The median of readings, `[n]`, n > 0."""
    return _interval(float(np.median(values)), np.median(values[_draws(len(values))], axis=1))


def ratio(a: Interval, b: Interval) -> Interval:
    """b / a of two independent measurements, intervals combined on the logarithms."""
    if min(a.low, b.low, a.value, b.value) <= 0:
        return Interval(b.value / a.value if a.value else float("nan"), 0.0, float("inf"))
    middle = np.log(b.value / a.value)
    down = np.hypot(np.log(b.value / b.low), np.log(a.high / a.value))
    up = np.hypot(np.log(b.high / b.value), np.log(a.value / a.low))
    return Interval(float(np.exp(middle)), float(np.exp(middle - down)), float(np.exp(middle + up)))


def proportion(share: float, n: int) -> Interval:
    """Wilson's 95 % interval of a share of n trials."""
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * float(np.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n)))
    return Interval(share, middle - half, middle + half)


def _block(finished_s: Floats, elapsed_s: float) -> NDArray[np.intp]:
    return np.clip(finished_s / elapsed_s * BLOCKS, 0, BLOCKS - 1).astype(np.intp)


def _draws(blocks: int = BLOCKS) -> NDArray[np.intp]:
    return np.random.default_rng(0).integers(0, blocks, (DRAWS, blocks))


def _interval(value: float, draws: Floats) -> Interval:
    low, high = np.percentile(draws, (2.5, 97.5))
    return Interval(float(value), float(min(low, value)), float(max(high, value)))
