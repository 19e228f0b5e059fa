"""One queue for all models: submit() on the event loop, slot threads that take batches and run them.

It knows no image, no model and no HTTP: payloads go to a queue's `run` in batches, and each outcome to its own ticket.
"""

import asyncio
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from service.errors import DeadlineExceeded, QueueFull, ShuttingDown

T = TypeVar("T")
R = TypeVar("R")
_LAST = sys.float_info.max  # later than any time, sooner than never
_RECENT = 0.1  # weight of the newest batch in the running mean of seconds an item


@dataclass(eq=False, slots=True)
class Ticket(Generic[R]):
    """What a sender holds: `done` is set once every payload has its outcome; a done ticket costs no more work."""

    deadline: float
    arrived: float
    left: int
    outcomes: list[R | Exception | None]
    done: asyncio.Future[None]
    waited_s: float = 0.0  # longest wait of its payloads

    def abandon(self, error: Exception) -> None:
        """Nobody waits for the outcomes any more: what still waits is dropped. On the event loop only."""
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(eq=False, slots=True)
class Item(Generic[T, R]):
    payload: T
    ticket: Ticket[R]
    index: int  # of the payload in its ticket


@dataclass(eq=False)
class Queue(Generic[T, R]):
    """What waits for one model, and how it is run.

    `run` takes 1 to `max_batch_size` payloads in a slot thread and gives as many outcomes, a result or an error each.
    """

    run: Callable[[list[T]], Sequence[R | Exception]]
    slots: int
    max_batch_size: int
    max_size: int
    max_delay_s: float = 0.0
    item_s: float = 0.0  # running mean of a slot's seconds an item
    running: int = 0
    started: float = -math.inf  # when its last batch began
    waiting: deque[Item[T, R]] = field(default_factory=deque)

    def due(self) -> float:
        """When it may run, by its own rule: at once with a full batch, else when its oldest item has waited enough."""
        if not self.waiting or self.running >= self.slots:
            return math.inf
        if len(self.waiting) >= self.max_batch_size:
            return -math.inf
        return self.waiting[0].ticket.arrived + self.max_delay_s

    def turn(self) -> tuple[int, float]:
        """Lowest goes first: fewest running, then longest without being served, so that no backlog starves another."""
        return self.running, max(self.started, self.waiting[0].ticket.arrived)

    def take(self, now: float) -> tuple[list[Item[T, R]], list[Item[T, R]]]:
        """Up to `max_batch_size` live items off the front, and the expired met on the way; the abandoned vanish."""
        live: list[Item[T, R]] = []
        expired: list[Item[T, R]] = []
        while self.waiting and len(live) < self.max_batch_size:
            item = self.waiting.popleft()
            if not item.ticket.done.done():
                (live if now < item.ticket.deadline else expired).append(item)
        return live, expired

    def sweep(self, now: float) -> list[Item[T, R]]:
        """Drop the dead wherever they stand; the expired are returned, for they are owed an answer."""
        alive = [item for item in self.waiting if not item.ticket.done.done()]
        self.waiting = deque(item for item in alive if now < item.ticket.deadline)
        return [item for item in alive if now >= item.ticket.deadline]


