"""One connection that sends the photos in turn: an idle stack's answer times, and (many at once) its warm-up."""

import http.client
import threading
import time
from urllib.parse import urlsplit

from perf.photos import CONTENT_TYPE, Photo
from perf.samples import Sample

TIMEOUT_S = 30.0
EACH = 20  # photos that are all sent, however short the time
REST = 2.0  # answer times between two requests: a probe without rest would itself use up the quota of half a core


def probe(url: str, photos: list[Photo], seconds: float, rest: float = REST, least: int | None = None) -> list[Sample]:
    """Send until the time is over; an unanswered request is a sample with status 0.

    Args:
        rest: pause after each answer, in its own answer times.
        least: requests sent however short the time; every photo once by default, of many the first.
    """
    samples: list[Sample] = []
    began, due = time.monotonic(), _Due(photos, seconds, rest, min(EACH, len(photos)) if least is None else least)
    while due.more(len(samples)):
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
        try:
            _exchange(connection, url, due, began, samples)
        except (OSError, http.client.HTTPException):
            now = time.monotonic()
            samples.append(Sample(now - began, 0.0, 0, 0, len(samples) % len(photos)))
            time.sleep(0.05)  # no faster than a refused connection can be tried sensibly
        finally:
            connection.close()
    return samples


class _Due:
    """Whether another photo is to be sent, which, and after what pause."""

    def __init__(self, photos: list[Photo], seconds: float, rest: float, least: int) -> None:
        self.photos, self.ends, self.rest, self.least = photos, time.monotonic() + seconds, rest, least

    def more(self, sent: int) -> bool:
        return time.monotonic() < self.ends or sent < self.least


def _exchange(connection: http.client.HTTPConnection, url: str, due: _Due, began: float, samples: list[Sample]) -> None:
    parts = urlsplit(url)
    while due.more(len(samples)):
        photo, sent = len(samples) % len(due.photos), time.monotonic()
        body, headers = due.photos[photo].body, {"Content-Type": CONTENT_TYPE}
        connection.request("POST", f"{parts.path}?{parts.query}", body, headers)
        answer = connection.getresponse()
        size = len(answer.read())
        took = time.monotonic() - sent
        samples.append(Sample(sent - began, 1000 * took, answer.status, size, photo))
        time.sleep(due.rest * took)


def warm(url: str, photos: list[Photo], users: int, seconds: float) -> None:
    """Load a stack for a while, each user at least once, and forget what it answered."""
    threads = [threading.Thread(target=probe, args=(url, photos, seconds, 0.0, 1)) for _ in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
