"""The models folder: found, checked, loaded, chosen."""

import itertools
import json
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import UnknownModel
from service.model import Model, PackageError
from service.repository import Repository, open_repository, scan
from service.settings import Settings
from tests.service.packages import write_package

PLAN = {"cores": 2, "slots": 2, "intra_op_threads": 1, "max_batch_size": 3}


def opened(models: Path, **settings: int | str) -> Repository:
    return open_repository(Settings(models_dir=str(models), cores=2, **settings))


def edit_report(folder: Path, **members: object) -> None:
    path = folder / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | members))


def test_the_highest_version_of_the_first_model_is_the_default(models: Path) -> None:
    for name, version in (("b", 1), ("a", 2), ("a", 10), ("a", 1)):
        write_package(models, name, version)
    repository = opened(models)
    assert [(served.package.name, served.package.version) for served in repository] == [
        ("a", 1),
        ("a", 2),
        ("a", 10),
        ("b", 1),
    ]
    assert repository.find().package.version == 10
    assert repository.find("a", 2).package.version == 2
    assert repository.find("b").package.name == "b"


def test_the_default_model_can_be_set(models: Path) -> None:
    write_package(models, "a")
    write_package(models, "b")
    assert opened(models, default_model="b").find().package.name == "b"
    with pytest.raises(PackageError, match=r"SOUS_DEFAULT_MODEL is c, which .*: set it to one of a, b"):
        opened(models, default_model="c")


def test_what_is_not_served_is_unknown(models: Path) -> None:
    write_package(models, "a", 3)
    repository = opened(models)
    for name, version in (("b", None), ("a", 2), (None, 1)):
        with pytest.raises(UnknownModel):
            repository.find(name, version)


def test_folders_that_are_no_packages_are_left_alone(models: Path) -> None:
    folder = write_package(models, "a", 1)
    for other in ("A/1", ".hidden/1", "a/0", "a/01", "a/latest", "a/.2-partial", "a/-1", f"{'a' * 65}/1"):
        shutil.copytree(folder, models / other)
    (models / "README").write_text("not a package")
    (models / "empty").mkdir()
    assert [(served.package.name, served.package.version) for served in opened(models)] == [("a", 1)]


@pytest.mark.parametrize("made", [True, False])
def test_without_a_package_the_message_says_what_to_do(models: Path, made: bool) -> None:
    if made:
        models.mkdir()
    with pytest.raises(PackageError, match="convert one, or set SOUS_MODELS_DIR"):
        opened(models)


@pytest.mark.parametrize("file", ["model.onnx", "golden.npz"])
def test_a_file_that_differs_from_its_hash_is_refused(models: Path, file: str) -> None:
    path = write_package(models) / file
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(PackageError, match=f"{file} differs from the hash"):
        opened(models)


def test_a_file_of_the_report_that_is_gone_is_refused(models: Path) -> None:
    (write_package(models) / "golden.npz").unlink()
    with pytest.raises(PackageError, match=r"golden\.npz is in the report, but cannot be read"):
        opened(models)


def test_a_package_that_has_lost_its_model_is_refused_and_not_left_out(models: Path) -> None:
    write_package(models, version=1)
    (write_package(models, version=2) / "model.onnx").unlink()
    with pytest.raises(PackageError, match=r"2/model\.onnx is in the report, but cannot be read"):
        opened(models)


def test_a_folder_that_cannot_be_read_is_refused_and_not_left_out(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(models).parent.chmod(0)
    monkeypatch.chdir(models)  # which another user could not reach by its path
    with suppress(PermissionError):
        os.seteuid(65_534)  # root may read everything
    try:
        with pytest.raises(PackageError, match=r"colours cannot be read \(Permission denied\): let this user read it"):
            list(scan(Path()))
    finally:
        os.seteuid(os.getuid())
        Path("colours").chmod(0o700)


@pytest.mark.parametrize(
    "report", ["", "[]", "{}", '{"files": {}}', '{"files": {"model.onnx": {}}}', '{"files": {"model.onnx": 1}}']
)
def test_a_report_that_cannot_be_read_is_refused(models: Path, report: str) -> None:
    (write_package(models) / "report.json").write_text(report)
    with pytest.raises(PackageError, match=r"report\.json cannot be read"):
        opened(models)


@pytest.mark.parametrize("plan", [{"cores": 2}, [1], {**PLAN, "slots": "two"}, {**PLAN, "max_batch_size": 0}])
def test_a_plan_that_cannot_be_followed_is_refused(models: Path, plan: object) -> None:
    edit_report(write_package(models), plan=plan)
    with pytest.raises(PackageError, match="bad plan"):
        opened(models)


def test_a_lone_model_file_is_served_by_the_rule_without_a_golden_set(models: Path) -> None:
    folder = write_package(models)
    (folder / "golden.npz").unlink()
    (folder / "report.json").unlink()
    (served,) = opened(models)
    assert served.golden_drift is None
    assert served.plan.origin == "rule"
    assert served.plan.intra_op_threads == 1  # it takes far less than 10 ms


def test_a_slow_model_without_a_stored_plan_gets_all_cores_for_one_image(models: Path) -> None:
    write_package(models, work=40)
    (served,) = opened(models)
    assert (served.plan.slots, served.plan.intra_op_threads, served.plan.origin) == (2, 2, "rule")


def test_the_stored_plan_is_followed_and_the_golden_set_reproduced(models: Path) -> None:
    write_package(models, plan=PLAN)
    (served,) = opened(models)
    assert (served.plan.max_batch_size, served.plan.origin) == (3, "measured")
    assert served.golden_drift is not None
    assert served.golden_drift < 1e-4
    assert served.image_s > 0


def test_every_batch_size_in_use_is_warmed_before_the_golden_set(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(models, plan=PLAN)
    sizes, infer = list[int](), Model.infer

    def noted(model: Model, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        sizes.append(len(images) if not images.any() else 0)
        return infer(model, images)

    monkeypatch.setattr(Model, "infer", noted)
    opened(models)
    assert sizes[: PLAN["max_batch_size"]] == [1, 2, 3]


def test_the_golden_set_is_replayed_by_as_many_calls_at_once_as_are_served(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_report(write_package(models), plan=PLAN | {"max_batch_size": 1})
    meeting, infer, calls = threading.Barrier(PLAN["slots"], timeout=10), Model.infer, itertools.count()

    def met(model: Model, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if images.any() and next(calls) < PLAN["slots"]:  # not the blank ones that warm up
            meeting.wait()
        return infer(model, images)

    monkeypatch.setattr(Model, "infer", met)
    drift = opened(models).find().golden_drift
    assert drift is not None
    assert drift < 1e-4
    assert next(calls) > PLAN["slots"]


def test_a_model_that_answers_otherwise_than_its_golden_set_is_refused(models: Path) -> None:
    write_package(models, golden_shift=0.01)
    with pytest.raises(PackageError, match=r"does not reproduce its golden set.*max \|dp\| 0\.0100, tolerance 0\.0010"):
        opened(models)


def test_a_golden_set_that_cannot_be_replayed_is_refused(models: Path) -> None:
    folder = write_package(models)
    np.savez(folder / "golden.npz", inputs=np.zeros((8, 5, 5, 3), np.uint8), probabilities=0.5, tolerance=1)
    model_only = {"model.onnx": json.loads((folder / "report.json").read_text())["files"]["model.onnx"]}
    edit_report(folder, files=model_only)
    with pytest.raises(PackageError, match="cannot be replayed"):
        opened(models)
