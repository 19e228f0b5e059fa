"""What a slot does with a batch of photos."""

import asyncio
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from service import classifier as classifier_module
from service import model as model_module
from service.batcher import Ticket
from service.classifier import Classifier, Scores, rank, run_batch
from service.errors import DeadlineExceeded
from service.image import Contract, ImageError, Limits
from service.model import Model
from service.repository import open_repository
from service.settings import Settings
from tests.service.packages import jpeg, write_package

LIMITS = Limits(100_000, 1_000_000)


class Sizes(list[int]):
    """Batch sizes as they were observed."""


@pytest.fixture
def model(models: Path) -> Model:
    return Model(write_package(models) / "model.onnx", 1)


def test_each_photo_gets_its_own_row(model: Model) -> None:
    sizes = Sizes()
    outcomes = run_batch(model, LIMITS, sizes.append, [jpeg("blue"), jpeg("red"), jpeg("green")])
    assert [each.probabilities.argmax() for each in outcomes if isinstance(each, Scores)] == [2, 0, 1]
    assert sizes == [3]


def test_a_bad_photo_leaves_the_batch_and_shifts_no_row(model: Model) -> None:
    sizes = Sizes()
    red, bad, green = run_batch(model, LIMITS, sizes.append, [jpeg("red"), b"no photo", jpeg("green")])
    assert isinstance(red, Scores)
    assert isinstance(bad, ImageError)
    assert isinstance(green, Scores)
    assert (red.probabilities.argmax(), green.probabilities.argmax()) == (0, 1)
    assert sizes == [2]


