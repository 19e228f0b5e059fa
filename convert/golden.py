"""The golden set: synthetic images with the float model's answers, replayed by the service at start-up.

Synthetic, because packages are published and the photos behind them may not be.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.errors import ConvertError
from service.model import open_session

COUNT = 8
POOL = 128  # images made, of which the clearest are kept
MARGIN = 0.02  # added to twice the measured difference: float kernels differ a little from CPU to CPU


def images(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Coloured blocks of random colour, size and contrast, uint8 `[count, height, width, 3]`; always the same."""
    rng, found = np.random.default_rng(2023), []
    for index in range(count):
        cells = (2, 3, 4, 6, 8, 12, 16)[index % 7]
        colour, contrast = rng.uniform(40, 215, 3), rng.uniform(10, 120)
        blocks = np.clip(colour + contrast * rng.standard_normal((cells, cells, 3)), 0, 255).astype(np.uint8)
        rows, columns = (np.arange(size) * cells // size for size in (height, width))
        found.append(blocks[rows][:, columns])
    return np.stack(found)


def write(target: Path, float_model: Path, packaged: Path, height: int, width: int) -> float:
    """Write `golden.npz`; the tolerance in it. Kept are images that both models place in the same class most clearly,
    each class at most twice while others are left.

    Raises:
        ConvertError: the packaged model agrees with the float model on fewer than eight of them.
    """
    pool = images(POOL, height, width)
    expected, found = (answer(path, pool) for path in (float_model, packaged))
    same = np.flatnonzero(expected.argmax(1) == found.argmax(1))
    if len(same) < COUNT:
        raise ConvertError(
            f"the packaged model agrees with the float model on {len(same)} of {POOL} synthetic images only: give"
            " more calibration photos (--calibration), or, where --macs was given, leave more of the multiplications"
        )
    top = np.sort(expected[same], 1)
    clearest = same[np.argsort(-(top[:, -1] - top[:, -2]), kind="stable")]
    kept = varied(clearest, expected.argmax(1))
    tolerance = 2 * float(np.abs(expected[kept] - found[kept]).max()) + MARGIN
    np.savez_compressed(
        target, inputs=pool[kept], probabilities=expected[kept], tolerance=np.array(tolerance, np.float32)
    )
    return tolerance


def varied(order: NDArray[np.int64], classes: NDArray[np.int64]) -> list[int]:
    """The first eight of `order`, passing over a class that is in twice as long as that leaves eight."""
    first: list[int] = []
    for index in order.tolist():
        if sum(classes[other] == classes[index] for other in first) < 2:
            first.append(index)
    rest = [index for index in order.tolist() if index not in first]
    return (first + rest)[:COUNT]


def answer(path: Path, inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities in batches of eight."""
    engine = open_session(path, 1)
    parts = [engine.run(None, {"image": inputs[start : start + 8]})[0] for start in range(0, len(inputs), 8)]
    found: NDArray[np.float32] = np.concatenate(parts)
    return found
