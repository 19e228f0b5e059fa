"""The batcher on a controlled clock, with a `run` that the test holds and lets go."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import wraps
from typing import Any

import pytest

from service.batcher import Batcher, Queue, Ticket
from service.errors import ClientGone, DeadlineExceeded, QueueFull, ShuttingDown

LATE = 1e9  # a deadline that no test reaches


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Kitchen:
    """A `run` that records each batch, then waits until the test lets it go."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.held = threading.Semaphore(0)
        self.began = threading.Semaphore(0)
        self.answer: Callable[[list[str]], Sequence[str | Exception]] = lambda batch: [each.upper() for each in batch]

    def run(self, batch: list[str]) -> Sequence[str | Exception]:
        self.batches.append(batch)
        self.began.release()
        assert self.held.acquire(timeout=5)
        return self.answer(batch)

    async def begun(self) -> None:
        """Until one more batch has been taken."""
        assert await asyncio.to_thread(self.began.acquire, timeout=5)

    def let_go(self, batches: int = 100) -> None:
        self.held.release(batches)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kitchen() -> Kitchen:
    return Kitchen()


@pytest.fixture
def batcher(clock: Clock, kitchen: Kitchen) -> Iterator[Batcher]:
    running = Batcher(1, clock)
    yield running
    kitchen.let_go()
    running.close()


def queue_of(kitchen: Kitchen, **rule: Any) -> Queue[str, str]:
    defaults: dict[str, Any] = {"slots": 1, "max_batch_size": 4, "max_size": 100}
    return Queue(kitchen.run, **(defaults | rule))


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 10))

    return run


async def outcomes(ticket: Ticket[str]) -> list[str | Exception | None]:
    await ticket.done
    return ticket.outcomes


async def occupied(batcher: Batcher, kitchen: Kitchen, queue: Queue[str, str]) -> Ticket[str]:
    """The slot is busy with a batch of its own from here on."""
    ticket = batcher.submit(queue, ["first"], LATE)
    await kitchen.begun()
    return ticket


@asynchronous
async def test_a_single_payload_runs_at_once_alone(batcher: Batcher, kitchen: Kitchen) -> None:
    queue = batcher.add(queue_of(kitchen))
    kitchen.let_go()
    assert await outcomes(batcher.submit(queue, ["a"], LATE)) == ["A"]
    assert kitchen.batches == [["a"]]


@asynchronous
async def test_a_free_slot_takes_all_that_waits_up_to_the_full_batch(batcher: Batcher, kitchen: Kitchen) -> None:
    queue = batcher.add(queue_of(kitchen, max_batch_size=3))
    await occupied(batcher, kitchen, queue)
    tickets = [batcher.submit(queue, [name], LATE) for name in "abcde"]
    kitchen.let_go()
    assert [await outcomes(ticket) for ticket in tickets] == [["A"], ["B"], ["C"], ["D"], ["E"]]
    assert kitchen.batches == [["first"], ["a", "b", "c"], ["d", "e"]]


@asynchronous
async def test_payloads_are_counted_not_requests(batcher: Batcher, kitchen: Kitchen) -> None:
    queue = batcher.add(queue_of(kitchen, max_batch_size=4))
    await occupied(batcher, kitchen, queue)
    three, two = batcher.submit(queue, ["a", "b", "c"], LATE), batcher.submit(queue, ["d", "e"], LATE)
    kitchen.let_go()
    assert await outcomes(two) == ["D", "E"]
    assert await outcomes(three) == ["A", "B", "C"]
    assert kitchen.batches[1:] == [["a", "b", "c", "d"], ["e"]]


@asynchronous
async def test_an_empty_queue_runs_nothing(batcher: Batcher, kitchen: Kitchen) -> None:
    batcher.add(queue_of(kitchen))
    await asyncio.sleep(0.05)
    assert kitchen.batches == []


