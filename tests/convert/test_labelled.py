"""Options that do not fit labelled photos."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from convert.errors import ConvertError
from convert.labelled import check, check_order, check_range
from convert.photos import find
from convert.progress import Progress
from convert.source import Source
from service.image import Contract
from tests.convert import sources

NAMES = ("a", "b", "c", "d", "e", "f")
LABELS = np.random.default_rng(1).permutation(np.arange(96) % 6)


def noisy(answers: np.ndarray, share: float) -> np.ndarray:
    """Answers of which so many are another class."""
    rng = np.random.default_rng(0)
    return np.where(rng.uniform(size=len(answers)) < share, rng.integers(0, 6, len(answers)), answers)


def test_two_names_in_each_others_place_are_found_of_a_good_model() -> None:
    swapped = np.array([1, 0, 2, 3, 4, 5])[LABELS]
    with pytest.raises(ConvertError, match=r"photos of a are answered as b .*: give --labels in the order"):
        check_order(swapped, LABELS, NAMES, 0)
    check_order(LABELS, LABELS, NAMES, 0)


def test_a_reversed_order_is_found_of_a_poor_model() -> None:
    with pytest.raises(ConvertError, match="photos of a are answered as f"):
        check_order(noisy(5 - LABELS, 0.4), LABELS, NAMES, 0)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 1.0])
def test_a_model_that_errs_is_no_other_order(share: float) -> None:
    check_order(noisy(LABELS, share), LABELS, NAMES, 0)


def test_one_answer_to_every_photo_is_no_other_order() -> None:
    check_order(np.zeros_like(LABELS), LABELS, NAMES, 0)


def test_a_range_in_which_every_photo_is_the_same_is_refused_for_one_in_which_they_differ() -> None:
    one, several = np.zeros_like(LABELS), noisy(LABELS, 0.95)
    assert (several == LABELS).mean() < 0.3  # not clearly better than 17 %
    with pytest.raises(ConvertError, match="give --input-range=0,255"):
        check_range({"0,1": one, "0,255": several}, LABELS, "0,1")
    check_range({"0,1": several, "0,255": one}, LABELS, "0,1")
    check_range({"0,1": one, "0,255": one}, LABELS, "0,1")


@pytest.mark.parametrize("given", ["0,1", "0,255"])
def test_photos_without_labels_tell_a_range_in_which_all_get_the_same_answer(given: str, tmp_path: Path) -> None:
    sources.write_photos(tmp_path, [160])
    flat = tmp_path / "flat"
    next(tmp_path.iterdir()).rename(flat)
    found = find(flat, None, 4, 100)
    assert len(found.tuning) >= 24
    assert found.tuning[0].label is None

    def call(images: np.ndarray) -> np.ndarray:
        """Some sum of the pixels as whole numbers, all 0 in another range than 0 to 255."""
        return np.eye(4, dtype=np.float32)[(images.clip(0).astype(int) // 2).sum((1, 2, 3)) // 64 % 4]

    source = Source(Path("x.keras"), "keras", "", sources.SIZE, sources.SIZE, 4, call, None)
    contract = Contract(sources.SIZE, sources.SIZE)
    if given == "0,1":
        with pytest.raises(ConvertError, match=r"photos all get the same answer .*: give --input-range=0,255"):
            check(source, found, contract, given, Progress())
    else:
        check(source, found, contract, given, Progress())


@pytest.mark.parametrize("order", [p for p in permutations(range(4)) if all(k != p[k] for k in range(4))], ids=str)
def test_names_in_another_order_are_no_other_range_though_one_fits_some_by_chance(
    order: tuple[int, ...], tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(sources.CLASSES[place] for place in order))
    found = find(sources.write_splits(tmp_path / "photos"), tmp_path / "names.txt", 4, 1000)

    def call(images: np.ndarray) -> np.ndarray:
        """The right class of pixels to 255; of others half of the classes get another."""
        right = by_colour(images)
        return np.eye(4, dtype=np.float32)[right if images.max() > 1 else np.array([1, 2, 2, 3])[right]]

    source = Source(Path("x.keras"), "keras", "", sources.SIZE, sources.SIZE, 4, call, None)
    with pytest.raises(ConvertError, match="give --labels in the order"):
        check(source, found, Contract(sources.SIZE, sources.SIZE), "0,255", Progress())


def by_colour(images: np.ndarray) -> np.ndarray:
    """Brightness and red against blue are all that the classes differ in."""
    red, _, blue = images.mean((1, 2)).T
    return 2 * ((red + blue) / 2 > red.max() / 2 + blue.min() / 4) + (red > blue)


@pytest.mark.parametrize("is_blind", [True, False])
def test_a_source_no_better_than_chance_is_told(
    is_blind: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = find(sources.write_splits(tmp_path), None, 4, 1000)

    def call(images: np.ndarray) -> np.ndarray:
        return np.eye(4, dtype=np.float32)[np.zeros(len(images), int) if is_blind else by_colour(images)]

    source = Source(Path("x.keras"), "keras", "", sources.SIZE, sources.SIZE, 4, call, None)
    check(source, found, Contract(sources.SIZE, sources.SIZE), "0,255", Progress())
    assert ("25 % on 32 photos, no better than chance" in capfd.readouterr().err) == is_blind
