"""Samples and resources of a run -> one Cell a stack and model: the study's twelve columns and what they left out.

Everything here is a function of the recorded data alone, so a report drawn again is the same report.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from perf.intervals import Floats, Interval, median, per, percentiles, rate
from perf.samples import Part, Sample, Second
from perf.validity import generator_cores, other_share, reasons, slowed

MB = 1e6  # bytes, as siege and the study count
CURVE = (0, 1, 2, 5, *range(10, 95, 5), 95, 96, 97, 98, 99, 99.5, 99.9, 100)  # percentiles kept for the plots
SPREAD = (2.5, *range(5, 100, 5), 97.5)  # percentiles kept of the idle service time
THROTTLED_NOTE = 0.05
OTHER_NOTE = 0.10
FEW = 100  # answers: of fewer, the slowest hundredth is none
KEPT_UP = 0.95  # answered of offered at a constant rate: below it a queue grows for as long as one measures


@dataclass(frozen=True)
class Columns:
    """The study's twelve columns; siege's definitions, but only 2xx is success."""

    transactions: int  # requests sent that ended
    availability: float  # percent answered with 2xx
    elapsed_s: float
    transferred_mb: float  # answers
    response_s: float  # mean
    rate: float  # answered with 2xx a second
    throughput_mb_s: float
    concurrency: float  # mean number of requests under way
    successful: int
    failed: int
    longest_s: float
    shortest_s: float


@dataclass(frozen=True)
class Latency:
    """Milliseconds of the answered requests under one kind of load."""

    offered: float  # requests a second; 0: a closed loop
    answered: float
    mean: float
    p50: Interval
    p95: Interval
    p99: Interval
    curve: list[tuple[float, float]]  # (percentile, ms)
    yardstick_ms: float | None = None  # CPU time of a fixed piece of work beside this load, see perf.yardstick
    n: int | None = None  # answers
    cpu_s: float | None = None  # CPU seconds of the stack an answer

    @property
    def kept_up(self) -> bool:
        return self.answered >= KEPT_UP * self.offered


@dataclass(frozen=True)
class Use:
    """What the stack used in the closed loop."""

    memory_mb: float  # steady: median of the second half
    cpu_s_per_1000: float  # requests answered
    cores: float
    throttled: float  # seconds held back by the CPU limit, a second
    generator_cores: float
    replicas: float  # mean
    other: float  # part of the machine's CPU time that other programs took
    memory: Interval | None = None  # memory_mb with its interval
    cpu: Interval | None = None  # cpu_s_per_1000 with its interval


@dataclass(frozen=True)
class Cell:
    """A stack with a model, measured."""

    stack: str
    model: str
    reasons: list[str]  # why it is invalid; empty: valid
    notes: list[str] = field(default_factory=list)
    accuracy: float | None = None  # top-1 on the evaluation photos, of the model as this stack serves it
    disk_mb: float | None = None
    columns: Columns | None = None
    rate: Interval | None = None  # columns.rate with its interval
    use: Use | None = None
    latency: dict[str, Latency] = field(default_factory=dict)  # closed, rate
    timeline: list[dict[str, float]] = field(default_factory=list)  # varying load, a point a second
    idle: dict[str, dict[str, Any]] = field(default_factory=dict)  # by photo: mean_ms, spread (quantiles / mean)
    idle_cpu_s: float | None = None  # CPU seconds of a request with nothing else running
    sent: int = 0  # requests of all its loads
    failed: int = 0  # of them without a 2xx answer

    @property
    def p99_ms(self) -> float:
        """At the constant rate (infinite where the stack did not keep up), in the closed loop if there is no other."""
        latency = self.latency.get("rate") or self.latency.get("closed")
        return latency.p99.value if latency and latency.kept_up else float("inf")


Samples = dict[Part, list[Sample]]
Resources = dict[Part, list[Second]]


def summarise(run: dict[str, Any], samples: Samples, resources: Resources) -> list[Cell]:
    """The cells of a run, in the order they were measured."""
    cells = [_cell(run, facts, samples, resources) for facts in run["cells"]]
    fastest = min(filter(None, map(yardstick_of, cells)), default=None)
    return [
        replace(cell, reasons=[*cell.reasons, *slowed(fastest / own)])
        if fastest and (own := yardstick_of(cell))
        else cell
        for cell in cells
    ]


def yardstick_of(cell: Cell) -> float | None:
    """CPU time of the fixed work beside its closed loop, ms; None where it was not measured."""
    loaded = cell.latency.get("closed")
    return loaded.yardstick_ms if loaded else None


def _cell(run: dict[str, Any], facts: dict[str, Any], samples: Samples, resources: Resources) -> Cell:
    parts = {phase: Part(facts["stack"], facts["model"], phase) for phase in ("idle", "closed", "rate", "varying")}
    sent = {phase: samples.get(part, []) for phase, part in parts.items()}
    seconds = {phase: resources.get(part, []) for phase, part in parts.items()}
    known = {"stack": facts["stack"], "model": facts["model"], **_carried(run, facts)}
    if not any(s.status // 100 == 2 for s in sent["closed"]):
        why = "no request was answered" if sent["closed"] else "not measured"
        return Cell(**known, reasons=[facts.get("reason") or why])
    offered = {"closed": 0.0, "rate": facts["phases"].get("rate", {}).get("offered", 0.0)}
    latency = {
        phase: replace(
            latencies(sent[phase], offered[phase]),
            yardstick_ms=yardstick(seconds[phase]),
            cpu_s=cpu_of(sent[phase], seconds[phase]),
        )
        for phase in offered
        if any(s.status // 100 == 2 for s in sent[phase])
    }
    use = resources_used(sent["closed"], seconds["closed"], run["machine"]["cores"])
    return Cell(
        **known,
        reasons=reasons(run, facts, sent, seconds),
        notes=notes(latency, use),
        columns=columns(sent["closed"]),
        rate=rate(*_answers(sent["closed"])[:2]),
        use=use,
        latency=latency,
        timeline=timeline(sent["varying"], seconds["varying"]),
        idle=idle(sent["idle"], run["photos"]),
        idle_cpu_s=cpu_of(sent["idle"], seconds["idle"]),
        sent=sum(map(len, sent.values())),
        failed=sum(s.status // 100 != 2 for load in sent.values() for s in load),
    )


def _carried(run: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Accuracy and size of the model as the stack serves it: plain the Keras file, ours the package."""
    model = run["models"].get(facts["model"], {})
    plain = facts["stack"] == "plain"
    size = model.get("source_bytes" if plain else "package_bytes")
    accuracy = model.get("float_accuracy" if plain else "accuracy")
    return {"accuracy": accuracy, "disk_mb": size / MB if size else None}


