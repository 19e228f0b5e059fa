"""A small closed-loop load that counts what came back."""

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

PAUSE_S = 0.02  # the cores are the replicas'


@dataclass
class Answers:
    """Statuses answered, and errors of connections by name."""

    counts: Counter[str] = field(default_factory=Counter)

    def failed(self) -> dict[str, int]:
        return {what: n for what, n in self.counts.items() if what != "200"}

    def wait_for(self, more: int) -> None:
        """Return when so many more requests were answered with 200."""
        wanted, deadline = self.counts["200"] + more, time.monotonic() + 60
        while self.counts["200"] < wanted:
            assert time.monotonic() < deadline, f"no progress: {self.counts}"
            time.sleep(0.02)


@contextmanager
def load(url: str, body: bytes, users: int = 4) -> Iterator[Answers]:
    """POST `body` to /predict from `users` at once until the block ends.

    Every request has a connection of its own: one that idles may be closed by a server that has reached its limit of
    time, also just when its client sends, and whoever keeps connections must be ready to send again.
    """
    answers, stop = Answers(), threading.Event()
    threads = [threading.Thread(target=_user, args=(url, body, answers, stop)) for _ in range(users)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _user(url: str, body: bytes, answers: Answers, stop: threading.Event) -> None:
    while not stop.wait(PAUSE_S):
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        try:
            connection.request("POST", "/predict", body, {"Content-Type": "image/jpeg"})
            answers.counts[str(connection.getresponse().status)] += 1
        except (OSError, http.client.HTTPException) as error:
            answers.counts[type(error).__name__] += 1
        finally:
            connection.close()
