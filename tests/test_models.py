"""The packages of this repository keep what is promised of them, by their own evidence."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

MODELS = Path(__file__).resolve().parents[1] / "models"
LEAST_AGREEMENT = {"previous": 0.97, "mobilenet_v2": 0.97, "resnet101_v2": 0.98}
MOST_DROP = 0.3  # points of top-1
FOOD11_EVALUATION = 3347


@pytest.fixture(params=LEAST_AGREEMENT)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def report(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MODELS / name / "1/report.json").read_text())
    return found


def test_they_are_here_in_50_mb_whatever_else_was_converted() -> None:
    assert {path.name for path in MODELS.iterdir()} >= LEAST_AGREEMENT.keys()
    ours = [path for name in LEAST_AGREEMENT for path in (MODELS / name).rglob("*")]
    assert sum(path.stat().st_size for path in ours if path.is_file()) < 50e6


def test_int8_answers_as_float_does_on_all_evaluation_photos(name: str, report: dict[str, Any]) -> None:
    evaluation = report["evaluation"]
    assert evaluation["photos"] == FOOD11_EVALUATION
    assert evaluation["agreement"] >= LEAST_AGREEMENT[name]
    assert evaluation["drop"] <= MOST_DROP
    assert evaluation["drop"] == pytest.approx(evaluation["float"]["top1"] - evaluation["int8"]["top1"])
    assert evaluation["int8"]["images_per_s"] > evaluation["float"]["images_per_s"]
    assert report["parity"]["max_dp"] < report["parity"]["limit"] == 1e-4


def test_it_answers_alike_on_a_cpu_without_vnni(report: dict[str, Any]) -> None:
    assert "Haswell" in report["portability"]["other_cpu"]
    assert report["portability"]["agreement"] >= 99


def test_every_file_is_the_one_the_evidence_is_about(name: str, report: dict[str, Any]) -> None:
    assert report["files"].keys() == {"model.onnx", "golden.npz"}
    for member, stated in report["files"].items():
        content = (MODELS / name / "1" / member).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (stated["sha256"], stated["bytes"])


def test_the_file_describes_itself_and_has_a_golden_set_of_eight(name: str, report: dict[str, Any]) -> None:
    folder = MODELS / name / "1"
    metadata = onnxruntime.InferenceSession(folder / "model.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(metadata["sous.labels"]) == report["labels"]
    described = {"preprocessing", "source", "precision", "calibration", "evaluation"}
    assert {f"sous.{each}" for each in described} <= metadata.keys()
    with np.load(folder / "golden.npz", allow_pickle=False) as golden:
        assert golden["inputs"].shape == (8, 224, 224, 3)
        assert golden["probabilities"].shape == (8, 11)
