"""What a run says of the models."""

import json
from pathlib import Path

import pytest

from perf import facts
from service.model import open_session

MODELS = Path(__file__).parents[2] / "models"


@pytest.mark.parametrize("name", ["mobilenet_v2", "previous", "resnet101_v2"])
def test_accuracy_is_the_fraction_that_the_package_itself_states(name: str) -> None:
    package = facts.newest_package(MODELS / name)
    stated = json.loads(open_session(package / "model.onnx", 1).get_modelmeta().custom_metadata_map["sous.evaluation"])
    found = facts.model(name, MODELS, MODELS)
    assert found["accuracy"] == pytest.approx(stated["top1"])
    assert found["float_accuracy"] == pytest.approx(stated["float_top1"])
    assert found["source_bytes"] is None  # no Keras file there


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_the_keras_file_is_of_either_format(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"previous{ending}").write_bytes(b"12345")
    assert facts.model("previous", MODELS, tmp_path)["source_bytes"] == 5


@pytest.mark.parametrize("content", ["", '{"name": "m"', "{}", "[]", '{"evaluation": 1, "verdict": "int8"}'])
def test_a_damaged_report_is_named_with_the_remedy(tmp_path: Path, content: str) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "report.json").write_text(content)
    with pytest.raises(ValueError, match=r"m/1/report\.json is damaged .*: convert the model again"):
        facts.model("m", tmp_path, tmp_path)


def test_without_labels_there_is_no_accuracy() -> None:
    assert facts.fraction(None) is None