@asynchronous
async def test_an_abandoned_request_is_never_run(batcher: Batcher, kitchen: Kitchen) -> None:
    queue = batcher.add(queue_of(kitchen))
    await occupied(batcher, kitchen, queue)
    gone, stays = batcher.submit(queue, ["gone", "gone too"], LATE), batcher.submit(queue, ["stays"], LATE)
    gone.abandon(ClientGone("it hung up"))
    kitchen.let_go()
    assert await outcomes(stays) == ["STAYS"]
    assert kitchen.batches == [["first"], ["stays"]]
    with pytest.raises(ClientGone):
        await gone.done


@asynchronous
async def test_a_batch_of_abandoned_requests_alone_is_no_batch(batcher: Batcher, kitchen: Kitchen) -> None:
    queue = batcher.add(queue_of(kitchen))
    await occupied(batcher, kitchen, queue)
    for ticket in [batcher.submit(queue, [name], LATE) for name in "abcd"]:
        ticket.abandon(ClientGone("it hung up"))
        assert isinstance(ticket.done.exception(), ClientGone)
    kitchen.let_go()
    assert await outcomes(batcher.submit(queue, ["later"], LATE)) == ["LATER"]
    assert kitchen.batches == [["first"], ["later"]]
    assert queue.running == 0


@asynchronous
async def test_nothing_to_submit_is_a_mistake(batcher: Batcher, kitchen: Kitchen) -> None:
    queue = batcher.add(queue_of(kitchen))
    with pytest.raises(ValueError, match="nothing"):
        batcher.submit(queue, [], LATE)
    assert not queue.waiting


@asynchronous
async def test_a_cancelled_waiter_hurts_nobody(batcher: Batcher, kitchen: Kitchen) -> None:
    queue = batcher.add(queue_of(kitchen))
    await occupied(batcher, kitchen, queue)
    waiting, running = [asyncio.create_task(outcomes(batcher.submit(queue, [name], LATE))) for name in "ab"]
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    kitchen.let_go(1)
    await kitchen.begun()
    third = batcher.submit(queue, ["c"], LATE)
    running.cancel()  # in the middle of its batch
    kitchen.let_go()
    assert await outcomes(third) == ["C"]
    assert kitchen.batches == [["first"], ["b"], ["c"]]


@asynchronous
async def test_an_expired_request_is_refused_without_being_run(
    batcher: Batcher, kitchen: Kitchen, clock: Clock
) -> None:
    queue = batcher.add(queue_of(kitchen))
    await occupied(batcher, kitchen, queue)
    soon, later = batcher.submit(queue, ["soon"], clock.now + 1), batcher.submit(queue, ["later"], clock.now + 3)
    clock.now += 2
    kitchen.let_go()
    assert await outcomes(later) == ["LATER"]
    (error,) = await outcomes(soon)
    assert isinstance(error, DeadlineExceeded)
    assert kitchen.batches == [["first"], ["later"]]
    assert later.waited_s == 2


@asynchronous
async def test_expired_requests_are_answered_though_nothing_else_waits(
    batcher: Batcher, kitchen: Kitchen, clock: Clock
) -> None:
    queue = batcher.add(queue_of(kitchen))
    await occupied(batcher, kitchen, queue)
    soon = batcher.submit(queue, ["soon"], clock.now + 1)
    clock.now += 1
    kitchen.let_go()
    (error,) = await outcomes(soon)
    assert isinstance(error, DeadlineExceeded)


@asynchronous
async def test_a_request_past_its_deadline_is_not_queued(batcher: Batcher, kitchen: Kitchen, clock: Clock) -> None:
    queue = batcher.add(queue_of(kitchen))
    with pytest.raises(DeadlineExceeded):
        batcher.submit(queue, ["a"], clock.now)
    assert not queue.waiting


