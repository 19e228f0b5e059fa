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
def load(url: str, body: bytes, users: int = 4, kept: int = 0) -> Iterator[Answers]:
    """POST `body` to /predict from `users` at once until the block ends.

    `kept` of them keep their connection, the others have a new one for every request: nginx before 1.27.4 closes kept
    ones as replicas come and go, also just when their client sends.
    """
    answers, stop = Answers(), threading.Event()
    threads = [threading.Thread(target=_user, args=(url, body, answers, stop, k < kept)) for k in range(users)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _user(url: str, body: bytes, answers: Answers, stop: threading.Event, keeps: bool) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    while not stop.wait(PAUSE_S):
        try:
            connection.request("POST", "/predict", body, {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            answer.read()  # raises where it is cut
            answers.counts[str(answer.status)] += 1
        except (OSError, http.client.HTTPException) as error:
            answers.counts[type(error).__name__] += 1
            connection.close()
        if not keeps:
            connection.close()
    connection.close()
