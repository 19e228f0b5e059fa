"""The images folder: labels, disjoint splits, and pixels by the preprocessing contract of the service."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.errors import ConvertError
from service.image import Contract, ImageError, Limits, decode

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}
LIMITS = Limits(max_bytes=64_000_000, max_pixels=100_000_000)
BATCH = 8
MOST_NAMED = 6  # in one message
TUNING = 1500  # photos at most
LEAST_CALIBRATION, LEAST_EVALUATION = 16, 16
FOLDERS = ("training", "validation", "evaluation")
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "eval", "evaluation"}
NUMBERED = re.compile(r"(\d{1,4})_")  # not the dates that cameras write


@dataclass(frozen=True)
class Photo:
    """An image file and the index of its class, None where the folder does not tell."""

    path: Path
    label: int | None


@dataclass(frozen=True)
class Photos:
    """Parts: quantisation is fitted on `calibration`, recipes are chosen on `tuning`, and `evaluation`, of which no
    copy is in the others, is only reported and gated."""

    calibration: tuple[Photo, ...]
    tuning: tuple[Photo, ...]
    evaluation: tuple[Photo, ...]
    split: str
    labels: tuple[str, ...]
    copies: int = 0  # of evaluation photos, left out of the other parts

    def __str__(self) -> str:
        known = "with labels" if self.labelled else "without labels: accuracy cannot be told"
        known += f"; {self.copies} copies of evaluation photos left out" if self.copies else ""
        return (
            f"photos: {len(self.calibration)} to calibrate, {len(self.tuning)} to tune, {len(self.evaluation)} to"
            f" evaluate, by {self.split}; {known}"
        )

    @property
    def labelled(self) -> bool:
        """Whether accuracy can be measured."""
        return all(photo.label is not None for photo in self.evaluation)


def find(images: Path, labels_file: Path | None, classes: int, calibration: int) -> Photos:
    """The photos under `images` in their splits, `calibration` of them for fitting.

    Raises:
        ConvertError: no folder, too few images, or labels that do not match the model's `classes`.
    """
    if not images.is_dir():
        raise ConvertError(f"no images folder {images}: give one with --images")
    given = read_labels(labels_file, classes) if labels_file else None
    folders = [images / name for name in FOLDERS]
    present = [folder.name for folder in folders if folder.is_dir()]
    if len(present) == len(FOLDERS):
        split = "the folders training, validation and evaluation"
        names = class_names(folders, given)
        parts = [shuffled(read_folder(folder, names, classes), images) for folder in folders]
    elif present:
        raise ConvertError(
            f"{images} holds {' and '.join(present)}, but a split needs {', '.join(FOLDERS)}: add the rest"
        )
    elif others := sorted(path.name for path in images.iterdir() if path.is_dir() and path.name.lower() in SPLITS):
        raise ConvertError(
            f"{images} holds {' and '.join(others)}: rename the parts of a split {', '.join(FOLDERS)}, class folders"
            " otherwise"
        )
    else:
        split = "a fixed hash of the file name: 60 % calibration, 20 % tuning, 20 % evaluation"
        names = class_names([images], given)
        everything = [(photo, share(photo, images)) for photo in shuffled(read_folder(images, names, classes), images)]
        shares = (range(60), range(60, 80), range(80, 100))
        parts = [[photo for photo, place in everything if place in some] for some in shares]
    if names and len(names) != classes:
        raise ConvertError(
            f"{images} has {len(names)} class folders ({', '.join(names[:3])}, ...), the model {classes} outputs: give"
            f" a folder a class, splits named {', '.join(FOLDERS)}, or all names with --labels FILE"
        )
    labels = given or names or tuple(str(index) for index in range(classes))
    if odd := next((label for label in labels if label.encode(errors="ignore").decode() != label), None):
        raise ConvertError(f"class {odd!r} is no name in UTF-8, as the package stores it: rename it")
    fitted, tuning, evaluation = parts
    twin = twin_of(evaluation)
    fitted, twins = without(twin, fitted, calibration)
    tuning, more_twins = without(twin, tuning, TUNING)
    check_counts((fitted, tuning, evaluation), (twins, more_twins, 0), images)
    return Photos(tuple(fitted), tuple(tuning), tuple(evaluation), split, labels, twins + more_twins)


def without(twin: Callable[[Photo], bool], photos: Sequence[Photo], most: int) -> tuple[list[Photo], int]:
    """The first photos that have no twin, and how many were passed over."""
    kept, twins = list[Photo](), 0
    for photo in photos:
        if len(kept) == most:
            break
        if twin(photo):
            twins += 1
        else:
            kept.append(photo)
    return kept, twins


def twin_of(photos: Sequence[Photo]) -> Callable[[Photo], bool]:
    """Tells whether a photo's bytes are among these photos' too, whatever its name: data sets hold copies."""
    by_size: dict[int, list[Path]] = {}
    for photo in photos:
        by_size.setdefault(photo.path.stat().st_size, []).append(photo.path)
    digests: dict[int, set[bytes]] = {}

    def twin(photo: Photo) -> bool:
        size = photo.path.stat().st_size
        if size not in digests:
            digests[size] = {digest(path) for path in by_size.get(size, ())}
        return bool(digests[size]) and digest(photo.path) in digests[size]

    return twin


def digest(path: Path) -> bytes:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).digest()


def read_labels(path: Path, classes: int) -> tuple[str, ...]:
    """Names of the classes in the order of the model's output: a JSON list, or a line a class."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = (
            json.loads(text)
            if path.suffix.lower() == ".json"
            else [line.strip() for line in text.splitlines() if line.strip()]
        )
    except (OSError, ValueError, RecursionError) as error:
        raise ConvertError(
            f"labels file {path} cannot be read ({type(error).__name__}): give a line a class, in UTF-8"
        ) from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ConvertError(f"labels file {path} is no list of different names: give a line a class, or a JSON list")
    if len(names) != classes:
        raise ConvertError(
            f"{path} names {len(names)} classes, the model has {classes} outputs: name every output once"
        )
    return tuple(names)