@asynchronous
async def test_a_failing_batch_reaches_every_waiter_and_the_slot_goes_on(batcher: Batcher, kitchen: Kitchen) -> None:
    queue = batcher.add(queue_of(kitchen, max_batch_size=2))
    await occupied(batcher, kitchen, queue)

    def fail_once(batch: list[str]) -> Sequence[str | Exception]:
        if batch == ["a", "b"]:
            raise MemoryError("no room")
        return batch

    kitchen.answer = fail_once
    tickets = [batcher.submit(queue, [name], LATE) for name in "abc"]
    kitchen.let_go()
    for ticket in tickets[:2]:
        assert [repr(each) for each in await outcomes(ticket)] == ["MemoryError('no room')"]
    assert await outcomes(tickets[2]) == ["c"]


class Panic(BaseException):
    """As Rust code raises it."""


@asynchronous
async def test_a_panic_is_an_error_and_the_slot_goes_on(batcher: Batcher, kitchen: Kitchen) -> None:
    queue = batcher.add(queue_of(kitchen))

    def panic_once(batch: list[str]) -> Sequence[str | Exception]:
        if batch == ["a"]:
            raise Panic
        return batch

    kitchen.answer = panic_once
    kitchen.let_go()
    assert [repr(each) for each in await outcomes(batcher.submit(queue, ["a"], LATE))] == ["RuntimeError('Panic()')"]
    assert await outcomes(batcher.submit(queue, ["b"], LATE)) == ["b"]


@asynchronous
async def test_one_payload_s_error_is_its_own(batcher: Batcher, kitchen: Kitchen) -> None:
    queue = batcher.add(queue_of(kitchen))
    kitchen.answer = lambda batch: [ValueError(each) if each == "bad" else each for each in batch]
    kitchen.let_go()
    good, bad = await outcomes(batcher.submit(queue, ["good", "bad"], LATE))
    assert (good, repr(bad)) == ("good", "ValueError('bad')")


@pytest.mark.parametrize("answer", [[], ["one"], ["one", "two", "three"]])
@asynchronous
async def test_a_wrong_count_is_an_error_for_all(batcher: Batcher, kitchen: Kitchen, answer: list[str]) -> None:
    queue = batcher.add(queue_of(kitchen))
    kitchen.answer = lambda batch: answer if len(batch) == 2 else batch
    kitchen.let_go()
    for error in await outcomes(batcher.submit(queue, ["a", "b"], LATE)):
        assert str(error) == f"a batch of 2 came back as {len(answer)}"
    assert await outcomes(batcher.submit(queue, ["c"], LATE)) == ["c"]


@asynchronous
async def test_beyond_the_limit_a_request_is_shed_whole_with_a_computed_wait(
    batcher: Batcher, kitchen: Kitchen
) -> None:
    queue = batcher.add(queue_of(kitchen, max_size=4, item_s=2.5))
    await occupied(batcher, kitchen, queue)
    batcher.submit(queue, ["a", "b", "c"], LATE)
    with pytest.raises(QueueFull) as shed:
        batcher.submit(queue, ["d", "e"], LATE)
    assert shed.value.retry_after_s == 8  # 3 that wait x 2.5 s, one slot
    assert len(queue.waiting) == 3
    batcher.submit(queue, ["d"], LATE)


@asynchronous
async def test_a_model_of_one_slot_is_not_promised_both(clock: Clock, kitchen: Kitchen) -> None:
    batcher = Batcher(2, clock)
    queue = batcher.add(queue_of(kitchen, max_size=3, item_s=1.0))
    await occupied(batcher, kitchen, queue)
    batcher.submit(queue, ["a", "b", "c"], LATE)
    with pytest.raises(QueueFull) as shed:
        batcher.submit(queue, ["d"], LATE)
    assert shed.value.retry_after_s == 3
    kitchen.let_go()
    await asyncio.to_thread(batcher.close)


