"""A package's plan, measured again where it is served."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from convert import measure, timing


def tiny_package(folder: Path) -> Path:
    """A package of which only what `measure` reads is there."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["probabilities"], axes=[1, 2], keepdims=0),
    ]
    entry = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 8, 8, 3])
    result = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph(nodes, "tiny", [entry], [result])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "model.onnx"
    )
    np.savez(folder / "golden.npz", inputs=np.zeros((8, 8, 8, 3), np.uint8))
    (folder / "report.json").write_text('{"name": "tiny", "plan": null}')
    return folder


def test_the_plan_of_this_machine_replaces_the_stored_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.plan_grid, "__defaults__", (0.05,))
    assert measure.main([str(tiny_package(tmp_path))]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["name"] == "tiny"
    assert report["plan"]["slots"] >= 1
    assert len(report["plan"]["grid"]) == len(timing.plans(report["plan"]["cores"]))
    assert not (tmp_path / ".report.json").exists()


def test_a_folder_that_is_no_package_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
