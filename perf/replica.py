"""What a replica says of itself: whether it is ready, and how many images wait."""

import contextlib
import urllib.error
import urllib.request
from collections.abc import Mapping

METRIC = "sous_queue_images"
PATIENCE_S = 2.0


def ready(url: str) -> bool | None:
    """Whether GET `url`/health/ready is answered with 200; False where the connection is refused, as by a container
    that has not begun to listen; None where nothing answers, as from another network."""
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=PATIENCE_S) as answer:  # noqa: S310  http
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return False
    except OSError as error:
        return False if isinstance(getattr(error, "reason", error), ConnectionRefusedError) else None


def waiting(urls: Mapping[str, str]) -> dict[str, float]:
    """Images that wait at each replica that answers, all its models together."""
    found = {}
    for name, url in urls.items():
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE_S) as answer:  # noqa: S310  http
            found[name] = total(answer.read().decode())
    return found


def total(metrics: str) -> float:
    """The sum of the metric's series in Prometheus's text format."""
    return sum(
        float(line.split()[-1]) for line in metrics.splitlines() if line.startswith((METRIC + "{", METRIC + " "))
    )
