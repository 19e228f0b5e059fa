"""Prometheus metrics. With several workers they are summed through the files of `PROMETHEUS_MULTIPROC_DIR`."""

import os
from collections.abc import Mapping

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

MEDIA_TYPE = "text/plain; version=0.0.4"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
IMAGES = (1, 2, 4, 8, 16, 32)

MODEL = ("model", "version")

REQUESTS = Counter("sous_requests", "Requests to POST /predict by status.", [*MODEL, "status"])
REQUEST_SECONDS = Histogram("sous_request_seconds", "From arrival to a 2xx answer.", MODEL, buckets=SECONDS)
STAGE_SECONDS = Histogram(
    "sous_stage_seconds", "Of a 2xx answer: queue, decode, infer.", [*MODEL, "stage"], buckets=SECONDS
)
BATCH_IMAGES = Histogram("sous_batch_images", "Images in a session run.", MODEL, buckets=IMAGES)
QUEUE_IMAGES = Gauge("sous_queue_images", "Images that wait for a slot.", MODEL, multiprocess_mode="livesum")


class Meters:
    """One model's own children of the metrics above, looked up once."""

    def __init__(self, model: str, version: int) -> None:
        labels = (model, str(version))
        self.seconds = REQUEST_SECONDS.labels(*labels)
        self.stages = {stage: STAGE_SECONDS.labels(*labels, stage) for stage in ("queue", "decode", "infer")}
        self.batch_images = BATCH_IMAGES.labels(*labels)
        self.queue_images = QUEUE_IMAGES.labels(*labels)
        self.answered = REQUESTS.labels(*labels, "200")

    def count(self, stages_s: Mapping[str, float], total_s: float) -> None:
        """An answered request."""
        self.answered.inc()
        self.seconds.observe(total_s)
        for stage, seconds in stages_s.items():
            self.stages[stage].observe(seconds)


def render() -> bytes:
    """The metrics of all workers in Prometheus's text format."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
