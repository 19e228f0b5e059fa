"""The report's tables, as text cells: what is in them is decided here once, for the page and for Markdown."""

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from perf.intervals import Interval, proportion
from perf.plan import CLOSE, MOST_REPLICAS, Check, Need
from perf.recommend import Recommendation
from perf.study import MODELS, STACKS
from perf.summary import Cell, yardstick_of

NONE = "-"


@dataclass(frozen=True)
class Table:
    """Text cells under a header; the first column names the row."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    marks: dict[int, str] = field(default_factory=dict)  # row -> "good", "bad" or "muted"


def models(run: dict[str, Any], cells: list[Cell]) -> Table:
    """The models in the study's layout: ours on one replica, the plain recipe in the same run, and 2023."""
    rows = [_model_row(run, name, found(cells, "single", name), found(cells, "plain", name)) for name in run["models"]]
    header = [
        "Model",
        "Top-1 int8, %",
        "float, %",
        "2023, %",
        "Memory, MB",
        "plain",
        "2023",
        "÷ plain",
        "÷ 2023",
        "Answers/s",
        "plain",
        "2023",
        "x plain",
        "x 2023",
        "Disk, MB",
        "Keras, MB",
    ]
    photos = max((m["photos"] for m in run["models"].values()), default=0)
    return Table(
        "Models",
        header,
        rows,
        f"Ours: one replica (single), int8. Top-1 on {photos:,} evaluation photos with its 95 % interval. 2023 "
        "memory and rate: the study's plain recipe, 10 users.",
    )


def _model_row(run: dict[str, Any], name: str, single: Cell | None, plain: Cell | None) -> list[str]:
    facts, study = run["models"][name], MODELS.get(name)
    memory, plain_memory = memory_of(single), memory_of(plain)
    rate, plain_rate = rate_of(single), rate_of(plain)
    return [
        name,
        _share(facts["accuracy"], facts["photos"]),
        number(100 * facts["float_accuracy"], 1) if facts["float_accuracy"] else NONE,
        number(100 * study.accuracy, 1) if study else NONE,
        number(memory, 0),
        number(plain_memory, 0),
        number(study.memory_mb, 0) if study else NONE,
        _ratio(memory, plain_memory),
        _ratio(memory, study.memory_mb if study else None),
        number(rate, 1),
        number(plain_rate, 1),
        number(study.rate, 2) if study else NONE,
        _ratio(rate, plain_rate),
        _ratio(rate, study.rate if study else None),
        number(facts["package_bytes"] / 1e6, 1),
        number(facts["source_bytes"] / 1e6 if facts["source_bytes"] else None, 1),
    ]


def deployments(cells: list[Cell]) -> Table:
    """Every cell, with the study's figure for its kind of deployment."""
    header = [
        "Deployment",
        "Answers/s (95 %)",
        "2023",
        "x 2023",
        "Answered, %",
        "2023, %",
        "Response, ms",
        "p99, ms",
        "Memory, MB",
        "CPU s/1,000",
        "Replicas",
        "Machine, %",
        "Valid",
    ]
    fastest = min(filter(None, map(yardstick_of, cells)), default=None)
    rows = [_deployment_row(cell, fastest) for cell in cells]
    marks = {k: "muted" for k, cell in enumerate(cells) if cell.reasons}
    note = (
        "Response: mean in the closed loop. p99: at the constant rate, from the intended send. 2023: plain by "
        "model; load-balanced and dynamically scaled as the study names them, one figure each; it measured no "
        "counterpart of single. Machine: its speed during the closed loop, of the fastest here (a fixed piece of work, "
        "timed once a second); the figures beside it are as measured."
    )
    return Table("Deployments", header, rows, note, marks)


def _deployment_row(cell: Cell, fastest: float | None) -> list[str]:
    rate, availability = study_figures(cell)
    made, use, timed = cell.columns, cell.use, cell.latency.get("rate")
    return [
        f"{cell.stack} · {cell.model}",
        interval_text(cell.rate, 1),
        number(rate, 2),
        _ratio(rate_of(cell), rate),
        number(made.availability if made else None, 1),
        number(availability, 2),
        number(1000 * made.response_s if made else None, 0),
        (number(timed.p99.value, 0) if timed.kept_up else "no limit") if timed else NONE,
        number(use.memory_mb if use else None, 0),
        number(use.cpu_s_per_1000 if use else None, 2),
        number(use.replicas if use else None, 1),
        number(100 * fastest / own if fastest and (own := yardstick_of(cell)) else None, 0),
        "no" if cell.reasons else "yes",
    ]