@asynchronous
async def test_the_dead_make_room_before_anyone_is_shed(batcher: Batcher, kitchen: Kitchen, clock: Clock) -> None:
    queue = batcher.add(queue_of(kitchen, max_size=2))
    await occupied(batcher, kitchen, queue)
    expired, gone = batcher.submit(queue, ["expired"], clock.now + 1), batcher.submit(queue, ["gone"], LATE)
    gone.abandon(ClientGone("it hung up"))
    clock.now += 1
    alive = batcher.submit(queue, ["c", "d"], LATE)
    (error,) = await outcomes(expired)
    assert isinstance(error, DeadlineExceeded)
    kitchen.let_go()
    assert await outcomes(alive) == ["C", "D"]
    with pytest.raises(ClientGone):
        await gone.done


@asynchronous
async def test_the_oldest_waiting_request_goes_first_across_queues(
    batcher: Batcher, kitchen: Kitchen, clock: Clock
) -> None:
    queues = [batcher.add(queue_of(kitchen, max_batch_size=1)) for _ in range(3)]
    await occupied(batcher, kitchen, queues[0])
    tickets = []
    for queue, name in ((queues[2], "a"), (queues[1], "b"), (queues[0], "c")):
        clock.now += 1
        tickets.append(batcher.submit(queue, [name], LATE))
    kitchen.let_go()
    for ticket in tickets:
        await ticket.done
    assert kitchen.batches[1:] == [["a"], ["b"], ["c"]]


@asynchronous
async def test_a_backlog_does_not_stop_another_queue(batcher: Batcher, kitchen: Kitchen, clock: Clock) -> None:
    slow, fast = (batcher.add(queue_of(kitchen, max_batch_size=1)) for _ in range(2))
    await occupied(batcher, kitchen, slow)
    backlog = batcher.submit(slow, [f"slow{n}" for n in range(50)], LATE)
    clock.now += 1
    ticket = batcher.submit(fast, ["fast"], LATE)
    clock.now += 1
    kitchen.let_go(3)
    assert await outcomes(ticket) == ["FAST"]
    assert kitchen.batches[1:3] == [["slow0"], ["fast"]]  # the backlog is older, but gets its turn once
    kitchen.let_go()
    backlog.abandon(ClientGone("enough"))
    with pytest.raises(ClientGone):
        await backlog.done


@asynchronous
async def test_a_backlog_in_every_slot_gives_up_the_next_one_that_is_free(clock: Clock) -> None:
    kitchen = Kitchen()
    batcher = Batcher(2, clock)
    slow, fast = (batcher.add(queue_of(kitchen, max_batch_size=1, slots=2)) for _ in range(2))
    tickets = [batcher.submit(slow, ["s1", "s2", "s3", "s4"], LATE)]
    await kitchen.begun()
    await kitchen.begun()
    clock.now += 1
    tickets.append(batcher.submit(fast, ["fast"], LATE))
    kitchen.let_go(1)
    await kitchen.begun()
    assert kitchen.batches == [["s1"], ["s2"], ["fast"]]  # s3 is older, but the other slot is its model's
    kitchen.let_go()
    for ticket in tickets:
        await ticket.done
    await asyncio.to_thread(batcher.close)


@asynchronous
async def test_a_queue_never_runs_in_more_slots_than_its_own_nor_all_in_more_than_there_are(clock: Clock) -> None:
    kitchen = Kitchen()
    batcher = Batcher(2, clock)
    narrow, wide = (
        batcher.add(queue_of(kitchen, max_batch_size=1)),
        batcher.add(queue_of(kitchen, max_batch_size=1, slots=2)),
    )
    tickets = [batcher.submit(narrow, ["n1", "n2", "n3"], LATE)]
    await kitchen.begun()
    await asyncio.sleep(0.05)
    assert kitchen.batches == [["n1"]]  # the second slot stays free for others
    tickets.append(batcher.submit(wide, ["w1", "w2", "w3"], LATE))
    await kitchen.begun()
    await asyncio.sleep(0.05)
    assert kitchen.batches == [["n1"], ["w1"]]
    assert narrow.running + wide.running == 2
    kitchen.let_go()
    for ticket in tickets:
        await ticket.done
    await asyncio.to_thread(batcher.close)


