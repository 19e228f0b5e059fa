"""One load generator process: locust's FastHttpUser without its web page.

`python -m perf.load --url URL --photos DIR --users 10 --seconds 30 --out FILE` is a closed loop: every user sends its
next photo when the last was answered. With `--schedule RATExSECONDS[,...]` the sends are timed instead, and latency
counts from the *intended* send, so that a stall is seen by all the requests it should have answered (coordinated
omission). Ctrl-C or SIGTERM ends the load and keeps what was measured.
"""

from locust import FastHttpUser, constant, task  # first: it patches the standard library for gevent
from locust.env import Environment
from locust.exception import StopUser

# isort: split
import argparse
import contextlib
import csv
import itertools
import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
from geventhttpclient.client import HTTPClientPool

from perf import schedule
from perf.photos import CONTENT_TYPE, Photo, load
from perf.samples import Sample

TIMEOUT_S = 30.0
SENDERS_S = 4.0  # senders kept for a timed load: so many seconds of its highest rate can be under way at once
Send = tuple[float, int]  # intended send (Unix time), index of the photo


class Sender(FastHttpUser):
    """One connection that sends what the load says next."""

    abstract = True
    wait_time = constant(0)
    connection_timeout = network_timeout = TIMEOUT_S
    max_retries = 0
    path: str
    photos: list[Photo]
    sends: Iterator[Send]  # shared by all senders

    @task
    def send(self) -> None:
        """Wait for the intended moment of the next send, then upload its photo."""
        at_s, photo = next(self.sends, (None, 0))
        if at_s is None:
            raise StopUser
        gevent.sleep(max(0.0, at_s - time.time()))
        context = {"intended": at_s, "photo": photo}
        headers = {"Content-Type": CONTENT_TYPE}
        body: Any = self.photos[photo].body  # bytes are sent as they are; the annotation of `data` leaves them out
        self.client.post(self.path, data=body, headers=headers, context=context)


def closed_loop(seconds: float, photos: int, first: int) -> Iterator[Send]:
    """A send at every moment it is asked for, until the time since the first is over."""
    ends = time.time() + seconds
    for k in itertools.count(first):
        if (now := time.time()) >= ends:
            return
        yield now, k % photos


def timed(steps: list[tuple[float, float]], photos: int, share: tuple[int, int]) -> Iterator[Send]:
    """The sends of a schedule that are this process's, from the moment of the first on."""
    began, (number, processes) = time.time(), share
    due = ((began + at_s, k % photos) for k, at_s in enumerate(schedule.intended_sends(steps)))
    yield from itertools.islice(due, number - 1, None, processes)


def record(samples: list[Sample], origin: float) -> Any:
    """A listener of locust's `request` event that keeps each request as a Sample, timed from `origin` (Unix time)."""

    def listen(start_time: float, response_time: float, response_length: int, response: Any, **others: Any) -> None:
        intended, photo = others["context"]["intended"], others["context"]["photo"]
        latency_ms = (start_time - intended) * 1000 + response_time
        status = getattr(response, "status_code", 0) or 0
        if others["exception"] and status // 100 == 2:  # its head said so, its body did not arrive
            status = 0
        samples.append(Sample(intended - origin, latency_ms, status, response_length, photo))

    return listen


def generate(url: str, photos: list[Photo], users: int, sends: Iterator[Send], listen: Any) -> None:
    """Send until `sends` is used up and every answer is in."""
    parts = urlsplit(url)
    shared = {"host": f"{parts.scheme}://{parts.netloc}", "path": f"{parts.path}?{parts.query}", "abstract": False}
    # A sender takes of the free connections the one used last: a timed load has far more senders than it needs, and a
    # large photo over a young loopback connection may wait 40 ms for an acknowledgement.
    pool = HTTPClientPool(concurrency=users, connection_timeout=TIMEOUT_S, network_timeout=TIMEOUT_S)
    user = type("User", (Sender,), {**shared, "photos": photos, "sends": sends, "client_pool": pool})
    environment = Environment(user_classes=[user])
    environment.events.request.add_listener(listen)  # type: ignore[no-untyped-call]
    runner = environment.create_local_runner()
    runner.spawn_users({user.__name__: users})
    runner.user_greenlets.join()


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.load", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--schedule", type=schedule.parse)
    parser.add_argument("--origin", type=float, default=time.time(), help="Unix time that samples count from")
    parser.add_argument("--share", default="1/1", help="this process's part of the load: number/processes")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(arguments)


def planned(given: argparse.Namespace, photos: int) -> tuple[int, Iterator[Send]]:
    """Senders and sends of this process's share of the load."""
    number, processes = map(int, given.share.split("/"))
    if given.schedule is None:
        users = len(range(number - 1, given.users, processes))
        return users, closed_loop(given.seconds, photos, number - 1)
    highest = max(rate for rate, _ in given.schedule) / processes
    return max(10, round(highest * SENDERS_S)), timed(given.schedule, photos, (number, processes))


def main() -> None:
    """Generate the load and write its samples, whole or as far as it came."""
    given = options()
    logging.disable(logging.WARNING)
    photos = load(given.photos)
    users, sends = planned(given, len(photos))
    samples: list[Sample] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        generate(given.url, photos, users, sends, record(samples, given.origin))
    with given.out.open("w", newline="") as file:
        csv.writer(file).writerows(sorted(samples))


if __name__ == "__main__":
    main()
