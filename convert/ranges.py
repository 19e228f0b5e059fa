"""Quantisation of a u8 tensor: its scale and zero point, and how they are chosen from values."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
METHOD = "mse"  # how ranges are chosen, as packages name it
BINS = 4096
SAMPLES = 4_000_000  # values that a histogram is made of


@dataclass(frozen=True)
class Range:
    """value = scale * (code - zero_point), codes 0 to 255."""

    scale: float
    zero_point: int

    def quantise(self, values: Array) -> NDArray[np.uint8]:
        """Codes of float values, rounded half to even as QuantizeLinear does."""
        codes = np.rint(values.astype(np.float32, copy=False) / np.float32(self.scale)) + np.float32(self.zero_point)
        limited: NDArray[np.uint8] = np.clip(codes, 0, 255, out=codes).astype(np.uint8)
        return limited

    def dequantise(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Values of codes, float32."""
        values = codes.astype(np.float32)
        values -= np.float32(self.zero_point)
        values *= np.float32(self.scale)
        return values

    def noise(self, values: NDArray[np.float32]) -> float:
        """Share of the values' variance that their rounding and clipping costs."""
        lost = np.square(self.dequantise(self.quantise(values)) - values).mean(dtype=np.float64)
        return float(lost / max(values.var(dtype=np.float64), 1e-12))


def decoded(batch: NDArray[np.uint8], entry: Range | None) -> Array:
    """A batch of pixels as the graph takes it: their values in the range of its input, or as they are."""
    return entry.dequantise(batch) if entry else batch


def sample(batches: Sequence[Array]) -> NDArray[np.float32]:
    """An even sample of the values of all batches."""
    stride = max(1, sum(batch.size for batch in batches) // SAMPLES) | 1  # odd: no column is left out
    return np.concatenate([batch.reshape(-1)[::stride] for batch in batches]).astype(np.float32)


def choose(values: NDArray[np.float32], low: float, high: float) -> Range:
    """The range with the least squared error for a tensor with these values (a sample) between `low` and `high`."""
    low, high = min(0.0, low), max(0.0, high)
    return covering(*least_squares(*np.histogram(values, BINS, (low, high))) if high > low else (low, high))


def covering(low: float, high: float) -> Range:
    """The range from `low` to `high`, and to zero, which always is a code."""
    low, high = min(0.0, low), max(0.0, high)
    scale = max((high - low) / 255, 1e-9)
    return Range(scale, int(np.clip(np.rint(-low / scale), 0, 255)))


def least_squares(counts: Array, edges: Array) -> tuple[float, float]:
    """Limits with the least expected squared error: that of clipping plus step^2 / 12 of rounding."""
    middle, total = (edges[:-1] + edges[1:]) / 2, counts.sum()
    shares = np.linspace(0.3, 1, 36)
    best = (np.inf, float(edges[0]), float(edges[-1]))
    for a, b in product(shares if edges[0] < 0 else (1.0,), shares):
        low, high = edges[0] * a, edges[-1] * b
        clipped = np.square(middle - np.clip(middle, low, high))
        error = float((clipped * counts).sum() + total * ((high - low) / 255) ** 2 / 12)
        best = min(best, (error, float(low), float(high)))
    return best[1], best[2]
