"""A run: for every stack and model, bring it up, load it, take it down, and keep what was measured at once."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from perf import adapters, compose, facts, photos, results, samples
from perf.adapters import Load
from perf.meter import Running, drive, read
from perf.probe import probe, warm
from perf.samples import Part, Sample, Second
from perf.summary import columns

STACKS = ("plain", "single", "balanced", "scaled")
STUDY_ORDER = ("previous", "mobilenet_v2", "resnet101_v2")
LOG = "run.log"
RATE_OF_PEAK = 0.6  # of the closed loop's answered rate, where --rate does not say
VARYING_OF_PEAK = (0.2, 0.5, 0.9, 0.2)  # the study's low, medium, high, low
START_S = 1.5  # a generator's own start
UP_S = {"plain": 12.0, "single": 8.0, "balanced": 9.0, "scaled": 9.0}  # bring up and take down

Tick = Callable[[str, float], None]
Measured = Callable[[dict[str, Any], list[Sample]], None]
Up = Callable[..., AbstractContextManager[Running]]


@dataclass(frozen=True)
class Times:
    """Seconds of each part of a cell."""

    warm: float
    idle: float
    closed: float
    rate: float
    level: float  # of each of the four levels of the varying load
    settle: float = 0.0  # at most, before it: until the scaled stack is down to one replica


FULL = Times(warm=4, idle=5, closed=30, rate=60, level=20, settle=40)
QUICK = Times(warm=0.5, idle=1, closed=4, rate=2.5, level=2)


@dataclass(frozen=True)
class Options:
    """What to measure, with what."""

    stacks: tuple[str, ...]
    models: tuple[str, ...]
    tool: str
    threads: int
    users: int
    rate: float | None
    times: Times
    engine: str
    replicas: int  # of balanced
    max_replicas: int  # of scaled
    cpus: float
    memory_mb: int
    models_dir: Path
    sources: Path
    photos: Path
    out: Path


def length_s(options: Options) -> float:
    """About how long the run takes."""
    return sum(cell_s(options, stack) for stack in options.stacks) * len(options.models)


def cell_s(options: Options, stack: str) -> float:
    """About how long one cell takes."""
    times = options.times
    loads = times.warm + times.idle + times.closed + times.rate + 2 * START_S
    varying = times.settle + 4 * times.level + START_S if stack == "scaled" else 0
    return UP_S[stack] + loads + varying


def start(options: Options, sent: list[str]) -> dict[str, Any]:
    """The run's facts before anything is measured."""
    known = {name: facts.model(name, options.models_dir, options.sources) for name in options.models}
    given = {k: v for k, v in vars(options).items() if k not in ("models_dir", "sources", "photos", "out", "times")}
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": facts.machine(),
        "images": compose.versions() if options.engine == "docker" else {},
        "options": given | {"seconds": vars(options.times)},
        "photos": sent,
        "models": known,
        "cells": [],
    }


def run(options: Options, facts_of_run: dict[str, Any], up: Up, tick: Tick, measured: Measured) -> None:
    """Measure every cell in turn, a model's one after the other: they are compared, and the machine's speed drifts. One
    that fails keeps its reason and does not stop the others.

    Args:
        tick: called with the cell's name and the seconds that passed since the last call.
        measured: called after each cell with its facts and the samples of its closed loop.
    """
    for model in options.models:
        for stack in options.stacks:
            cell: dict[str, Any] = {"stack": stack, "model": model, "phases": {}}
            facts_of_run["cells"].append(cell)
            sent: list[Sample] = []
            try:
                measure(options, cell, up, partial(tick, f"{stack} {model}"), sent)
            except KeyboardInterrupt:
                cell["reason"] = "interrupted"
                raise
            except Exception as error:  # whatever a stack or a tool dies of is the cell's result
                cell["reason"] = f"failed: {error}"
            finally:
                results.save(options.out, facts_of_run)
                measured(cell, sent)


def measure(options: Options, cell: dict[str, Any], up: Up, tick: Callable[[float], None], sent: list[Sample]) -> None:
    """One cell: up, warm, idle, closed loop (its samples go to `sent`), constant rate, varying load if scaled, down."""
    stack, times = cell["stack"], options.times
    with log(options.out), bring_up(options, cell, up) as running:
        cell["limited_by"] = getattr(running, "limited_by", "")
        cell["url"] = f"{running.url.rstrip('/')}/predict?model={cell['model']}"
        part = partial(load, options, cell, running, tick)
        sending = photos.load(options.photos)
        warm(cell["url"], sending, options.users, times.warm)
        idle, began, first = Part(stack, cell["model"], "idle"), time.monotonic(), read(running, 0.0, 0.0)
        samples.append_samples(options.out, idle, probe(cell["url"], sending, times.idle))
        samples.append_resources(options.out, idle, first + read(running, time.monotonic() - began, 0.0))
        tick(times.warm + times.idle)
        sent += part("closed", seconds=times.closed, tool=options.tool)
        if not (peak := answered_rate(sent)):
            return
        part("rate", levels=[(options.rate or peak * RATE_OF_PEAK, times.rate)])
        if stack == "scaled":
            settle(running, times.settle)
            tick(times.settle)
            part("varying", levels=[(peak * share, times.level) for share in VARYING_OF_PEAK])


def settle(running: Running, within_s: float) -> None:
    """Wait until a scaled stack that nobody loads has one replica, so that what follows shows it come and go."""
    end = time.monotonic() + within_s
    while time.monotonic() < end and running.replicas() > 1:
        time.sleep(0.5)


@contextlib.contextmanager
def log(folder: Path) -> Iterator[None]:
    """What stacks say of themselves goes to `run.log`, not into the progress bar."""
    with (folder / LOG).open("a") as file, contextlib.redirect_stderr(file):
        yield


def bring_up(options: Options, cell: dict[str, Any], up: Up) -> AbstractContextManager[Running]:
    """The cell's stack: the plain recipe is given the Keras files, ours the packages."""
    plain = cell["stack"] == "plain"
    return up(
        cell["stack"],
        model=cell["model"],
        models_dir=options.sources if plain else options.models_dir,
        engine=options.engine,
        replicas=options.replicas,
        max_replicas=options.max_replicas,
        cpus=options.cpus,
        memory_mb=options.memory_mb,
    )


def load(
    options: Options,
    cell: dict[str, Any],
    running: Running,
    tick: Callable[[float], None],
    phase: str,
    *,
    seconds: float = 0.0,
    tool: str = "locust",
    levels: list[tuple[float, float]] | None = None,
) -> list[Sample]:
    """One part of a cell; its samples are written before it returns or raises."""
    part, kept = Part(cell["stack"], cell["model"], phase), list[Sample]()

    def keep(sent: list[Sample], read: list[Second]) -> None:
        kept.extend(sent)
        samples.append_samples(options.out, part, sent)
        samples.append_resources(options.out, part, read)

    if levels:
        cell["phases"][phase] = {"offered": levels[0][0], "levels": levels}
    order = Load(
        url=cell["url"],
        photos=options.photos,
        users=options.users,
        seconds=seconds,
        schedule=tuple(levels or ()),
        processes=min(options.users, options.threads),
        origin=time.time(),
    )
    drive(adapters.find(tool), order, running, keep, tick)
    return kept


def answered_rate(sent: list[Sample]) -> float:
    """Answers with 2xx a second."""
    return columns(sent).rate if sent else 0.0
