"""From uploaded photos to ranked labels: door checks, queue, slot (decode, infer), rank."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from service import image
from service.batcher import Batcher, Queue, Ticket
from service.cpu import cores
from service.errors import ClientGone, DeadlineExceeded
from service.image import Contract, ImageError, Limits
from service.model import Model
from service.repository import Repository, Served
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Scores:
    """What a slot makes of one photo; the times are those of the batch it was in, seconds."""

    probabilities: NDArray[np.float32]  # [C]
    decode_s: float
    infer_s: float


class Prediction(msgspec.Struct, frozen=True):
    label: str
    index: int  # of the model's output
    probability: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One outcome a photo, in their order: ranked predictions, or why there are none."""

    served: Served
    outcomes: Sequence[list[Prediction] | Exception]
    stages_s: dict[str, float]  # queue, decode, infer: of the slowest photo


class Classifier:
    """The models of a repository behind one batcher; it starts ready and ends with close(), which blocks."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self.repository = repository
        self._limits = Limits(settings.max_image_bytes, settings.max_image_pixels)
        self._batcher = Batcher(settings.cores or cores())
        self._queues = {served: self._batcher.add(self._queue(served, settings)) for served in repository}
        self.close = self._batcher.close

    def admit(self, served: Served) -> None:
        """Raise QueueFull before a body is read that could not be queued."""
        self._batcher.admit(self._queues[served], 1)

    async def classify(
        self,
        served: Served,
        photos: Sequence[bytes],
        top_k: int,
        deadline: float,
        hung_up: Callable[[], Awaitable[None]],
    ) -> Answer:
        """Rank the labels of each photo.

        Args:
            served: the model, from `repository`.
            photos: files as they were uploaded.
            top_k: labels in each ranking, at least 1.
            deadline: `time.monotonic()` seconds.
            hung_up: returns when nobody waits for the answer any more.

        Raises:
            QueueFull, DeadlineExceeded, ShuttingDown, ClientGone: of the whole request. What is wrong with one photo
            is its outcome.
        """
        outcomes: list[Any] = [self._refusal(photo) for photo in photos]
        accepted = [index for index, refusal in enumerate(outcomes) if refusal is None]
        stages_s: dict[str, float] = {}
        if accepted:
            queue = self._queues[served]
            ticket = self._batcher.submit(queue, [photos[index] for index in accepted], deadline)
            served.meters.queue_images.set(len(queue.waiting))
            try:
                await _settled(ticket, hung_up)
            except (ClientGone, DeadlineExceeded):
                self._batcher.sweep(queue)
                raise
            finally:
                served.meters.queue_images.set(len(queue.waiting))
            _check_deadline(ticket)
            stages_s = _stages_s(ticket)
            for index, scores in zip(accepted, ticket.outcomes, strict=True):
                outcomes[index] = rank(scores, served, top_k) if isinstance(scores, Scores) else scores
        return Answer(served, outcomes, stages_s)

    def _queue(self, served: Served, settings: Settings) -> Queue[bytes, Scores]:
        meters = served.meters

        def run(photos: Sequence[bytes]) -> Sequence[Scores | Exception]:
            meters.queue_images.set(len(queue.waiting))
            return run_batch(served.model, self._limits, meters.batch_images.observe, photos)

        queue: Queue[bytes, Scores] = Queue(
            run=run,
            slots=served.plan.slots,
            max_batch_size=served.plan.max_batch_size,
            max_size=settings.max_queue_size,
            max_delay_s=settings.max_queue_delay_us / 1e6,
            item_s=served.image_s,
        )
        return queue

    def _refusal(self, photo: bytes) -> ImageError | None:
        try:
            image.inspect(photo, self._limits)
        except ImageError as error:
            return error
        return None


def run_batch(
    model: Model, limits: Limits, observe_size: Callable[[int], None], photos: Sequence[bytes]
) -> Sequence[Scores | Exception]:
    """In a slot's thread: decode each photo, run the session once. A bad photo is its own outcome and leaves."""
    begun = time.perf_counter()
    decoded = [_decode(photo, model.metadata.contract, limits) for photo in photos]
    pixels = [each for each in decoded if isinstance(each, np.ndarray)]
    if not pixels:
        return [each for each in decoded if isinstance(each, Exception)]
    observe_size(len(pixels))
    started = time.perf_counter()
    rows = iter(model.infer(pixels[0][np.newaxis] if len(pixels) == 1 else np.stack(pixels)))
    times = (started - begun, time.perf_counter() - started)
    return [each if isinstance(each, Exception) else Scores(next(rows), *times) for each in decoded]


def _decode(photo: bytes, contract: Contract, limits: Limits) -> NDArray[np.uint8] | Exception:
    try:
        return image.decode(photo, contract, limits)
    except Exception as error:  # whatever it is, the photos beside this one are answered
        return error


def rank(scores: Scores, served: Served, top_k: int) -> list[Prediction]:
    """The `top_k` most probable labels, most probable first, ties in the order of the output."""
    labels, probabilities = served.model.metadata.labels, scores.probabilities.tolist()
    best = sorted(range(len(labels)), key=probabilities.__getitem__, reverse=True)[:top_k]
    return [Prediction(labels[n], n, round(probabilities[n], 6)) for n in best]


async def _settled(ticket: Ticket[Scores], hung_up: Callable[[], Awaitable[None]]) -> None:
    """Until the ticket is done; its photos that still wait are dropped when the client hangs up first.

    Raises:
        ClientGone, DeadlineExceeded: it is not done by then.
    """

    async def watch() -> None:
        await hung_up()
        ticket.abandon(ClientGone("The client hung up."))

    watcher = asyncio.create_task(watch())
    try:
        async with asyncio.timeout(ticket.deadline - time.monotonic()):
            await ticket.done
    except TimeoutError:
        raise DeadlineExceeded("The deadline passed before the answer was ready.") from None
    finally:
        watcher.cancel()


def _check_deadline(ticket: Ticket[Scores]) -> None:
    if time.monotonic() >= ticket.deadline:
        expired = [each for each in ticket.outcomes if isinstance(each, DeadlineExceeded)]
        raise expired[0] if expired else DeadlineExceeded("The deadline passed before the answer was ready.")


def _stages_s(ticket: Ticket[Scores]) -> dict[str, float]:
    scores = [each for each in ticket.outcomes if isinstance(each, Scores)]
    return {
        "queue": ticket.waited_s,
        "decode": max((each.decode_s for each in scores), default=0.0),
        "infer": max((each.infer_s for each in scores), default=0.0),
    }
