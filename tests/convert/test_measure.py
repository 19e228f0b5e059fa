"""A package's plan, measured again where it is served."""

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from convert import measure, package, timing, verify

ROOT = Path(__file__).parents[2]


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


def test_a_replay_elsewhere_is_told_by_report_and_card_and_other_answers_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(timing.plan_grid, "__defaults__", (0.05,))
    folder = tmp_path / "1"
    shutil.copytree(ROOT / "models/mobilenet_v2/1", folder)
    found = {"cpu": ["avx2"], "other_cpu": "Haswell", "photos": 3, "agreement": 98.0, "max_dp": 0.5}
    monkeypatch.setattr(verify, "on_avx2", lambda *_: dict(found))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert measure.main([str(folder), "--replay", "5"]) == 3
    assert "only 98.0 % of 3 answers are the same on Haswell" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    found["agreement"] = 100.0
    assert measure.main([str(folder), "--replay", "5"]) == 0
    assert json.loads((folder / "report.json").read_text())["portability"] == found
    assert "this one (avx2) and Haswell agree on 100.0 % of 3 images" in (folder / "MODEL_CARD.md").read_text()
    assert {path.name for path in folder.iterdir()} == before.keys()


def test_a_replay_needs_an_emulator(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(timing.plan_grid, "__defaults__", (0.05,))
    folder = tmp_path / "1"
    shutil.copytree(ROOT / "models/mobilenet_v2/1", folder)
    assert measure.main([str(folder), "--replay", "5"]) == 2
    assert "qemu-x86_64 (Debian: qemu-user) is not installed" in capsys.readouterr().err
    (folder / "report.json").write_text('{"preprocessing": {"height": 8}}')
    assert measure.main([str(folder), "--replay", "5"]) == 2
    assert "report.json is damaged" in capsys.readouterr().err


def lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def of_other_images(path: Path) -> None:
    np.savez(path, inputs=np.zeros((8, 4, 4, 3), np.uint8))


def of_one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros((8, 8, 8, 3), np.uint8))


def a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.onnx", lfs_pointer, "cannot be measured"),
        ("model.onnx", Path.unlink, "cannot be measured"),
        ("golden.npz", lfs_pointer, "is no package"),
        ("golden.npz", truncated, "is no package"),
        ("golden.npz", of_one_array, "is no package"),
        ("golden.npz", of_other_images, "cannot be measured"),
        ("report.json", lfs_pointer, "is no package"),
        ("report.json", lambda path: path.write_text("5"), "is no package"),
        (".report.json", a_folder, "cannot be written to"),  # as where the folder is read-only, for root too
    ],
)
def test_a_damaged_package_or_one_that_cannot_be_written_is_told_in_one_line(  # noqa: PLR0917
    name: str,
    damage: Callable[[Path], None],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(timing.plan_grid, "__defaults__", (0.05,))
    damage(tiny_package(tmp_path) / name)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert measure.main([str(tmp_path)]) == 2
    lines = [line for line in re.split(r"[\r\n]", capsys.readouterr().err) if line.strip() and "elapsed" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("convert: ")
    assert message in lines[0]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_folder_that_is_no_package_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("ending", "message"),
    [(KeyboardInterrupt(), "interrupted"), (OSError(errno.ENOSPC, "full"), "(full): free some")],
)
def test_what_ends_the_writing_is_told_and_leaves_the_package_as_it_was(
    ending: BaseException,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ended(path: Path, _: object) -> None:
        path.write_text("half of it")
        raise ending

    monkeypatch.setattr(timing.plan_grid, "__defaults__", (0.05,))
    monkeypatch.setattr(package, "write_json", ended)
    tiny_package(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert measure.main([str(tmp_path)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
