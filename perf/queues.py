"""Images waiting at replicas, from their own metrics."""

import contextlib
import urllib.request
from collections.abc import Mapping

METRIC = "sous_queue_images"


def waiting(urls: Mapping[str, str]) -> dict[str, float]:
    """Images that wait at each replica that answers, all its models together."""
    found = {}
    for name, url in urls.items():
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/metrics", timeout=2) as answer:  # noqa: S310  http
            found[name] = total(answer.read().decode())
    return found


def total(metrics: str) -> float:
    """The sum of the metric's series in Prometheus's text format."""
    return sum(
        float(line.split()[-1]) for line in metrics.splitlines() if line.startswith((METRIC + "{", METRIC + " "))
    )
