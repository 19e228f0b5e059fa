"""What is in a package, and that the same conversion gives the same."""

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import pytest

from convert import pipeline, timing, verify
from convert.command import main
from service.model import Model, open_session
from tests.convert import sources
from tests.convert.conftest import Outcome

Convert = Callable[..., Outcome]
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("always_int8")


def properties(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.fixture(scope="module")
def packaged(saved: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One conversion for all tests that only read."""
    models, out = tmp_path_factory.mktemp("packaged"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setenv("PATH", "/nonexistent")
        patch.setattr(pipeline, "FASTER", 0.0)
        patch.setattr(timing, "CALLS", 10)
        status = main([str(saved), "--name", "small", "--images", str(photos), "--models", str(models)])
    return Outcome(status, out.getvalue(), "", models / "small" / "1")


def test_the_package_is_as_its_contract_says(saved: Path, packaged: Outcome) -> None:
    outcome = packaged
    assert outcome.status == 0
    assert {path.name for path in outcome.package.rglob("*")} == {
        "model.onnx",
        "golden.npz",
        "report.json",
        "MODEL_CARD.md",
    }
    report, found = outcome.report, properties(outcome.package / "model.onnx")
    assert (found["sous.format"], found["sous.precision"], found["sous.verdict"]) == ("1", "int8", "int8")
    members = {
        key: json.loads(value)
        for key, value in found.items()
        if key.split(".")[1] not in {"format", "precision", "verdict"}
    }
    assert members.keys() == {"sous.labels", "sous.preprocessing", "sous.source", "sous.calibration", "sous.evaluation"}
    assert members["sous.labels"] == list(sources.CLASSES)
    assert members["sous.preprocessing"] == {
        "height": 32,
        "width": 32,
        "resize": "bicubic",
        "crop": "none",
        "color": "RGB",
    }
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    assert members["sous.source"] == {"file": "small.keras", "sha256": digest, "format": "keras"}
    assert (members["sous.calibration"]["photos"], members["sous.calibration"]["weight_bits"]) == (48, 7)
    evaluation = members["sous.evaluation"]
    assert evaluation["photos"] == 40
    assert 0 <= evaluation["top1_low"] <= evaluation["top1"] <= evaluation["top1_high"] <= 1
    assert 0.9 < evaluation["float_top1"] <= 1
    assert 0.97 <= evaluation["agreement"] <= 1
    for name, entry in report["files"].items():
        content = (outcome.package / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert (report["format"], report["name"], report["version"], report["verdict"]) == (1, "small", 1, "int8")
    assert report["evaluation"]["float"]["top1"] / 100 == pytest.approx(evaluation["float_top1"])
    assert report["plan"]["grid"]
    assert report["portability"]["skipped"]
    assert {"keras", "onnxruntime", "python"} <= report["tools"].keys()


def test_the_file_holds_no_weight_that_nothing_reads(packaged: Outcome) -> None:
    graph = onnx.load(packaged.package / "model.onnx").graph
    read = {name for node in graph.node for name in node.input}
    assert [tensor.name for tensor in graph.initializer if tensor.name not in read] == []


def test_options_are_part_of_the_contract(saved: Path, photos: Path, convert: Convert, tmp_path: Path) -> None:
    names = ["d", "c", "b", "a"]
    (tmp_path / "labels.json").write_text(json.dumps(names))
    images = sources.write_splits(tmp_path / "numbered", numbered=True)
    options = ["--resize", "box", "--crop", "center", "--version", "3", "--labels", str(tmp_path / "labels.json")]
    outcome = convert(saved, *options, images=images)
    assert outcome.status == 0
    served = Model(outcome.package.with_name("3") / "model.onnx", 1)
    assert (served.metadata.contract.resize, served.metadata.contract.crop) == ("box", "center")
    assert served.metadata.labels == tuple(names)


def test_the_golden_set_is_reproduced_by_the_package(packaged: Outcome) -> None:
    outcome = packaged
    golden = np.load(outcome.package / "golden.npz", allow_pickle=False)
    assert (golden["inputs"].dtype, golden["inputs"].shape) == (np.uint8, (8, 32, 32, 3))
    assert (golden["probabilities"].dtype, golden["probabilities"].shape) == (np.float32, (8, 4))
    found = open_session(outcome.package / "model.onnx", 1).run(None, {"image": golden["inputs"]})[0]
    assert np.abs(found - golden["probabilities"]).max() < golden["tolerance"]
    assert (found.argmax(1) == golden["probabilities"].argmax(1)).all()
    assert golden["tolerance"] < 0.2


def test_the_model_takes_any_batch(packaged: Outcome) -> None:
    served = Model(packaged.package / "model.onnx", 1)
    images = np.stack([sources.picture(index % 4, index) for index in range(8)])
    together = served.infer(images)
    assert together.shape == (8, 4)
    singly = np.concatenate([served.infer(image[None]) for image in images])
    np.testing.assert_allclose(together, singly, atol=1e-6)  # the dense layer is float: kernels add in their own order


def test_without_labels_accuracy_is_left_out_and_that_is_said(saved: Path, convert: Convert, tmp_path: Path) -> None:
    outcome = convert(saved, images=sources.write_unlabelled(tmp_path / "unlabelled"))
    assert outcome.status == 0
    card = (outcome.package / "MODEL_CARD.md").read_text()
    assert "The photos have no labels: agreement with the float model is measured, accuracy is not." in card
    for text in (card, outcome.out):
        assert "top-1" not in text
        assert "agreement with float" in text
    evaluation = json.loads(properties(outcome.package / "model.onnx")["sous.evaluation"])
    assert evaluation.keys() == {"photos", "agreement"}
    assert "drop" not in outcome.report["evaluation"]


def test_what_comes_unsplit_is_split_by_a_hash_and_the_card_says_so(
    saved: Path, convert: Convert, tmp_path: Path
) -> None:
    outcome = convert(saved, images=sources.write_photos(tmp_path / "unsplit", [40] * 4))
    assert outcome.status == 0
    parts = outcome.report["photos"]
    assert parts["calibration"] + parts["tuning"] + parts["evaluation"] == 160
    card = (outcome.package / "MODEL_CARD.md").read_text()
    assert "(split: a fixed hash of the file name: 60 % calibration, 20 % tuning, 20 % evaluation)" in card


def test_the_report_says_what_each_stage_took(packaged: Outcome) -> None:
    stages = {stage["stage"]: stage for stage in packaged.report["stages"]}
    assert list(stages)[:3] == ["load", "check photos", "check range and labels"]
    assert stages["measure plans"]["seconds"] > 0
    assert stages["export"]["peak_memory_mb"] > 100


def test_the_card_says_what_people_ask(packaged: Outcome) -> None:
    outcome = packaged
    card = (outcome.package / "MODEL_CARD.md").read_text()
    for part in (
        "# small, version 1",
        "small.keras",
        "Verdict: **int8**",
        "| top-1",
        "| 95 % interval",
        "| agreement with float",
        "| max / mean \\|dp\\|",
        "| size",
        "| latency, one image",
        "| throughput",
        ", ".join(sources.CLASSES),
    ):
        assert part in card
    assert "(split: the folders training, validation and evaluation)" in card
    assert "| verdict " in outcome.out
    assert f"written: {outcome.package}" in outcome.out


def test_a_file_that_answers_otherwise_on_another_cpu_is_not_packaged(
    saved: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"cpu": ["avx2"], "other_cpu": "Haswell", "photos": 10, "agreement": 90.0, "max_dp": 0.5}
    monkeypatch.setattr(verify, "on_avx2", lambda *_: found)
    outcome = convert(saved)
    assert (outcome.status, outcome.package.exists()) == (3, False)
    assert "only 90.0 % of 10 answers are the same on Haswell, limit 99 %" in outcome.err


def test_the_same_inputs_give_the_same_file(saved: Path, packaged: Outcome, convert: Convert) -> None:
    again = convert(saved).package
    for name in ("model.onnx", "golden.npz"):
        assert (again / name).read_bytes() == (packaged.package / name).read_bytes()


def test_another_process_writes_the_same_file(saved: Path, photos: Path, packaged: Outcome, tmp_path: Path) -> None:
    here = (packaged.package / "model.onnx").read_bytes()
    program = (
        "import sys; from convert import command, pipeline, timing;"
        "pipeline.FASTER, timing.CALLS = 0.0, 10; sys.exit(command.main())"
    )
    words = [str(saved), "--name", "small", "--images", str(photos), "--models", str(tmp_path / "there")]
    command = [sys.executable, "-W", "ignore", "-c", program, *words]
    environment = {**os.environ, "PYTHONHASHSEED": "5", "PATH": str(tmp_path / "nothing")}  # as `quick`
    subprocess.run(command, capture_output=True, cwd=ROOT, env=environment, timeout=120, check=True)
    assert (tmp_path / "there" / "small" / "1" / "model.onnx").read_bytes() == here
