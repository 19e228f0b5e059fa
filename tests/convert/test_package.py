"""What is in a package, and that it comes whole or not at all."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from convert import package, pipeline, timing
from convert.__main__ import main
from convert.errors import ConvertError
from service.model import Model, open_session
from tests.convert import sources
from tests.convert.conftest import Outcome, without_bars

Convert = Callable[..., Outcome]
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("always_int8")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


# ---- contents


def test_the_package_is_as_its_contract_says(saved: Path, packaged: Outcome) -> None:
    outcome = packaged
    assert outcome.status == 0
    assert set(contents(outcome.package)) == {"model.onnx", "golden.npz", "report.json", "MODEL_CARD.md"}
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


def unlabelled(folder: Path) -> Path:
    for index, name in enumerate(("training", "validation", "evaluation")):
        (folder / name).mkdir(parents=True)
        for seed in range(32):
            Image.fromarray(sources.picture(seed % 4, 100 * index + seed)).save(folder / name / f"x{seed}.png")
    return folder


def test_without_labels_accuracy_is_left_out_and_that_is_said(saved: Path, convert: Convert, tmp_path: Path) -> None:
    outcome = convert(saved, images=unlabelled(tmp_path / "unlabelled"))
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
    assert list(stages)[:3] == ["load", "check photos", "export"]
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
        ", ".join(sources.CLASSES),
    ):
        assert part in card
    assert "(split: the folders training, validation and evaluation)" in card
    assert "| verdict " in outcome.out
    assert f"written: {outcome.package}" in outcome.out


# ---- the same again


def test_the_same_inputs_give_the_same_file(saved: Path, packaged: Outcome, convert: Convert) -> None:
    again = convert(saved).package
    for name in ("model.onnx", "golden.npz"):
        assert (again / name).read_bytes() == (packaged.package / name).read_bytes()


def test_another_process_writes_the_same_file(saved: Path, photos: Path, packaged: Outcome, tmp_path: Path) -> None:
    here = (packaged.package / "model.onnx").read_bytes()
    program = (
        "import sys; from convert import __main__, pipeline, timing;"
        "pipeline.FASTER, timing.CALLS = 0.0, 10; sys.exit(__main__.main())"
    )
    words = [str(saved), "--name", "small", "--images", str(photos), "--models", str(tmp_path / "there")]
    command = [sys.executable, "-W", "ignore", "-c", program, *words]
    environment = {**os.environ, "PYTHONHASHSEED": "5", "PATH": str(tmp_path / "nothing")}  # as `quick`
    subprocess.run(command, capture_output=True, cwd=ROOT, env=environment, timeout=120, check=True)
    assert (tmp_path / "there" / "small" / "1" / "model.onnx").read_bytes() == here


# ---- all or nothing


def test_an_existing_version_is_kept_unless_it_is_to_be_replaced(saved: Path, convert: Convert) -> None:
    folder = convert(saved).package
    (folder / "mark").touch()
    outcome = convert(saved)
    assert outcome.status == 2
    assert outcome.err.endswith("exists: choose another --version, or give --replace")
    assert (folder / "mark").exists()
    assert convert(saved, "--replace").status == 0
    assert set(contents(folder)) == {"model.onnx", "golden.npz", "report.json", "MODEL_CARD.md"}
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


def test_a_refusal_by_the_gate_says_which_limit_and_what_to_try(
    saved: Path, convert: Convert, scratch: Path, tmp_path: Path
) -> None:
    outcome = convert(fragile(saved, tmp_path), images=unlabelled(tmp_path / "unlabelled"))
    assert outcome.status == 3
    assert len(outcome.err.splitlines()) == 1
    assert outcome.err.startswith("convert: not packaged: ")
    assert "agreement " in outcome.err
    assert "limit 97 % (by " in outcome.err
    assert "Try " in outcome.err
    assert "--gate-agreement" in outcome.err
    assert not (tmp_path / "models").exists()
    assert list(scratch.iterdir()) == []


def fragile(saved: Path, folder: Path) -> Path:
    """The same network, deciding by where its features vary least: far below a step of u8."""
    import keras  # noqa: PLC0415

    model = keras.models.load_model(saved)
    head = model.get_layer("head")
    images = np.stack([sources.picture(i % 4, i) for i in range(200)]).astype(np.float32) / 255
    features = np.asarray(keras.Model(model.inputs[0], head.input)(images)).astype(np.float64)
    variances, directions = np.linalg.eigh(np.cov(features.T))
    least = directions[:, :2] / np.sqrt(np.maximum(variances[:2], 1e-12)) * 4
    kernel = np.concatenate([least, -least], 1)
    head.set_weights([kernel, -features.mean(0) @ kernel])
    model.save(folder / "fragile.keras")
    return folder / "fragile.keras"


def test_a_refused_replacement_keeps_the_package(saved: Path, convert: Convert, tmp_path: Path) -> None:
    folder = convert(saved).package
    before = contents(folder)
    outcome = convert(fragile(saved, tmp_path), "--replace", images=unlabelled(tmp_path / "unlabelled"))
    assert outcome.status == 3
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


@pytest.mark.parametrize("stage", ["staged", "renaming"])
def test_an_error_while_writing_leaves_the_old_package(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "models" / "small" / "1"
    with package.staged(target, replace=True) as folder:
        (folder / "old").touch()
    rename = Path.rename

    def failing(self: Path, other: Path) -> Path:
        if stage == "renaming" and other == target and not self.name.endswith("-old"):
            raise OSError("the disk is gone")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        write_another(target, fail=stage == "staged")
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in target.parent.iterdir()] == ["1"]


def write_another(target: Path, *, fail: bool) -> None:
    with package.staged(target, replace=True) as folder:
        (folder / "new").touch()
        if fail:
            raise OSError("the disk is gone")


def test_folders_made_for_nothing_are_removed_and_others_kept(tmp_path: Path) -> None:
    (tmp_path / "models" / "other").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), package.staged(tmp_path / "models" / "new" / "1", replace=False):
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["other"]


def test_what_appears_at_the_target_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "models" / "small" / "1"
    stage = package.staged(target, replace=False)
    stage.__enter__()
    (target / "other").mkdir(parents=True)
    with pytest.raises(ConvertError, match="1 exists: choose another --version"):
        stage.__exit__(None, None, None)
    assert [path.name for path in target.iterdir()] == ["other"]
    assert [path.name for path in target.parent.iterdir()] == ["1"]


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    target, store = tmp_path / "models" / "small" / "1", tmp_path / "store"
    store.mkdir()
    target.parent.mkdir(parents=True)
    target.symlink_to(store)
    write_another(target, fail=False)
    assert store.is_dir()
    assert not target.is_symlink()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in target.parent.iterdir()] == ["1"]


def test_a_version_too_long_for_a_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        write_another(tmp_path / "models" / "small" / ("9" * 250), fail=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("raised", [OSError, KeyboardInterrupt])
def test_what_fails_once_the_package_is_there_does_not_deny_it(
    raised: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, sync = tmp_path / "models" / "small" / "1", package.sync

    def failing(path: Path) -> None:
        if path == target.parent:
            raise raised
        sync(path)

    monkeypatch.setattr(package, "sync", failing)
    write_another(target, fail=False)
    assert [path.name for path in target.iterdir()] == ["new"]


def test_a_package_in_a_folder_of_any_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convert.__main__.convert", lambda *_: {})
    monkeypatch.setattr("convert.__main__.table", lambda _: "")
    words = ["x.keras", "--name", "small", "--images", "x", "--models", os.fsdecode(b"mod\xe8les")]
    with redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")) as out:
        assert main(words) == 0
        out.seek(0)
        assert out.read() == "\nwritten: mod\\xe8les/small/1\n"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_process_says_so_and_leaves_nothing(
    sent: signal.Signals, saved: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    words = [str(saved), "--name", "small", "--images", str(photos), "--models", str(tmp_path / "models")]
    errors = tmp_path / "stderr"
    with errors.open("w") as stderr:
        running = subprocess.Popen(
            [sys.executable, "-m", "convert", *words],
            stderr=stderr,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(tmp_path / "scratch")},
        )
        wait_for(lambda: "measure plans" in errors.read_text())  # a network and a package folder are half made
        for _ in range(3):  # who is impatient does not spoil the clean-up
            running.send_signal(sent)
            time.sleep(0.01)
        status = running.wait(30)
    assert status == 2
    assert without_bars(errors.read_text()) == "convert: interrupted: nothing was written"
    assert not (tmp_path / "models").exists()
    assert list((tmp_path / "scratch").iterdir()) == []


def wait_for(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many KB."""
    mounted = []

    def mount(kilobytes: int) -> Path:
        folder = tmp_path / f"disk{kilobytes}"
        folder.mkdir()
        command = ["/bin/mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a file system can be mounted by root only")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["/bin/umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("kilobytes", [4, 8, 16, 20])  # from the first file to the last
def test_a_full_disk_under_the_models(
    kilobytes: int, saved: Path, convert: Convert, small_disk: Callable[[int], Path]
) -> None:
    models = small_disk(kilobytes)
    outcome = convert(saved, "--models", str(models))
    assert outcome.status == 2
    assert outcome.err.splitlines() == [outcome.err]
    assert "no space left" in outcome.err
    assert list(models.iterdir()) == []


@pytest.mark.parametrize("kilobytes", [4, 8, 16])
def test_a_full_temporary_folder(  # noqa: PLR0917
    kilobytes: int,
    saved: Path,
    convert: Convert,
    small_disk: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk(kilobytes)))
    outcome = convert(saved)
    assert outcome.status == 2
    assert outcome.err.splitlines() == [outcome.err]
    assert "no space left" in outcome.err
    assert "TMPDIR" in outcome.err
    assert not (tmp_path / "models").exists()