class Batcher:
    """`slots` threads that serve all queues, from the start until close()."""

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._queues: list[Queue[Any, Any]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, name=f"slot-{n}", daemon=True) for n in range(slots)]
        for thread in self._threads:
            thread.start()

    def add(self, queue: Queue[T, R]) -> Queue[T, R]:
        with self._changed:
            self._queues.append(queue)
        return queue

    def submit(self, queue: Queue[T, R], payloads: Sequence[T], deadline: float) -> Ticket[R]:
        """Put payloads in line, all or none. Await the ticket's `done`. On the event loop only.

        Args:
            queue: one that was added.
            payloads: at least one.
            deadline: on this batcher's clock, seconds.

        Raises:
            ValueError: no payload; its ticket would never be done.
            DeadlineExceeded: the deadline has passed.
            QueueFull: more would wait than the queue's `max_size`.
            ShuttingDown: after close().
        """
        if not payloads:
            raise ValueError("nothing to submit")
        now = self._clock()
        if now >= deadline:
            raise DeadlineExceeded("The deadline passed before the request could be queued.")
        done = asyncio.get_running_loop().create_future()
        ticket: Ticket[R] = Ticket(deadline, now, len(payloads), [None] * len(payloads), done)
        with self._changed:
            if self._closed:
                raise ShuttingDown("The service is shutting down.")
            self.admit(queue, len(payloads))
            queue.waiting.extend(Item(payload, ticket, index) for index, payload in enumerate(payloads))
            self._changed.notify(len(payloads))
        return ticket

    def admit(self, queue: Queue[T, R], count: int) -> None:
        """Raise QueueFull if `count` more would not fit even when the dead are swept out. On the event loop only."""
        if len(queue.waiting) + count <= queue.max_size:
            return
        self.sweep(queue)
        if len(queue.waiting) + count > queue.max_size:
            slots = len(self._threads)
            backlog_s = max(
                sum(len(each.waiting) * each.item_s for each in self._queues) / slots,
                len(queue.waiting) * queue.item_s / min(queue.slots, slots),
            )
            raise QueueFull("The queue is full. Send it again later.", retry_after_s=max(1, math.ceil(backlog_s)))

    def sweep(self, queue: Queue[T, R]) -> None:
        """Let go of the payloads that nobody waits for, and answer the expired. On the event loop only."""
        with self._changed:
            expired = queue.sweep(self._clock())
        settle(expired, [_expired()] * len(expired))

    def close(self) -> None:
        """Refuse what is new, answer what waits, end the threads. Blocks: not on the event loop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        while (batch := self._next()) is not None:
            queue, live, expired = batch
            if expired:
                self._hand_over(expired, [_expired()] * len(expired))
            if live:
                outcomes = self._run(queue, live)
                self._hand_over(live, outcomes)

    def _next(self) -> tuple[Queue[Any, Any], list[Item[Any, Any]], list[Item[Any, Any]]] | None:
        """The next batch, when there is one; None when closed and nothing waits."""
        with self._changed:
            while True:
                now = self._clock()
                horizon = _LAST if self._closed else now
                ready = [queue for queue in self._queues if queue.due() <= horizon]
                if ready:
                    queue = min(ready, key=Queue.turn)
                    live, expired = queue.take(now)
                    for item in live:
                        item.ticket.waited_s = max(item.ticket.waited_s, now - item.ticket.arrived)
                    if live:
                        queue.running += 1
                        queue.started = now
                    return queue, live, expired
                if self._closed and not any(queue.waiting for queue in self._queues):
                    self._changed.notify_all()  # those that wait for the last batches' slots
                    return None
                soonest = min((queue.due() for queue in self._queues), default=math.inf)
                self._changed.wait(None if soonest == math.inf else soonest - now)

    def _run(self, queue: Queue[T, R], live: list[Item[T, R]]) -> Sequence[R | Exception]:
        begun = self._clock()
        try:
            outcomes = queue.run([item.payload for item in live])
            if len(outcomes) != len(live):
                raise RuntimeError(f"a batch of {len(live)} came back as {len(outcomes)}")  # noqa: TRY301
        except BaseException as error:  # also a panic of Rust code: every waiter hears of it and the slot goes on
            outcomes = [error if isinstance(error, Exception) else RuntimeError(repr(error))] * len(live)
        item_s = (self._clock() - begun) / len(live)
        with self._changed:
            queue.running -= 1
            queue.item_s += (item_s - queue.item_s) * (_RECENT if queue.item_s else 1.0)
        return outcomes

    def _hand_over(self, items: list[Item[T, R]], outcomes: Sequence[R | Exception]) -> None:
        """From a slot's thread to the event loop, once a batch."""
        try:
            items[0].ticket.done.get_loop().call_soon_threadsafe(settle, items, outcomes)
        except RuntimeError:  # the loop is closed, and every waiter gone with it
            return


def settle(items: Iterable[Item[T, R]], outcomes: Iterable[R | Exception]) -> None:
    """Each outcome to its own ticket, whatever became of the tickets beside it. On the event loop only."""
    for item, outcome in zip(items, outcomes, strict=True):
        ticket = item.ticket
        ticket.outcomes[item.index] = outcome
        ticket.left -= 1
        if not ticket.left and not ticket.done.done():
            ticket.done.set_result(None)


def _expired() -> DeadlineExceeded:
    return DeadlineExceeded("The deadline passed while the request waited.")