def study_figures(cell: Cell) -> tuple[float | None, float | None]:
    """The study's rate and availability for a cell's kind: the plain recipe by model, its other deployments as one."""
    if cell.stack == "plain" and (study := MODELS.get(cell.model)):
        return study.rate, study.availability
    stack = STACKS.get(cell.stack) if cell.model in MODELS else None
    return (stack.rate, stack.availability) if stack else (None, None)


def checks(found_: list[Check]) -> Table:
    """The queueing model against every measured cell."""
    rows = [
        [
            c.name,
            c.figure,
            f"{c.cost:.2f}",
            number(c.measured, 1),
            number(c.simulated, 1),
            f"{c.error:+.0%}",
            "not compared" if c.filled else "no" if not c.within else "yes" if c.close else "its interval",
        ]
        for c in found_
    ]
    marks = {k: "good" if c.within else "bad" for k, c in enumerate(found_) if not c.filled}
    note = (
        "What is checked are the waits: service times are those of the model's single stack, brought to the CPU time of"
        f" an answer in the cell; trusted within {CLOSE:.0%}, or within the 95 % interval of a measured p99. CPU: that"
        " time over the single stack's, balancer counted in; plans of several replicas take the balanced stack's. The"
        " closed loop of the single stack shows that its limit is simulated right, of its constant rate the machine's"
        " stalls are taken."
    )
    if any(c.filled for c in found_):
        note += (
            " Not compared: replicas, balancer and generator together can fill the cores of the machine, which"
            " the model does not hold: it takes each replica to have its own."
        )
    return Table(
        "Queueing model against measurement",
        ["Cell", "Figure", "CPU, x single", "Measured", "Simulated", "Error", "Within"],
        rows,
        note,
        marks,
    )


def needs(rate: float, max_p99_ms: float, price: float, rows: list[tuple[str, Need | None]]) -> Table:
    """What a rate needs of each model."""
    header = ["Model", "Replicas", "Cores", "Busy", "p50, ms", "p99, ms", "Price/hour", "Price/million"]
    cells = [
        [
            name,
            f"{n.replicas:,}",
            number(n.cores, 1),
            f"{n.utilisation:.0%}",
            number(n.p50_ms, 0),
            number(n.p99_ms, 0),
            number(n.price_hour, 2),
            number(n.price_million, 2),
        ]
        if n
        else [name, f"none up to {MOST_REPLICAS:,} answers within {max_p99_ms:g} ms", *[NONE] * 6]
        for name, n in rows
    ]
    return Table(
        f"{format(rate, ',.0f' if rate >= 10 else 'g')} requests/s with p99 within {max_p99_ms:g} ms",
        header,
        cells,
        f"A core-hour at {price:g}; independent arrivals, fewest-requests balancing, replicas at most 80 % busy. "
        "Several replicas with the CPU that an answer took behind the balancer, its own counted in, where the balanced"
        " stack was measured: 0.1 to 0.16 ms of it are the balancer's.",
    )


def left_out(chosen: Recommendation) -> Table:
    """What no choice was made from, and why."""
    rows = [[name, "invalid", why] for name, why in chosen.invalid]
    rows += [[name, "lacks a figure", why] for name, why in chosen.unknown]
    rows += [[name, "misses a constraint", why] for name, why in chosen.refused]
    rows += [
        [c.name, "dominated", f"{by.name} is as good in every figure, to half a point and 5 %"]
        for c, by in chosen.dominated
    ]
    return Table("Not recommended", ["Deployment", "", "Why"], rows)


def found(cells: list[Cell], stack: str, model: str) -> Cell | None:
    """The cell of a stack and a model, where its measurement is valid."""
    return next((c for c in cells if (c.stack, c.model) == (stack, model) and not c.reasons), None)


def rate_of(cell: Cell | None) -> float | None:
    return cell.columns.rate if cell and cell.columns else None


def memory_of(cell: Cell | None) -> float | None:
    return cell.use.memory_mb if cell and cell.use else None


def number(value: float | None, digits: int) -> str:
    return NONE if value is None or not isfinite(value) else f"{value:,.{digits}f}"


def _ratio(a: float | None, b: float | None) -> str:
    return f"{a / b:.2f}" if a and b else NONE


def interval_text(value: Interval | None, digits: int) -> str:
    if value is None or not isfinite(value.value):
        return NONE
    return f"{value.value:,.{digits}f} ({value.low:,.{digits}f} to {value.high:,.{digits}f})"


def _share(value: float | None, n: int) -> str:
    if value is None:
        return NONE
    interval = proportion(value, n)
    return f"{100 * value:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
