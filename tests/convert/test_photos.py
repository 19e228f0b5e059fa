"""Class folders, numbered files, splits and labels."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from convert import photos
from convert.errors import ConvertError
from convert.photos import Photo, find
from service.image import Contract
from tests.convert import sources

CLASSES = len(sources.CLASSES)


def parts(found: photos.Photos) -> list[set[Path]]:
    return [{photo.path for photo in part} for part in (found.calibration, found.tuning, found.evaluation)]


@pytest.fixture(scope="module")
def unsplit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sources.write_photos(tmp_path_factory.mktemp("unsplit"), [40] * CLASSES)


@pytest.mark.parametrize("numbered", [False, True])
def test_folders_are_the_split(numbered: bool, tmp_path: Path) -> None:
    images = sources.write_splits(tmp_path, numbered=numbered)
    found = find(images, None, CLASSES, 1000)
    assert [len(part) for part in parts(found)] == [48, 32, 40]
    for part, name in zip(parts(found), photos.FOLDERS, strict=True):
        assert {path.relative_to(images).parts[0] for path in part} == {name}
    assert found.labelled
    assert found.split == "the folders training, validation and evaluation"
    assert found.labels == (("0", "1", "2", "3") if numbered else sources.CLASSES)
    for photo in found.evaluation:
        name = photo.path.name if numbered else photo.path.parent.name
        assert name.startswith(f"{photo.label}_" if numbered else sources.CLASSES[photo.label or 0])


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "Validation", "Evaluation"), ("train",)])
def test_a_split_of_other_names_is_no_set_of_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        sources.write_photos(tmp_path / name, [10] * CLASSES, numbered=True)
    with pytest.raises(ConvertError, match="rename the parts of a split training, validation, evaluation"):
        find(tmp_path, None, CLASSES, 1000)


def test_photos_in_folders_of_a_class_folder_are_of_its_class(unsplit: Path, tmp_path: Path) -> None:
    images = shutil.copytree(unsplit, tmp_path / "images")
    deeper = images / sources.CLASSES[1] / "more" / "still"
    deeper.mkdir(parents=True)
    moved = sorted((images / sources.CLASSES[1]).glob("*.png"))[:20]
    for path in moved:
        path.rename(deeper / path.name)
    found = find(images, None, CLASSES, 1000)
    labels = {
        p.path.name: p.label
        for part in (found.calibration, found.tuning, found.evaluation)
        for p in part
        if p.path.parent == deeper
    }
    assert labels == {path.name: 1 for path in moved}
    assert str(found) == (
        f"photos: {len(found.calibration)} to calibrate, {len(found.tuning)} to tune, {len(found.evaluation)} to"
        f" evaluate, by {found.split}; with labels"
    )


def test_no_more_photos_are_tuned_on_than_decide_a_recipe(unsplit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = find(unsplit, None, CLASSES, 1000)
    monkeypatch.setattr(photos, "TUNING", 7)
    found = find(unsplit, None, CLASSES, 1000)
    assert found.tuning == everything.tuning[:7]
    assert found.evaluation == everything.evaluation


@pytest.mark.parametrize("numbered", [False, True])
def test_a_hash_of_the_name_splits_what_comes_unsplit(
    numbered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = sources.write_photos(tmp_path / "a", [40] * CLASSES, numbered=numbered)
    found = find(images, None, CLASSES, 1000)
    calibration, tuning, evaluation = parts(found)
    assert not calibration & tuning | calibration & evaluation | tuning & evaluation
    assert len(calibration | tuning | evaluation) == 160
    assert [round(len(part) / 160, 1) for part in parts(found)] == pytest.approx([0.6, 0.2, 0.2], abs=0.11)
    assert "hash" in found.split
    shutil.move(images, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for folder in (tmp_path / "elsewhere", Path()):
        again = find(folder, None, CLASSES, 1000)
        for part, before in zip(parts(again), (calibration, tuning, evaluation), strict=True):
            assert {path.relative_to(folder) for path in part} == {path.relative_to(images) for path in before}
        assert [p.path.name for p in again.calibration] == [p.path.name for p in found.calibration]


@pytest.mark.parametrize("numbered", [False, True])
def test_the_order_of_split_folders_depends_on_their_names(numbered: bool, tmp_path: Path) -> None:
    images = sources.write_splits(tmp_path / "a", numbered=numbered)
    found = find(images, None, CLASSES, 1000)
    names = [f"{photo.path.parent.name}/{photo.path.name}" for photo in found.calibration]
    assert names == sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def test_a_few_photos_calibrate_and_they_mix_the_classes(unsplit: Path) -> None:
    found = find(unsplit, None, CLASSES, 24)
    assert len(found.calibration) == 24
    assert {photo.label for photo in found.calibration} == set(range(CLASSES))
    assert found.calibration == find(unsplit, None, CLASSES, 1000).calibration[:24]


def test_a_photo_without_its_class_number_among_numbered_ones_is_named(tmp_path: Path) -> None:
    images = sources.write_photos(tmp_path / "images", [60, 60, 60, 60], numbered=True)
    shutil.copy(next(images.iterdir()), images / "cover.png")
    with pytest.raises(ConvertError, match=r"cover\.png has no class number, most beside it have: rename it"):
        find(images, None, CLASSES, 100)


def test_copies_of_evaluation_photos_are_never_calibrated_or_tuned_on(tmp_path: Path) -> None:
    images = sources.write_splits(tmp_path)
    stolen = sorted((images / "evaluation" / "dark red").iterdir())
    shutil.copy(stolen[0], images / "training" / "dark red" / "renamed.png")
    shutil.copy(stolen[1], images / "validation" / "dark blue" / "renamed.png")
    found = find(images, None, CLASSES, 1000)
    assert [len(part) for part in parts(found)] == [48, 32, 40]
    assert "renamed.png" not in {path.name for part in parts(found) for path in part}
    assert str(found).endswith("; 2 copies of evaluation photos left out")


def test_a_split_that_only_holds_copies_of_another_is_said_to(tmp_path: Path) -> None:
    images = sources.write_splits(tmp_path)
    shutil.rmtree(images / "validation")
    shutil.copytree(images / "evaluation", images / "validation")
    with pytest.raises(ConvertError, match="0 photos for validation beside 40 copies of evaluation photos, which do"):
        find(images, None, CLASSES, 1000)


def test_a_split_without_class_folders_beside_others_with_them_is_named(tmp_path: Path) -> None:
    images = sources.write_splits(tmp_path)
    for path in list((images / "evaluation").rglob("*.png")):
        path.rename(images / "evaluation" / f"{path.parent.name} {path.name}")
    for folder in sources.CLASSES:
        (images / "evaluation" / folder).rmdir()
    with pytest.raises(ConvertError, match=r"evaluation has no class folder, .*: sort its photos into dark blue"):
        find(images, None, CLASSES, 1000)


def test_hidden_files_and_folders_hold_no_photos(tmp_path: Path) -> None:
    images = sources.write_splits(tmp_path)
    hidden = images / "evaluation" / "dark red" / ".ipynb_checkpoints"
    hidden.mkdir()
    photo = next(images.glob("training/dark red/*.png"))
    shutil.copy(photo, hidden / "x.png")
    shutil.copy(photo, hidden.parent / "._x.png")
    assert len(find(images, None, CLASSES, 1000).evaluation) == 40


def test_a_labels_file_orders_the_classes(unsplit: Path, tmp_path: Path) -> None:
    order = ["light red", "dark blue", "dark red", "light blue"]
    (tmp_path / "labels.JSON").write_text(json.dumps(order))
    (tmp_path / "labels.txt").write_text("\ufeff" + "\r\n".join(order) + "\n\n", encoding="utf-8")
    for name in ("labels.JSON", "labels.txt"):
        found = find(unsplit, tmp_path / name, CLASSES, 100)
        assert found.labels == tuple(order)
        assert {photo.path.parent.name for photo in found.evaluation if photo.label == 0} == {"light red"}


def test_a_class_may_have_no_photos_when_the_labels_are_given(tmp_path: Path) -> None:
    images = sources.write_photos(tmp_path / "images", [60, 0, 60, 60])
    shutil.rmtree(images / sources.CLASSES[1])
    (tmp_path / "labels").write_text("\n".join(sources.CLASSES))
    found = find(images, tmp_path / "labels", CLASSES, 100)
    assert {photo.label for photo in found.evaluation} == {0, 2, 3}
    with pytest.raises(ConvertError, match=r"has 3 class folders .+, the model 4 outputs: .*--labels"):
        find(images, None, CLASSES, 100)


def test_a_class_that_is_not_in_training_still_counts(tmp_path: Path) -> None:
    images = sources.write_splits(tmp_path)
    shutil.rmtree(images / "training" / "light red")
    found = find(images, None, CLASSES, 100)
    assert len(found.evaluation) == 40


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    images = sources.write_photos(tmp_path, [40] * CLASSES)
    (images / ".ipynb_checkpoints").mkdir()
    assert find(images, None, CLASSES, 100).labels == sources.CLASSES


def test_files_with_dates_and_other_names_are_unlabelled(tmp_path: Path) -> None:
    for seed in range(100):
        name = f"20260101_{seed}.png" if seed % 2 else f"x{seed}.png"
        Image.fromarray(sources.picture(0, seed)).save(tmp_path / name)
    found = find(tmp_path, None, CLASSES, 100)
    assert not found.labelled
    assert photos.labels_of(found.evaluation) is None
    assert found.labels == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        ("a\nb\nc\n", ".txt", "names 3 classes, the model has 4 outputs"),
        ("a\nb\nb\nc\n", ".txt", "is no list of different names"),
        ('{"a": 0}', ".json", "is no list of different names"),
        ("[1, 2, 3, 4]", ".json", "is no list of different names"),
        ("[1, 2", ".json", "cannot be read"),
        ("[" * 200_000, ".json", r"cannot be read \(RecursionError\)"),
        ("a\nb\nc\nd\n", ".txt", "class folder 'dark blue' is not in the labels file: its names are a, b, c, d"),
    ],
)
def test_labels_that_do_not_match_are_refused(
    content: str, suffix: str, message: str, unsplit: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"labels{suffix}"
    path.write_text(content)
    with pytest.raises(ConvertError, match=message):
        find(unsplit, path, CLASSES, 100)


def test_a_photo_may_have_any_name_and_a_class_one_in_utf_8(tmp_path: Path) -> None:
    images = sources.write_splits(tmp_path)
    odd, photo = os.fsdecode(b"caf\xe9.png"), next((images / "evaluation" / "dark red").iterdir())
    photo.rename(photo.with_name(odd))
    assert odd in {photo.path.name for photo in find(images, None, CLASSES, 100).evaluation}
    for name in photos.FOLDERS:
        (images / name / "dark red").rename(images / name / odd)
    with pytest.raises(ConvertError, match=r"class 'caf\\udce9.png' is no name in UTF-8, .*: rename it"):
        find(images, None, CLASSES, 100)


def test_a_missing_or_binary_labels_file_is_refused(unsplit: Path, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    for name in ("missing", "binary"):
        with pytest.raises(ConvertError, match=f"labels file .*{name} cannot be read .* in UTF-8"):
            find(unsplit, tmp_path / name, CLASSES, 100)


def test_numbers_beyond_the_classes_are_refused_with_the_file(tmp_path: Path) -> None:
    images = sources.write_photos(tmp_path, [40] * CLASSES, numbered=True)
    with pytest.raises(ConvertError, match=r"3_0000.png is named as of class 3, the model's are 0 to 2"):
        find(images, None, 3, 100)


def test_folders_that_are_no_split_or_too_few_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="no images folder"):
        find(tmp_path / "missing", None, CLASSES, 100)
    with pytest.raises(ConvertError, match="gives 0 photos for training, at least 16 are needed"):
        find(tmp_path, None, CLASSES, 100)
    sources.write_photos(tmp_path, [5] * CLASSES)
    with pytest.raises(ConvertError, match=r"gives .* photos for .*, at least 16 are needed"):
        find(tmp_path, None, CLASSES, 100)
    sources.write_splits(tmp_path / "split")
    shutil.rmtree(tmp_path / "split" / "evaluation")
    with pytest.raises(ConvertError, match=r"holds training and validation, but a split needs .*evaluation"):
        find(tmp_path / "split", None, CLASSES, 100)


def test_a_photo_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    contract = Contract(32, 32)
    with pytest.raises(ConvertError, match=r"broken.jpg cannot be used \(.*\): mend it or take it out"):
        photos.pixels(tmp_path / "broken.jpg", contract)
    with pytest.raises(ConvertError, match=r"missing.jpg cannot be used"):
        photos.pixels(tmp_path / "missing.jpg", contract)


def test_pixels_are_those_of_the_photo(tmp_path: Path) -> None:
    Image.fromarray(sources.picture(1, 1)).save(tmp_path / "x.png")
    (batch,) = photos.batches([Photo(tmp_path / "x.png", None)], Contract(32, 32))
    assert (batch[0] == sources.picture(1, 1)).all()


def test_a_fingerprint_tells_photos_and_their_order(tmp_path: Path) -> None:
    images = sources.write_photos(tmp_path, [2] * CLASSES, numbered=True)
    found = [Photo(path, None) for path in photos.files(images)]
    assert photos.fingerprint(found) == photos.fingerprint(list(found))
    assert photos.fingerprint(found) != photos.fingerprint(found[::-1])
