"""Scores, intervals and the gate."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from convert.golden import images
from convert.photos import Photo
from convert.verify import Gate, Score, interval, on_avx2, score
from tests.service.packages import write_package

PHOTOS = [Photo(Path("x"), label) for label in (0, 1, 2, 0)]


def one_hot(*classes: int) -> NDArray[np.float32]:
    return np.eye(3, dtype=np.float32)[list(classes)]


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [  # of other implementations, z = 1.96
        (50, 100, 40.38, 59.62),
        (10, 100, 5.52, 17.44),
        (0, 20, 0.0, 16.11),
        (40, 40, 91.24, 100.0),
        (1970, 3347, 57.18, 60.52),
    ],
)
def test_wilson_intervals(right: int, count: int, low: float, high: float) -> None:
    assert interval(100 * right / count, count) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    assert all(0 <= bound <= 100 for bound in interval(100 * right / count, count))


def test_a_score_counts_agreement_and_accuracy() -> None:
    found = score(one_hot(0, 1, 2, 1), one_hot(0, 1, 1, 0), PHOTOS)
    assert (found.photos, found.agreement, found.float_top1, found.top1, found.drop) == (4, 50.0, 75.0, 75.0, 0.0)
    assert (found.max_dp, found.mean_dp) == (1.0, pytest.approx(4 / 12))


def test_without_labels_there_is_no_accuracy() -> None:
    found = score(one_hot(0, 1, 2, 1), one_hot(0, 1, 2, 2), [*PHOTOS[:3], Photo(Path("x"), None)])
    assert (found.float_top1, found.top1, found.drop, found.agreement) == (None, None, 0.0, 75.0)


def test_the_gate_says_which_limit_failed_by_how_much() -> None:
    found = Score(100, 96.5, 0.1, 0.01, 80.0, 79.25)
    assert Gate(0.5, 97).missed(found) == [
        "top-1 drop 0.75 points, limit 0.5 (by 0.25)",
        "agreement 96.50 %, limit 97 % (by 0.50)",
    ]
    assert Gate(0.75, 96.5).missed(found) == []


def test_a_gain_in_accuracy_is_no_drop() -> None:
    assert Gate(0.0, 90).missed(Score(100, 96.5, 0.1, 0.01, 79.0, 80.0)) == []


def test_answers_on_an_avx2_cpu_are_those_of_this_one(tmp_path: Path) -> None:
    if shutil.which("qemu-x86_64") is None:
        pytest.skip("qemu-x86_64 (Debian: qemu-user) is not installed")
    model = write_package(tmp_path, "colours", 1) / "model.onnx"
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    found = on_avx2(model, pixels, tmp_path, 20)
    assert (found["photos"], found["agreement"]) == (5, 100.0)
    assert found["max_dp"] < 1e-5
    assert found["other_cpu"].startswith("Haswell")


def test_the_int8_kernels_of_this_cpu_and_of_an_avx2_one_give_the_same_answers(tmp_path: Path) -> None:
    if shutil.which("qemu-x86_64") is None:
        pytest.skip("qemu-x86_64 (Debian: qemu-user) is not installed")
    model = Path(__file__).parents[2] / "models/mobilenet_v2/1/model.onnx"
    found = on_avx2(model, images(3, 224, 224), tmp_path, 60)
    assert found["photos"] >= 2
    assert (found["agreement"], found["max_dp"]) == (100.0, 0.0)


def test_without_an_emulator_the_reason_is_told(quick: None, tmp_path: Path) -> None:
    found = on_avx2(tmp_path / "model.onnx", np.zeros((1, 8, 8, 3), np.uint8), tmp_path, 1)
    assert found["skipped"] == "qemu-x86_64 (Debian: qemu-user) is not installed"


def test_a_failing_emulator_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qemu-x86_64").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "qemu-x86_64").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = on_avx2(tmp_path / "model.onnx", np.zeros((1, 8, 8, 3), np.uint8), tmp_path, 1)
    assert found["skipped"] == "qemu-x86_64 failed: CalledProcessError"