def test_a_photo_that_meets_a_fault_of_ours_leaves_the_others_their_answers(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = classifier_module.image.decode

    def faulty(photo: bytes, contract: Contract, limits: Limits) -> NDArray[np.uint8]:
        if photo == b"large":
            raise MemoryError
        return decode(photo, contract, limits)

    monkeypatch.setattr(classifier_module.image, "decode", faulty)
    red, large = run_batch(model, LIMITS, Sizes().append, [jpeg("red"), b"large"])
    assert isinstance(red, Scores)
    assert isinstance(large, MemoryError)


def test_a_batch_of_bad_photos_runs_no_session(model: Model) -> None:
    sizes = Sizes()
    outcomes = run_batch(model, LIMITS, sizes.append, [b"", b"no photo"])
    assert [type(each).__name__ for each in outcomes] == ["EmptyImage", "UnsupportedImageType"]
    assert sizes == []


def test_batched_answers_are_those_of_single_photos(model: Model) -> None:
    photos = [jpeg("red", (60, 40)), jpeg("blue", (31, 64)), jpeg("green", (300, 200))]
    together = run_batch(model, LIMITS, Sizes().append, photos)
    alone = [run_batch(model, LIMITS, Sizes().append, [photo])[0] for photo in photos]
    for batched, single in zip(together, alone, strict=True):
        assert isinstance(batched, Scores)
        assert isinstance(single, Scores)
        assert np.allclose(batched.probabilities, single.probabilities, atol=1e-6)


def test_labels_are_ranked_most_probable_first_and_ties_by_index(models: Path) -> None:
    write_package(models)
    (served,) = open_repository(Settings(models_dir=str(models), cores=1))
    ranking = rank(Scores(np.array([0.25, 0.5, 0.25], np.float32), 0, 0), served, 3)
    assert [(each.label, each.index, each.probability) for each in ranking] == [
        ("green", 1, 0.5),
        ("red", 0, 0.25),
        ("blue", 2, 0.25),
    ]
    assert len(rank(Scores(np.array([0.25, 0.5, 0.25], np.float32), 0, 0), served, 1)) == 1


async def never() -> None:
    await asyncio.Event().wait()


def test_a_deadline_that_passes_in_the_run_is_an_error_not_an_answer(models: Path) -> None:
    write_package(models, size=64, work=100, golden_images=1)
    settings = Settings(models_dir=str(models), cores=1)
    classifier = Classifier(open_repository(settings), settings)

    async def ask(seconds: float) -> float:
        served, began = classifier.repository.find(), time.monotonic()
        await classifier.classify(served, [jpeg("red")], 1, began + seconds, never)
        return time.monotonic() - began

    takes_s = min(asyncio.run(ask(60)) for _ in range(3))
    with pytest.raises(DeadlineExceeded, match="before the answer was ready"):
        asyncio.run(ask(takes_s / 2))
    classifier.close()


def test_a_photo_that_expired_in_the_queue_is_an_error_of_its_request_even_if_the_loops_timer_is_late(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(models, size=64, work=100, golden_images=1)
    settings = Settings(models_dir=str(models), cores=1)
    classifier = Classifier(open_repository(settings), settings)

    async def without_timer(ticket: Ticket[Scores], _hung_up: object) -> None:
        await ticket.done

    monkeypatch.setattr(classifier_module, "_settled", without_timer)

    async def ask() -> object:
        served, now = classifier.repository.find(), time.monotonic()
        first = asyncio.create_task(classifier.classify(served, [jpeg("red")], 1, now + 60, never))
        await asyncio.sleep(0)  # it takes the only slot
        waits = classifier.classify(served, [jpeg("red")], 1, time.monotonic() + 0.001, never)
        return (await asyncio.gather(first, waits, return_exceptions=True))[1]

    error = asyncio.run(ask())
    classifier.close()
    assert isinstance(error, DeadlineExceeded)
    assert "while the request waited" in str(error)


class Runs:
    """Session runs as they are made: their sizes, and the most at once. Each takes 0.1 s."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.most = self._now = 0
        self._changing = threading.Lock()

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with self._changing:
            self.sizes.append(len(images))
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.1)
        with self._changing:
            self._now -= 1
        return np.zeros((len(images), 3), np.float32)


def classify_at_once(classifier: Classifier, photos: int) -> None:
    async def ask() -> None:
        served = classifier.repository.find()
        answer = await classifier.classify(served, [jpeg("red")] * photos, 1, time.monotonic() + 10, never)
        assert all(isinstance(each, list) for each in answer.outcomes)

    try:
        asyncio.run(ask())
    finally:
        classifier.close()


@pytest.mark.parametrize(
    ("slots", "batch", "sizes"), [(1, 1, [1] * 6), (2, 1, [1] * 6), (1, 2, [2] * 3), (2, 2, [2] * 3)]
)
def test_as_many_batches_run_at_once_and_as_large_as_the_plan_says(
    models: Path, monkeypatch: pytest.MonkeyPatch, slots: int, batch: int, sizes: list[int]
) -> None:
    write_package(models, plan={"cores": 2, "slots": slots, "intra_op_threads": 1, "max_batch_size": batch})
    settings, runs = Settings(models_dir=str(models), cores=2), Runs()
    repository = open_repository(settings)
    monkeypatch.setattr(Model, "infer", lambda _, images: runs.infer(images))
    classify_at_once(Classifier(repository, settings), 6)
    assert (runs.most, runs.sizes) == (slots, sizes)


def test_images_that_wait_are_counted_down_as_slots_take_them(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(models, plan={"cores": 2, "slots": 1, "intra_op_threads": 1, "max_batch_size": 1})
    settings, waiting = Settings(models_dir=str(models), cores=2), list[float]()
    repository = open_repository(settings)
    gauge = repository.find().meters.queue_images

    def infer(_: Model, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        waiting.append(gauge._value.get())
        return np.zeros((len(images), 3), np.float32)

    monkeypatch.setattr(Model, "infer", infer)
    classify_at_once(Classifier(repository, settings), 4)
    assert waiting[1:] == [2, 1, 0]  # the first may be taken before the request has counted its own


@pytest.mark.parametrize(("slots", "threads"), [(1, 2), (2, 2), (2, 1)])
def test_a_model_is_one_session_of_the_plans_threads_whatever_its_slots(
    models: Path, monkeypatch: pytest.MonkeyPatch, slots: int, threads: int
) -> None:
    write_package(models, plan={"cores": 2, "slots": slots, "intra_op_threads": threads, "max_batch_size": 1})
    sessions: list[onnxruntime.InferenceSession] = []

    def recording(*arguments: object, **options: object) -> onnxruntime.InferenceSession:
        sessions.append(session(*arguments, **options))
        return sessions[-1]

    session = onnxruntime.InferenceSession
    monkeypatch.setattr(model_module.ort, "InferenceSession", recording)
    settings = Settings(models_dir=str(models), cores=2)
    classify_at_once(Classifier(open_repository(settings), settings), 4)
    assert [each.get_session_options().intra_op_num_threads for each in sessions] == [threads]
