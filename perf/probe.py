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
    began = time.monotonic()
    while time.monotonic() - began < seconds or len(samples) < len(photos):
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
        try:
            _exchange(connection, url, photos, began, seconds, samples)
        except (OSError, http.client.HTTPException):
            now = time.monotonic()
            samples.append(Sample(now - began, 0.0, 0, 0, len(samples) % len(photos)))
            time.sleep(0.05)  # no faster than a refused connection can be tried sensibly
        finally:
            connection.close()
    return samples


def _exchange(connection: http.client.HTTPConnection, url: str, photos: list[Photo], began: float, seconds: float, samples: list[Sample]) -> None:
    parts = urlsplit(url)
    while time.monotonic() - began < seconds or len(samples) < len(photos):
        photo, sent = len(samples) % len(photos), time.monotonic()
        connection.request("POST", f"{parts.path}?{parts.query}", photos[photo].body, {"Content-Type": CONTENT_TYPE})
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
