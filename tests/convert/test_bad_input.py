"""A user's mistake: one line with cause and remedy, exit status 2, nothing left behind."""

import errno
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convert import export, pipeline
from convert.command import calibration
from convert.errors import ConvertError, GateRefusedError
from convert.options import Options
from convert.photos import FOLDERS, MOST_NAMED, Photos
from convert.progress import Progress
from convert.source import refuse_quantised
from service.image import Contract
from tests.convert import sources
from tests.convert.conftest import Outcome

Convert = Callable[..., Outcome]
Refused = Callable[..., str]


# ---- a network not met before


@pytest.mark.parametrize("raised", [KeyError("Split_7:1"), np.linalg.LinAlgError("not positive definite")])
def test_what_nobody_foresaw_while_quantising_is_named(
    raised: Exception, saved: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise raised

    monkeypatch.setattr(pipeline, "centre", failing)
    line = refused(saved)
    assert f"small.keras cannot be quantised ({type(raised).__name__}: {raised}): please report it" in line


def test_too_little_memory_is_told_with_what_takes_less(
    saved: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pipeline, "centre", failing)
    assert "out of memory: calibrate on fewer photos (--calibration)" in refused(saved)


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "no space left for temporary files: free some, or set TMPDIR",
        ),
        (MemoryError(), "out of memory: calibrate on fewer photos"),
    ],
)
def test_a_full_disk_or_memory_while_exporting_is_told(
    raised: Exception, message: str, saved: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise raised

    monkeypatch.setattr(export, "by_function", failing)
    assert message in refused(saved)


def failing(*_: object, **__: object) -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("what", "stand_in"),
    [
        ("keras.models.load_model", failing),
        ("keras.Model.__call__", failing),
        ("convert.export.session", lambda *_: SimpleNamespace(run=failing)),
    ],
    ids=["loading", "answering", "checking"],
)
def test_too_little_memory_is_no_fault_of_the_source(
    what: str, stand_in: object, saved: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(what, stand_in)
    assert "out of memory: calibrate on fewer photos" in refused(saved)


@pytest.mark.parametrize("raised", [MemoryError, KeyboardInterrupt, OSError, ConvertError, GateRefusedError])
def test_what_is_dealt_with_elsewhere_passes(
    raised: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise raised

    monkeypatch.setattr(pipeline, "search", failing)
    options, nothing = Options(tmp_path, "x", tmp_path), Photos((), (), (), "", ())
    with pytest.raises(raised) as caught:
        pipeline.quantise(options, Contract(8, 8), nothing, tmp_path, Progress(quiet=True))
    assert caught.type is raised


def test_every_policy_of_keras_that_quantises_is_known(keras: Any) -> None:
    from keras.src.dtype_policies import dtype_policy  # noqa: PLC0415  the public module lacks some

    base = dtype_policy.QuantizedDTypePolicy
    names = [name for name, found in vars(dtype_policy).items() if isinstance(found, type) and issubclass(found, base)]
    assert len(names) > 3
    for name in names:
        with pytest.raises(ConvertError, match="was quantised to"):
            refuse_quantised(Path("x"), [{"class_name": name, "config": None}])


@pytest.mark.parametrize("policy", ["int8", "float8"])
def test_a_model_that_keras_has_quantised_itself(policy: str, keras: Any, refused: Refused, tmp_path: Path) -> None:
    model = sources.trained(keras)
    for layer in model.layers[1:]:  # not the input
        with suppress(NotImplementedError):
            layer.quantize(policy)
    model.save(tmp_path / "quantised.keras")
    line = refused(tmp_path / "quantised.keras")
    assert policy in line
    assert "save the float model" in line


# ---- photos


def test_unreadable_photos_are_all_named_before_the_long_work_begins(
    saved: Path, photos: Path, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "export", lambda *_: pytest.fail("it has begun"))
    shutil.copytree(photos, tmp_path / "images")
    for count in range(1, MOST_NAMED + 3):
        folder = tmp_path / "images" / FOLDERS[1 + count % 2] / "dark red"
        (folder / f"broken{count}.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture %d" % count)
        if count in {1, 4, MOST_NAMED + 2}:
            line = refused(saved, images=tmp_path / "images")
            assert f"{count} of the photos cannot be used" in line
            assert len(set(re.findall(r"broken\d+\.jpg", line))) == min(count, MOST_NAMED)
            assert ("and others" in line) == (count > MOST_NAMED)


def test_too_few_photos(saved: Path, refused: Refused, tmp_path: Path) -> None:
    assert "at least 16 are needed" in refused(saved, images=sources.write_photos(tmp_path / "few", [3] * 4))


def test_more_class_folders_than_outputs(saved: Path, photos: Path, refused: Refused, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "images")
    (tmp_path / "images" / "training" / "fifth").mkdir()
    assert re.search(r"has 5 class folders \(.+\), the model 4 outputs", refused(saved, images=tmp_path / "images"))


def test_labels_of_another_model(saved: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("a\nb\n")
    assert "names 2 classes, the model has 4 outputs" in refused(saved, "--labels", str(tmp_path / "labels"))


@pytest.mark.parametrize(("wrong", "right"), [("-1,1", "0,1"), ("0,255", "-1,1"), ("0,1", "0,255"), ("0,1", "-1,1")])
def test_a_wrong_input_range_is_found_on_labelled_photos(
    wrong: str, right: str, keras: Any, refused: Refused, tmp_path: Path
) -> None:
    sources.trained(keras, input_range=right).save(tmp_path / "ranged.keras")
    line = refused(tmp_path / "ranged.keras", "--input-range", wrong)
    assert f"give --input-range={right}" in line


def test_labels_in_another_order_are_found_on_labelled_photos(saved: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("\n".join(reversed(sources.CLASSES)))
    line = refused(saved, "--labels", str(tmp_path / "labels"))
    assert "photos of light red are answered as dark blue" in line
    assert "give --labels in the order of the model's output" in line


def test_more_pruning_than_the_network_has_room_for(keras: Any, refused: Refused, tmp_path: Path) -> None:
    sources.trained(keras, sources.sequential).save(tmp_path / "pooled.keras")
    line = refused(tmp_path / "pooled.keras", "--macs", "30")
    assert "100.0 % of the multiplications is the least that pruning leaves of this network" in line
    assert line.endswith("give --macs 100 or more")


# ---- command line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "Bad Name"], "'Bad Name' is no package name"),
        (["--name", "../up"], "is no package name"),
        (["--version", "0"], "'0' is no whole number from 1"),
        (["--version", "1.5"], "is no whole number from 1"),
        (["--calibration", "2"], "2 photos are too few to calibrate on: 16 at least"),
        (["--weight-bits", "4"], "invalid choice: 4"),
        (["--input-range", "0,2"], "invalid choice: '0,2'"),
        (["--input-range"], "expected one argument"),
        (["--gate-drop", "nan"], "'nan' is no number from 0 to 100"),
        (["--macs", "0"], "0 % of the multiplications leave no network"),
        (["--macs", "101"], "is no number from 0 to 100"),
        (["--gate-agreement", "-1"], "is no number from 0 to 100"),
        (["--gate-agreement", "most"], "'most' is no number from 0 to 100"),
        (["--resize", "lanczos"], "invalid choice: 'lanczos'"),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_nonsense_on_the_command_line(options: list[str], message: str, refused: Refused, tmp_path: Path) -> None:
    assert message in refused(tmp_path / "x.keras", *options)


def test_more_calibration_photos_than_a_machine_counts_are_all_there_are() -> None:
    assert calibration("9" * 30) == sys.maxsize


def test_a_missing_images_folder(saved: Path, refused: Refused, tmp_path: Path) -> None:
    assert "no images folder" in refused(saved, images=tmp_path / "missing")


def test_a_models_folder_that_is_a_file(saved: Path, convert: Convert, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    outcome = convert(saved)
    assert outcome.status == 2
    assert outcome.err.startswith("convert: ")
    assert len(outcome.err.splitlines()) == 1
