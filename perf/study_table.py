"""The study's twelve columns of one model, and below them what the study left out."""

from collections.abc import Callable

from perf.study import MODELS, StudyModel
from perf.summary import Cell, Columns
from perf.tables import NONE, Table, interval_text, number

COLUMNS: tuple[tuple[str, Callable[[Columns], str]], ...] = (
    ("Transactions", lambda c: f"{c.transactions:,}"),
    ("Availability, %", lambda c: f"{c.availability:.2f}"),
    ("Elapsed time, s", lambda c: f"{c.elapsed_s:.2f}"),
    ("Data transferred, MB", lambda c: f"{c.transferred_mb:.2f}"),
    ("Response time, s", lambda c: f"{c.response_s:.3f}"),
    ("Transaction rate, /s", lambda c: f"{c.rate:.2f}"),
    ("Throughput, MB/s", lambda c: f"{c.throughput_mb_s:.3f}"),
    ("Concurrency", lambda c: f"{c.concurrency:.2f}"),
    ("Successful transactions", lambda c: f"{c.successful:,}"),
    ("Failed transactions", lambda c: f"{c.failed:,}"),
    ("Longest transaction, s", lambda c: f"{c.longest_s:.3f}"),
    ("Shortest transaction, s", lambda c: f"{c.shortest_s:.3f}"),
)
BESIDE: tuple[tuple[str, Callable[[Cell], str]], ...] = (
    ("Constant rate, /s", lambda c: number(c.latency["rate"].offered if "rate" in c.latency else None, 1)),
    ("p50, ms", lambda c: interval_text(c.latency["rate"].p50 if "rate" in c.latency else None, 1)),
    ("p95, ms", lambda c: interval_text(c.latency["rate"].p95 if "rate" in c.latency else None, 1)),
    ("p99, ms", lambda c: interval_text(c.latency["rate"].p99 if "rate" in c.latency else None, 1)),
    ("Steady memory, MB", lambda c: number(c.use.memory_mb if c.use else None, 1)),
    ("CPU s per 1,000 requests", lambda c: number(c.use.cpu_s_per_1000 if c.use else None, 2)),
    ("Disk (model), MB", lambda c: number(c.disk_mb, 1)),
    ("Evaluation accuracy, %", lambda c: number(100 * c.accuracy if c.accuracy else None, 1)),
)


def twelve_columns(model: str, cells: list[Cell]) -> Table:
    """The study's twelve columns of one model, a column a stack, and below them what the study left out."""
    measured = [c for c in cells if c.model == model and c.columns]
    rows = [[name, *(show(c.columns) for c in measured if c.columns)] for name, show in COLUMNS]
    rows += [[name, *(show(c) for c in measured)] for name, show in BESIDE]
    names = [c.stack + (" (invalid)" if c.reasons else "") for c in measured]
    study = MODELS.get(model)
    if study:
        names, rows = [*names, "2023"], [[*row, _study_value(study, row[0])] for row in rows]
    return Table(model, ["", *names], rows)


def _study_value(study: StudyModel, row: str) -> str:
    known = {
        "Availability, %": number(study.availability, 2),
        "Transaction rate, /s": f"{study.rate:.2f}",
        "Steady memory, MB": f"{study.memory_mb:.1f}",
        "Evaluation accuracy, %": f"{100 * study.accuracy:.1f}",
    }
    return known.get(row, NONE)