def class_names(folders: Sequence[Path], given: tuple[str, ...] | None) -> tuple[str, ...]:
    """Names of the class folders in the order of the model's output: the labels file's, else sorted as Keras does."""
    children = [child for folder in folders for child in folder.iterdir() if child.is_dir()]
    found = tuple(sorted({child.name for child in children if not child.name.startswith(".")}))
    if given and (unknown := set(found) - set(given)):
        raise ConvertError(
            f"class folder {min(unknown)!r} is not in the labels file: its names are {', '.join(given)}"
            f" (and splits are named {', '.join(FOLDERS)})"
        )
    return given if given and found else found


def read_folder(folder: Path, names: Sequence[str], classes: int) -> list[Photo]:
    """The photos of one split: class folders, or files named by class index (`7_paella.jpg`), or unlabelled files."""
    if names:
        places = [(folder / name, index) for index, name in enumerate(names) if (folder / name).is_dir()]
        if not places and files(folder):
            raise ConvertError(
                f"{folder} has no class folder, as there are in other splits: sort its photos into {names[0]} and so on"
            )
        return [Photo(path, index) for place, index in places for path in files(place, below=True)]
    found = files(folder)
    numbers = [int(match[1]) for path in found if (match := NUMBERED.match(path.name))]
    if len(found) / 2 < len(numbers) < len(found) and max(numbers) < classes:
        odd = next(path for path in found if not NUMBERED.match(path.name))
        raise ConvertError(f"{odd} has no class number, most beside it have: rename it as 7_x.jpg, or take it away")
    if len(numbers) < len(found):
        return [Photo(path, None) for path in found]
    if max(numbers, default=0) >= classes:
        raise ConvertError(
            f"{found[numbers.index(max(numbers))]} is named as of class {max(numbers)}, the model's are 0 to"
            f" {classes - 1}: give the photos of this model, or rename files whose number is no class"
        )
    return [Photo(path, number) for path, number in zip(found, numbers, strict=True)]