@asynchronous
async def test_with_a_delay_a_batch_waits_until_it_is_full_or_its_oldest_is_due(
    batcher: Batcher, kitchen: Kitchen, clock: Clock
) -> None:
    queue = batcher.add(queue_of(kitchen, max_batch_size=2, max_delay_s=0.02))
    kitchen.let_go()
    first = batcher.submit(queue, ["a"], LATE)
    await asyncio.sleep(0.06)
    assert kitchen.batches == []  # the clock stands
    second = batcher.submit(queue, ["b"], LATE)
    assert [await outcomes(first), await outcomes(second)] == [["A"], ["B"]]
    third = batcher.submit(queue, ["c"], LATE)
    clock.now += 0.02
    assert await outcomes(third) == ["C"]
    assert kitchen.batches == [["a", "b"], ["c"]]


@asynchronous
async def test_close_answers_what_waits_and_refuses_what_is_new(clock: Clock) -> None:
    kitchen = Kitchen()
    batcher = Batcher(2, clock)
    queue = batcher.add(queue_of(kitchen, max_delay_s=60))
    tickets = [batcher.submit(queue, [name], LATE) for name in "abc"]
    closing = asyncio.create_task(asyncio.to_thread(batcher.close))
    await kitchen.begun()
    with pytest.raises(ShuttingDown):
        batcher.submit(queue, ["d"], LATE)
    kitchen.let_go()
    assert [await outcomes(ticket) for ticket in tickets] == [["A"], ["B"], ["C"]]
    await closing
    assert not any(thread.name.startswith("slot-") and thread.is_alive() for thread in batcher._threads)


@asynchronous
async def test_close_ends_also_the_slots_that_may_not_help_with_what_waits(clock: Clock) -> None:
    kitchen = Kitchen()
    batcher = Batcher(2, clock)
    ticket = batcher.submit(batcher.add(queue_of(kitchen, max_batch_size=1)), ["a", "b", "c"], LATE)
    await kitchen.begun()
    closing = asyncio.create_task(asyncio.to_thread(batcher.close))
    await asyncio.sleep(0.05)
    kitchen.let_go()
    assert await outcomes(ticket) == ["A", "B", "C"]
    await closing


@asynchronous
async def test_a_request_abandoned_in_the_run_takes_nothing_from_those_behind_it(
    batcher: Batcher, kitchen: Kitchen
) -> None:
    queue = batcher.add(queue_of(kitchen))
    await occupied(batcher, kitchen, queue)
    gone, behind = batcher.submit(queue, ["gone"], LATE), batcher.submit(queue, ["behind"], LATE)
    kitchen.let_go(1)
    await kitchen.begun()
    gone.abandon(ClientGone("it hung up"))
    kitchen.let_go()
    assert await outcomes(behind) == ["BEHIND"]
    assert kitchen.batches[1] == ["gone", "behind"]
    with pytest.raises(ClientGone):
        await gone.done


def test_a_loop_that_is_gone_does_not_kill_the_slot(clock: Clock) -> None:
    kitchen = Kitchen()
    batcher = Batcher(1, clock)
    queue = batcher.add(queue_of(kitchen))

    async def leave_it() -> None:
        batcher.submit(queue, ["left"], LATE)
        await kitchen.begun()

    async def ask() -> list[str | Exception | None]:
        return await outcomes(batcher.submit(queue, ["b"], LATE))

    asyncio.run(leave_it())
    kitchen.let_go()
    assert asyncio.run(ask()) == ["B"]
    batcher.close()


@asynchronous
async def test_the_mean_time_of_an_item_follows_what_was_run(batcher: Batcher, kitchen: Kitchen, clock: Clock) -> None:
    queue = batcher.add(queue_of(kitchen))
    ticket = await occupied(batcher, kitchen, queue)
    clock.now += 3
    kitchen.let_go()
    await ticket.done
    assert queue.item_s == 3
