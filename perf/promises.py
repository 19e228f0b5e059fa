"""What the project promises of a run on its own stacks, beside what was measured."""

from collections.abc import Iterable
from typing import Any

from perf.summary import Cell, slower
from perf.tables import Table, found, memory_of, rate_of

INT8_DROP = 0.5  # points of top-1
TIMES_PLAIN = {"mobilenet_v2": 10, "resnet101_v2": 6}
TWO_REPLICAS = 1.8
NOT_MEASURED = "not measured"


def promises(run: dict[str, Any], cells: list[Cell]) -> Table:
    """What the project promises of such a run, beside what was measured."""
    rows = [*_availability(cells), *_against_plain(cells), *_int8(run), *_balancing(cells)]
    marks = {k: {"yes": "good", "no": "bad"}.get(row[2], "muted") for k, row in enumerate(rows)}
    return Table("Promises", ["Promise", "Measured", "Met"], rows, marks=marks)


def _availability(cells: list[Cell]) -> Iterable[list[str]]:
    ours = [c for c in cells if c.stack != "plain"]
    if ours:
        sent, failed = sum(c.sent for c in ours), sum(c.failed for c in ours)
        silent = [f"{c.model} on {c.stack}" for c in ours if not c.columns]
        text = f"{sent - failed:,} of {sent:,} requests of all loads answered" + "".join(
            f"; {name}: none" for name in silent
        )
        yield ["every model on every stack of ours answers 100 %", text, _met(not failed and not silent)]


def _against_plain(cells: list[Cell]) -> Iterable[list[str]]:
    for model, times in TIMES_PLAIN.items():
        if why := _invalid(cells, model, "single", "plain"):
            yield [f"{model}: at least {times} x the plain recipe, at most a third of its memory", why, NOT_MEASURED]
        ours, plain = found(cells, "single", model), found(cells, "plain", model)
        rate, base = rate_of(ours), rate_of(plain)
        if rate and base:
            yield [
                f"{model}: at least {times} x the plain recipe",
                f"{rate / base:.1f} x ({rate:.1f} against {base:.1f}/s)" + _alike(rate / base, ours, plain, 1),
                _met(rate >= times * base),
            ]
        memory, plain_memory = memory_of(ours), memory_of(plain)
        if memory and plain_memory:
            yield [
                f"{model}: at most a third of its memory",
                f"{memory / plain_memory:.2f} ({memory:.0f} against {plain_memory:.0f} MB)",
                _met(memory <= plain_memory / 3),
            ]


def _int8(run: dict[str, Any]) -> Iterable[list[str]]:
    for name, model in run["models"].items():
        if model["accuracy"] is not None and model["float_accuracy"] is not None:
            drop = 100 * (model["float_accuracy"] - model["accuracy"])
            yield [f"{name}: int8 within 0.5 points of float", f"{drop:+.2f} points lost", _met(drop <= INT8_DROP)]


def _balancing(cells: list[Cell]) -> Iterable[list[str]]:
    for cell in (c for c in cells if c.stack == "balanced"):
        promise = f"{cell.model}: balanced at least {TWO_REPLICAS} x one replica, where cores allow"
        if why := _invalid(cells, cell.model, "single", "balanced"):
            yield [promise, why, NOT_MEASURED]
            continue
        single = found(cells, "single", cell.model)
        one, both = rate_of(single), rate_of(cell)
        if one and both and cell.use:
            text = (
                f"{both / one:.2f} x with {cell.use.replicas:.0f} replicas{_alike(both / one, cell, single, 2)}; "
                f"generator {cell.use.generator_cores:.2f} cores, stack {cell.use.cores:.2f}"
            )
            yield [promise, text, _met(both >= TWO_REPLICAS * one)]


def _invalid(cells: list[Cell], model: str, *stacks: str) -> str:
    """Why a ratio of these stacks is not given; empty where it can be."""
    return "; ".join(
        f"{c.stack}: {c.reasons[0]}" for c in cells if c.model == model and c.stack in stacks and c.reasons
    )


def _alike(times: float, ours: Cell | None, other: Cell | None, digits: int) -> str:
    """The ratio as it would be had the machine been as fast under both loads; empty where that is the same."""
    drift = slower(ours, other) if ours and other else 1.0
    text = f"{times * drift:.{digits}f}"
    return "" if text == f"{times:.{digits}f}" else f"; {text} x at equal machine speed"


def _met(is_met: bool) -> str:
    return "yes" if is_met else "no"