def files(folder: Path, *, below: bool = False) -> list[Path]:
    """The image files of a folder, by name, and of those in it; none that is hidden, as notebooks' checkpoints are."""
    found = [path for path in (folder.rglob("*") if below else folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    shown = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return sorted(path for path in shown if path.is_file())


def shuffled(photos: Sequence[Photo], images: Path) -> list[Photo]:
    """In an order that depends on the names alone and mixes the classes."""
    return sorted(photos, key=lambda photo: hashlib.sha256(key(photo, images)).digest())


def share(photo: Photo, images: Path) -> int:
    """0 to 99, by a hash of the file name."""
    return int.from_bytes(hashlib.sha256(b"split " + key(photo, images)).digest()[:8]) % 100


def key(photo: Photo, images: Path) -> bytes:
    """What identifies a photo whatever the images folder is called: its name, and that of the class or split folder."""
    folder = photo.path.parent
    return os.fsencode(photo.path.name if folder == images else f"{folder.name}/{photo.path.name}")


def check_counts(parts: Sequence[Sequence[Photo]], twins: Sequence[int], images: Path) -> None:
    """Refuse splits too small to say anything."""
    least_of = (LEAST_CALIBRATION, 1, LEAST_EVALUATION)
    for part, copies, name, least in zip(parts, twins, FOLDERS, least_of, strict=True):
        if len(part) < least:
            beside = f" beside {copies} copies of evaluation photos, which do not count" if copies else ""
            raise ConvertError(
                f"{images} gives {len(part)} photos for {name}{beside}, at least {least} are needed: add photos (some"
                f" hundreds make a good calibration; {', '.join(sorted(SUFFIXES))})"
            )


def check(photos: Sequence[Photo], contract: Contract, tick: Callable[[], None]) -> None:
    """Decode every photo once; `tick` is called after each batch.

    Raises:
        ConvertError: some cannot be decoded; it names the first MOST_NAMED of them.
    """
    damaged = dict[Path, str]()
    for place, photo in enumerate(photos, 1):
        try:
            read(photo.path, contract)
        except (ImageError, OSError) as error:
            damaged[photo.path] = str(error)
        if place % BATCH == 0 or place == len(photos):
            tick()
    if damaged:
        folder = Path(os.path.commonpath([path.parent for path in damaged]))
        named = [str(path.relative_to(folder)) for path in damaged][:MOST_NAMED]
        more = ["and others"] * (len(damaged) > MOST_NAMED)
        raise ConvertError(
            f"{len(damaged)} of the photos cannot be used ({next(iter(damaged.values()))}) Mend them or take them out:"
            f" in {folder} {', '.join(named + more)}"
        )


def batches(photos: Sequence[Photo], contract: Contract) -> Iterator[NDArray[np.uint8]]:
    """Pixels uint8 `[BATCH, H, W, 3]` of the photos in order; the last batch may be smaller."""
    for start in range(0, len(photos), BATCH):
        yield np.stack([pixels(photo.path, contract) for photo in photos[start : start + BATCH]])


def batch_count(photos: Sequence[Photo]) -> int:
    """How many batches that many photos are."""
    return -(-len(photos) // BATCH)


def pixels(path: Path, contract: Contract) -> NDArray[np.uint8]:
    """One photo as the service decodes it, uint8 `[H, W, 3]`."""
    try:
        return read(path, contract)
    except (ImageError, OSError) as error:
        raise ConvertError(f"{path} cannot be used ({error}): mend it or take it out of the images folder") from None


def read(path: Path, contract: Contract) -> NDArray[np.uint8]:
    """The same, with the errors of its parts: ImageError or OSError."""
    decoded: NDArray[np.uint8] = decode(path.read_bytes(), contract, LIMITS)
    return decoded


def labels_of(photos: Sequence[Photo]) -> NDArray[np.int64] | None:
    """Class indices, or None where any is missing."""
    labels = [photo.label for photo in photos if photo.label is not None]
    return np.array(labels) if len(labels) == len(photos) else None


def fingerprint(photos: Sequence[Photo]) -> str:
    """SHA-256 over the photos' contents in order: which data this was."""
    return hashlib.sha256(b"".join(digest(photo.path) for photo in photos)).hexdigest()
