"""What a run records: one line a request (`samples.csv`) and one a second of resources (`resources.csv`).

Every load tool gives the same `Sample`, so that everything after it is indifferent to the tool.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SAMPLES = "samples.csv"
RESOURCES = "resources.csv"


class Part(NamedTuple):
    """One part of a cell: a stack and a model under one kind of load."""

    stack: str  # plain, single, balanced or scaled
    model: str
    phase: str  # idle (one connection), closed (all users), rate (constant rate) or varying


class Sample(NamedTuple):
    """One request."""

    at_s: float  # intended send, seconds after the part began
    latency_ms: float  # from the intended send to the last byte of the answer
    status: int  # HTTP status; 0: no answer
    bytes: int  # of the answer's body
    photo: int  # index of the photo sent, in the order of the run's photos


class Second(NamedTuple):
    """Counters at one moment; all but `at_s`, `replicas`, `memory_bytes` and `yardstick_ms` only grow."""

    at_s: float
    replicas: int
    memory_bytes: int  # all processes of the stack
    cpu_s: float  # the same
    throttled_s: float  # time a CPU limit held the stack back
    generator_cpu_s: float
    steal_s: float  # time the host gave to other machines
    busy_s: float  # CPU time of everything on this machine
    yardstick_ms: float = 0.0  # see perf.yardstick; 0: not measured


def append_samples(folder: Path, part: Part, samples: Iterable[Sample]) -> None:
    """Add the requests of one part to `samples.csv`, with its header if the file is new."""
    rows = ((*part, f"{s.at_s:.4f}", f"{s.latency_ms:.3f}", s.status, s.bytes, s.photo) for s in samples)
    _append(folder / SAMPLES, (*Part._fields, *Sample._fields), rows)


def append_resources(folder: Path, part: Part, seconds: Iterable[Second]) -> None:
    """Add the resources of one part to `resources.csv`, with its header if the file is new."""
    rows = (
        (*part, f"{s.at_s:.2f}", s.replicas, s.memory_bytes, *(f"{counter:.3f}" for counter in s[3:])) for s in seconds
    )
    _append(folder / RESOURCES, (*Part._fields, *Second._fields), rows)


def _append(path: Path, header: Iterable[str], rows: Iterable[tuple[object, ...]]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(header)
        writer.writerows(rows)


def read_samples(folder: Path) -> dict[Part, list[Sample]]:
    """The requests of every part, in the order they were written."""
    parts: dict[Part, list[Sample]] = defaultdict(list)
    for row in _rows(folder / SAMPLES):
        part, at_s, latency_ms, status, size, photo = Part(*row[:3]), *row[3:]
        parts[part].append(Sample(float(at_s), float(latency_ms), int(status), int(size), int(photo)))
    return dict(parts)


def read_resources(folder: Path) -> dict[Part, list[Second]]:
    """The resources of every part, in the order they were written."""
    parts: dict[Part, list[Second]] = defaultdict(list)
    for row in _rows(folder / RESOURCES):
        part, at_s, replicas, memory, *counters = Part(*row[:3]), *row[3:]
        parts[part].append(Second(float(at_s), int(replicas), int(memory), *map(float, counters)))
    return dict(parts)


def _rows(path: Path) -> Iterable[list[str]]:
    """The rows under the header; a last line cut by an interrupt is left out."""
    if not path.exists():
        return
    with path.open(newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        yield from (row for row in reader if len(row) == len(header))
