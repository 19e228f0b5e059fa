"""`results.json`: the run's facts and its cells, written and read back."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perf.intervals import Interval
from perf.samples import read_resources, read_samples
from perf.summary import Cell, Columns, Latency, Use, summarise

RESULTS = "results.json"
PARTIAL = f".{RESULTS}"  # left by a run that was killed while it saved


def save(folder: Path, run: dict[str, Any], cells: list[Cell] | None = None) -> None:
    """Replace `results.json` in one step; `cells` only once the samples are summarised."""
    new = folder / PARTIAL
    new.write_text(json.dumps({"run": run, "cells": [asdict(c) for c in cells or []]}, indent=1) + "\n")
    new.replace(folder / RESULTS)


def read(folder: Path) -> tuple[dict[str, Any], list[Cell]]:
    """The run and its cells: summarised from the samples where its own are kept, else as they were summarised.

    Raises:
        ValueError: the folder holds no results.
    """
    try:
        data = json.loads((folder / RESULTS).read_text())
        run, cells = data["run"], _cells(data, folder)
        _ = run["options"]["cpus"] + run["machine"]["cores"], run["models"].items()  # what every table needs
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder} holds no results of a run ({error}): make one with perf/run.sh --out {folder}"
        ) from error
    return run, cells


def _cells(data: dict[str, Any], folder: Path) -> list[Cell]:
    samples, resources = read_samples(folder), read_resources(folder)
    saved = [_cell(cell) for cell in data["cells"]]
    if samples and not resources and any(cell.use for cell in saved):
        raise ValueError("resources.csv, which was summarised with samples.csv, is gone")
    if saved and not samples:  # a folder that holds the summary alone
        return saved
    made = summarise(data["run"], samples, resources)
    return saved if saved and _counts(made) != _counts(saved) else made  # samples beside it may be another run's


def _counts(cells: list[Cell]) -> list[tuple[str, str, int, int]]:
    return [(cell.stack, cell.model, cell.sent, cell.failed) for cell in cells]


def _cell(data: dict[str, Any]) -> Cell:
    nested = {
        "columns": Columns(**data["columns"]) if data["columns"] else None,
        "rate": Interval(**data["rate"]) if data["rate"] else None,
        "use": _use(data["use"]) if data["use"] else None,
        "latency": {phase: _latency(values) for phase, values in data["latency"].items()},
    }
    return Cell(**data | nested)


def _use(data: dict[str, Any]) -> Use:
    return Use(**data | {name: Interval(**data[name]) for name in ("memory", "cpu") if data.get(name)})


def _latency(data: dict[str, Any]) -> Latency:
    marks = {mark: Interval(**data[mark]) for mark in ("p50", "p95", "p99")}
    return Latency(**data | marks | {"curve": [(p, ms) for p, ms in data["curve"]]})
