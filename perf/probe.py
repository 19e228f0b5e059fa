"""One connection that sends the photos in turn: an idle stack's answer times, and (many at once) its warm-up."""

import http.client
import threading
import time
from urllib.parse import urlsplit

from perf.photos import CONTENT_TYPE, Photo
from perf.samples import Sample

TIMEOUT_S = 30.0


def probe(url: str, photos: list[Photo], seconds: float) -> list[Sample]:
    """Send until the time is over, at least every photo once; an unanswered request is a sample with status 0."""
    samples: list[Sample] = []
    began, due = time.monotonic(), _Due(photos, seconds)
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
    """Whether another photo is to be sent, and which."""

    def __init__(self, photos: list[Photo], seconds: float) -> None:
        self.photos, self.ends = photos, time.monotonic() + seconds

    def more(self, sent: int) -> bool:
        return time.monotonic() < self.ends or sent < len(self.photos)


def _exchange(connection: http.client.HTTPConnection, url: str, due: _Due, began: float, samples: list[Sample]) -> None:
    parts = urlsplit(url)
    while due.more(len(samples)):
        photo, sent = len(samples) % len(due.photos), time.monotonic()
        body, headers = due.photos[photo].body, {"Content-Type": CONTENT_TYPE}
        connection.request("POST", f"{parts.path}?{parts.query}", body, headers)
        answer = connection.getresponse()
        size = len(answer.read())
        samples.append(Sample(sent - began, 1000 * (time.monotonic() - sent), answer.status, size, photo))


def warm(url: str, photos: list[Photo], users: int, seconds: float) -> None:
    """Load a stack for a while and forget what it answered."""
    threads = [threading.Thread(target=probe, args=(url, photos, seconds)) for _ in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
