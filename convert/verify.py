"""Measure a quantised model against its float model, on the code that serves."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.photos import Photo, batches, labels_of
from convert.timing import cpu_features
from service.cpu import cores
from service.image import Contract
from service.model import open_session

Probabilities = NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """Agreement and accuracy in percent and points; `top1` members are None without labels."""

    photos: int
    agreement: float
    max_dp: float
    mean_dp: float
    float_top1: float | None
    top1: float | None

    @property
    def drop(self) -> float:
        """Points of top-1 lost; 0 where it cannot be known."""
        return 0.0 if self.top1 is None or self.float_top1 is None else self.float_top1 - self.top1


@dataclass(frozen=True)
class Gate:
    """Limits that a quantised model must meet: top-1 points lost at most, percent agreement at least."""

    drop: float = 0.5
    agreement: float = 97.0

    def missed(self, score: Score) -> list[str]:
        """Which limits a score misses, and by how much."""
        found = []
        if score.drop > self.drop:
            found.append(f"top-1 drop {score.drop:.2f} points, limit {self.drop:g} (by {score.drop - self.drop:.2f})")
        if score.agreement < self.agreement:
            short = self.agreement - score.agreement
            found.append(f"agreement {score.agreement:.2f} %, limit {self.agreement:g} % (by {short:.2f})")
        return found


def answers(
    paths: Sequence[Path], photos: Sequence[Photo], contract: Contract, tick: Callable[[], None]
) -> list[Probabilities]:
    """Each model's probabilities `[N, C]` for the photos, decoded once for all models; `tick` after every batch."""
    engines = [open_session(path, cores()) for path in paths]
    found: list[list[Probabilities]] = [[] for _ in paths]
    for pixels in batches(photos, contract):
        for engine, into in zip(engines, found, strict=True):
            into.append(engine.run(None, {"image": pixels})[0])
        tick()
    return [np.concatenate(parts) for parts in found]


def score(reference: Probabilities, quantised: Probabilities, photos: Sequence[Photo]) -> Score:
    """Compare answers to the same photos."""
    difference = np.abs(reference - quantised)
    labels = labels_of(photos)
    return Score(
        len(photos),
        percent(reference.argmax(1) == quantised.argmax(1)),
        float(difference.max()),
        float(difference.mean()),
        None if labels is None else percent(reference.argmax(1) == labels),
        None if labels is None else percent(quantised.argmax(1) == labels),
    )


def percent(hits: NDArray[np.bool_]) -> float:
    """Share of true values."""
    return float(100 * hits.mean())


def interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share in percent of `count` photos (Wilson 1927)."""
    z, p = 1.96, share / 100
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, 100 * (middle - half)), min(100.0, 100 * (middle + half))


def on_avx2(path: Path, pixels: NDArray[np.uint8], folder: Path, seconds: int) -> dict[str, Any]:
    """The model's answers on an AVX2-only CPU (qemu, Haswell) beside those of this one.

    Emulation is slow: as many of `pixels` as `seconds` allow, or the reason why there are none.
    """
    here = {"cpu": cpu_features()}
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        return {**here, "skipped": "qemu-x86_64 (Debian: qemu-user) is not installed"}
    np.save(folder / "pixels.npy", pixels)
    arguments = [str(path), str(folder / "pixels.npy"), str(folder / "answers.npy"), str(seconds)]
    command = [emulator, "-cpu", "Haswell", os.path.realpath(sys.executable), "-m", "convert.replay", *arguments]
    paths = os.pathsep.join(entry for entry in (str(Path(__file__).parents[1]), *sys.path) if entry)
    try:
        subprocess.run(  # noqa: S603  our own interpreter and module
            command, check=True, capture_output=True, timeout=3 * seconds + 120, env={**os.environ, "PYTHONPATH": paths}
        )
    except (subprocess.SubprocessError, OSError) as error:
        return {**here, "skipped": f"qemu-x86_64 failed: {type(error).__name__}"}
    there = np.load(folder / "answers.npy")
    engine = open_session(path, 1)
    local = np.concatenate([engine.run(None, {"image": pixels[i : i + 1]})[0] for i in range(len(there))])
    return {
        **here,
        "other_cpu": "Haswell (AVX2), qemu-x86_64",
        "photos": len(there),
        "agreement": percent(there.argmax(1) == local.argmax(1)),
        "max_dp": float(np.abs(there - local).max()),
    }
