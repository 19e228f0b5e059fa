"""What is printed: each cell as wrk prints its own summary, so that scripts made for wrk can read it, and tables."""

import sys
from collections.abc import Callable

import numpy as np

from perf.intervals import Floats
from perf.samples import Sample
from perf.summary import columns
from perf.tables import Table


def wrk_summary(url: str, samples: list[Sample], threads: int, users: int, latency: bool = True) -> str:
    """One load in wrk's words and layout."""
    made = columns(samples)
    values_s = np.array([s.latency_ms for s in samples]) / 1000
    finished = np.array([s.at_s for s in samples]) - min(s.at_s for s in samples) + values_s
    rates = np.bincount(finished.astype(int))[: max(1, int(made.elapsed_s))] / threads
    lines = [
        f"Running {made.elapsed_s:.0f}s test @ {url}",
        f"  {threads} threads and {users} connections",
        "  Thread Stats   Avg      Stdev     Max   +/- Stdev",
        f"    Latency   {_spread(values_s, _time)}",
        f"    Req/Sec   {_spread(rates.astype(np.float64), _count)}",
    ]
    if latency:
        marks = zip((50, 75, 90, 99), np.percentile(values_s, (50, 75, 90, 99)), strict=True)
        lines += ["  Latency Distribution", *(f"     {p}% {_time(value):>8}" for p, value in marks)]
    lines.append(f"  {made.transactions} requests in {made.elapsed_s:.2f}s, {_bytes(made.transferred_mb * 1e6)} read")
    silent = sum(s.status == 0 for s in samples)
    other = made.failed - silent
    lines += [f"  Socket errors: connect 0, read {silent}, write 0, timeout 0"] if silent else []
    lines += [f"  Non-2xx or 3xx responses: {other}"] if other else []
    per_second = _bytes(made.throughput_mb_s * 1e6)
    return "\n".join(
        [*lines, f"Requests/sec: {made.transactions / made.elapsed_s:9.2f}", f"Transfer/sec: {per_second:>10}"]
    )


def _spread(values: Floats, show: Callable[[float], str]) -> str:
    mean, deviation = float(values.mean()), float(values.std())
    near = float((abs(values - mean) <= deviation).mean()) * 100
    figures = (show(v) for v in (mean, deviation, float(values.max())))
    return " ".join(f"{figure:>8}" for figure in figures) + f" {near:8.2f}%"


def _time(seconds: float) -> str:
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 1000 * size:
            return f"{seconds / size:.2f}{unit}"
    return f"{seconds:.2f}s"


def _count(value: float) -> str:
    return f"{value / 1000:.2f}k" if value >= 1000 else f"{value:.2f}"


def _bytes(value: float) -> str:
    for unit, size in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:.0f}B"


def table_text(table: Table) -> str:
    """A table in columns of equal width."""
    rows = [table.header, *table.rows]
    widths = [max(len(row[k]) for row in rows) for k in range(len(table.header))]
    lines = [
        "  ".join(
            cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([table.title, *(line.rstrip() for line in lines), *([table.note] if table.note else []), ""])


def say(text: str) -> None:
    """One line to a person, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