def columns(samples: list[Sample]) -> Columns:
    """The twelve columns of one load."""
    latency_s = np.array([s.latency_ms for s in samples]) / 1000
    successful = sum(s.status // 100 == 2 for s in samples)
    elapsed, megabytes = elapsed_s(samples), sum(s.bytes for s in samples) / MB
    return Columns(
        transactions=len(samples),
        availability=100 * successful / len(samples),
        elapsed_s=elapsed,
        transferred_mb=megabytes,
        response_s=float(latency_s.mean()),
        rate=successful / elapsed,
        throughput_mb_s=megabytes / elapsed,
        concurrency=float(latency_s.sum()) / elapsed,
        successful=successful,
        failed=len(samples) - successful,
        longest_s=float(latency_s.max()),
        shortest_s=float(latency_s.min()),
    )


def elapsed_s(samples: list[Sample]) -> float:
    """From the first send to the last answer."""
    return max(s.at_s + s.latency_ms / 1000 for s in samples) - min(s.at_s for s in samples)


def _answers(samples: list[Sample]) -> tuple[Floats, float, Floats]:
    """Moments of the 2xx answers after the first send, elapsed time, and their latencies in ms; in order of sending."""
    first = min(s.at_s for s in samples)
    good = sorted(s for s in samples if s.status // 100 == 2)
    latency = np.array([s.latency_ms for s in good])
    return np.array([s.at_s for s in good]) - first + latency / 1000, elapsed_s(samples), latency


def latencies(samples: list[Sample], offered: float) -> Latency:
    """Percentiles with intervals of one load."""
    finished, elapsed, values = _answers(samples)
    p50, p95, p99 = percentiles(finished, elapsed, values, (50, 95, 99))
    curve = list(zip(CURVE, np.percentile(values, CURVE).tolist(), strict=True)) if len(values) else []
    # the requests under way when the last was sent are no backlog as long as they take no longer than others
    sending = max(s.at_s for s in samples) - min(s.at_s for s in samples)
    least = sending * len(samples) / max(1, len(samples) - 1)
    usual = float(np.median(values[: 1 + len(values) // 10])) / 1000 if len(values) else 0.0  # before any backlog
    answered = len(values) / max(least, elapsed - usual, 1e-9)
    mean = float(values.mean()) if len(values) else float("nan")
    return Latency(offered, answered, mean, p50, p95, p99, curve, n=len(values))


def yardstick(seconds: list[Second]) -> float | None:
    """Mean CPU time of the fixed work during a load; None where it was not measured."""
    measured = [s.yardstick_ms for s in seconds if s.yardstick_ms]
    return float(np.mean(measured)) if measured else None


def slower(cell: Cell, than: Cell) -> float:
    """How many times as long the machine took for the same work in a cell's closed loop as in another's; 1 where it was
    not measured."""
    mine, other = cell.latency.get("closed"), than.latency.get("closed")
    if not mine or not other or not mine.yardstick_ms or not other.yardstick_ms:
        return 1.0
    return mine.yardstick_ms / other.yardstick_ms


def cost_ratio(cell: Cell, than: Cell, phase: str) -> float:
    """CPU time of an answer of a cell under one kind of load, balancer and scaler counted in, over that of another
    cell; 1 where one of them was not measured."""
    mine, other = cell.latency.get(phase), than.latency.get(phase)
    return mine.cpu_s / other.cpu_s if mine and other and mine.cpu_s and other.cpu_s else 1.0


def resources_used(samples: list[Sample], seconds: list[Second], cores: int) -> Use | None:
    """Memory, CPU and replicas of one load; None where nothing was read."""
    if len(seconds) < 2:
        return None
    first, last = seconds[0], seconds[-1]
    answered = sum(s.status // 100 == 2 for s in samples)
    cpu, elapsed = last.cpu_s - first.cpu_s, elapsed_s(samples)
    memory = median(np.array([s.memory_bytes for s in seconds[len(seconds) // 2 :]]) / MB)
    return Use(
        memory_mb=memory.value,
        cpu_s_per_1000=1000 * cpu / answered,
        cores=cpu / elapsed,
        throttled=(last.throttled_s - first.throttled_s) / elapsed,
        generator_cores=generator_cores(samples, seconds),
        replicas=float(np.mean([s.replicas for s in seconds])),
        other=other_share(seconds, cores),
        memory=memory,
        cpu=_cpu_per_1000(samples, seconds, 1000 * cpu / answered),
    )


def _cpu_per_1000(samples: list[Sample], seconds: list[Second], value: float) -> Interval:
    ended = np.sort([s.at_s + s.latency_ms / 1000 for s in samples if s.status // 100 == 2])
    answered = np.diff(np.searchsorted(ended, [s.at_s for s in seconds]))
    return per(1000 * np.diff([s.cpu_s for s in seconds]), answered, value)


def timeline(samples: list[Sample], seconds: list[Second]) -> list[dict[str, float]]:
    """Offered and answered rate, median latency and replicas, second by second."""
    if not samples:
        return []
    first = min(s.at_s for s in samples)
    ends = [s.at_s + s.latency_ms / 1000 - first for s in samples]
    points = []
    for k in range(int(elapsed_s(samples))):
        answered = [
            s.latency_ms for s, end in zip(samples, ends, strict=True) if k <= end < k + 1 and s.status // 100 == 2
        ]
        replicas = [s.replicas for s in seconds if s.at_s - first <= k + 1] or [s.replicas for s in seconds[:1]] or [0]
        offered = sum(k <= s.at_s - first < k + 1 for s in samples)
        median = float(np.median(answered)) if answered else 0.0
        points.append(
            {"at_s": k + 1.0, "offered": offered, "answered": len(answered), "p50_ms": median, "replicas": replicas[-1]}
        )
    return points


def idle(samples: list[Sample], photos: list[str]) -> dict[str, dict[str, Any]]:
    """Service time of each photo with nothing else running: the mean and its spread."""
    found = {}
    for index, name in enumerate(photos):
        values = np.array([s.latency_ms for s in samples if s.photo == index and s.status // 100 == 2])
        if len(values):
            spread = np.percentile(values / values.mean(), SPREAD).tolist()
            found[name] = {"mean_ms": float(values.mean()), "n": len(values), "spread": spread}
    return found


def cpu_of(samples: list[Sample], seconds: list[Second]) -> float | None:
    """CPU seconds of the stack for each answered request; None where they were not read."""
    answered = sum(s.status // 100 == 2 for s in samples)
    return (seconds[-1].cpu_s - seconds[0].cpu_s) / answered if answered and seconds else None


def notes(latency: dict[str, Latency], use: Use | None) -> list[str]:
    """What a reader should know of a cell."""
    found = []
    timed = latency.get("rate")
    if timed and not timed.kept_up:
        found.append(
            f"did not keep up with {timed.offered:.1f}/s (answered {timed.answered:.1f}/s): its p99 has no limit"
        )
    if timed and timed.n is not None and timed.n < FEW:
        found.append(f"its p99 is of {timed.n} answers: hardly more than the slowest")
    if use is None:
        return [*found, "its resources could not be read"]
    if use.throttled > THROTTLED_NOTE:
        found.append(f"held back by its CPU limit for {use.throttled:.2f} s a second in the closed loop")
    if use.other > OTHER_NOTE:
        found.append(f"other programs took {use.other:.0%} of the machine's CPU time")
    return found
