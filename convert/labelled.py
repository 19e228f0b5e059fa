"""What photos say of the options: the range of the pixels and, where they have labels, the order of those."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from convert import photos, verify
from convert.errors import ConvertError
from convert.options import RANGES
from convert.photos import Photos
from convert.progress import Progress
from convert.source import Source
from service.image import Contract

PHOTOS = 96  # more take long: each is answered in every range
LEAST = 24
Indices = NDArray[np.int64]


def check(source: Source, found: Photos, contract: Contract, given: str, progress: Progress) -> None:
    """Stop where the source scores clearly better (95 % intervals apart) in another range or with other labels, or
    answers alike whatever the photo and not in another range; say so where it scores no better than chance.

    Raises:
        ConvertError: an option does not fit the photos.
    """
    sample = found.tuning[:PHOTOS]
    labels = photos.labels_of(sample)
    if len(sample) < LEAST or (labels is not None and len(set(labels)) < 2):
        return
    pixels = np.concatenate(list(photos.batches(sample, contract))).astype(np.float32)
    answers = {
        name: source.predict(pixels * np.float32((high - low) / 255) + np.float32(low)).argmax(1)
        for name, (low, high) in RANGES.items()
    }
    if labels is None:
        check_varied(answers, given)
        return
    # of names in another order some range fits a few by chance, and of a wrong range some other order does
    best = max(verify.percent(one == labels) for one in answers.values())
    check_order(answers[given], labels, found.labels, best)
    check_range(answers, labels, given)
    score, chance = verify.percent(answers[given] == labels), 100 / source.classes
    if verify.interval(score, len(sample))[0] <= chance:
        progress.note(
            f"top-1 of the source is {score:.0f} % on {len(sample)} photos, no better than chance: are --input-range,"
            " --resize, --crop and the labels those of its training?"
        )


def check_range(answers: dict[str, Indices], labels: Indices, given: str) -> None:
    """Refuse a range where another is better, or where every photo gets the same answer and in another does not."""
    scores = {name: verify.percent(found == labels) for name, found in answers.items()}
    better = max(scores, key=lambda name: scores[name])
    if scores[better] > scores[given] and (
        apart(scores[better], scores[given], len(labels)) or len(set(answers[given])) == 1 < len(set(answers[better]))
    ):
        raise ConvertError(
            f"top-1 is {scores[given]:.0f} % with --input-range {given} but {scores[better]:.0f} % with {better} on"
            f" {len(labels)} photos: give --input-range={better}"
        )


def check_varied(answers: dict[str, Indices], given: str) -> None:
    """Refuse a range in which every photo gets the same answer, where in another they get several."""
    classes = {name: len(set(found.tolist())) for name, found in answers.items()}
    other = max(classes, key=lambda name: classes[name])
    if classes[given] == 1 < classes[other]:
        raise ConvertError(
            f"{len(answers[given])} photos all get the same answer with --input-range {given}, and {classes[other]}"
            f" different ones with {other}: give --input-range={other}, or photos that the model tells apart"
        )


def check_order(answers: Indices, labels: Indices, names: tuple[str, ...], least: float) -> None:
    """Refuse labels where photos of one class are answered as another, one for one. Half of the photos tell which, the
    other half whether that is better, and `least` percent at least."""
    called = pairing(answers[::2], labels[::2])
    rest, wanted = answers[1::2], labels[1::2]
    score = verify.percent(rest == wanted)
    other = verify.percent(np.array([called.get(label) for label in wanted.tolist()]) == rest)
    if other >= least and apart(other, score, len(rest)):
        label, answer = next((label, answer) for label, answer in sorted(called.items()) if label != answer)
        raise ConvertError(
            f"photos of {names[label]} are answered as {names[answer]} (top-1 is {score:.0f} %, in another"
            f" order {other:.0f} %): give --labels in the order of the model's output, without it class folders whose"
            " alphabetical order that is"
        )


def pairing(answers: Indices, labels: Indices) -> dict[int, int]:
    """For each label the answer that its photos get most, each answer for one label, the most frequent pairs first."""
    pairs = Counter(zip(labels.tolist(), answers.tolist(), strict=True))
    found: dict[int, int] = {}
    for label, answer in sorted(pairs, key=lambda pair: (-pairs[pair], pair)):
        if label not in found and answer not in found.values():
            found[label] = answer
    return found


def apart(better: float, worse: float, count: int) -> bool:
    """Whether one of two percentages of so many photos is clearly better."""
    return verify.interval(better, count)[0] > verify.interval(worse, count)[1]
