"""What each command does, and what it prints."""

import argparse
import contextlib
import os
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from perf import adapters, compose, engine, facts, findings, photos, results, stacks, tables
from perf import compare as comparing
from perf import plan as planning
from perf import report as reporting
from perf import run as running
from perf.candidates import Constraints
from perf.console import say, table_text, wrk_summary
from perf.run import FULL, QUICK, STACKS, STUDY_ORDER, Options, Times
from perf.samples import RESOURCES, SAMPLES, Sample
from perf.summary import Cell

CPU_SHARES = 4  # of the machine: up to three replicas and the load generator
WRITTEN = (results.RESULTS, results.PARTIAL, SAMPLES, RESOURCES, "report.html", "report.md", running.LOG)


def run(given: argparse.Namespace) -> int:
    """Measure and report, also what an interrupted run has measured. Status 1: no cell is valid; 130: interrupted."""
    options, _ = run_options(given), constraints(given)  # a mistake in either is said before anything is measured
    sent = [photo.name for photo in photos.load(options.photos)]
    cells, seconds = len(options.stacks) * len(options.models), round(running.length_s(options))
    what = f"{cells} cell{'s' * (cells > 1)} ({', '.join(options.stacks)} x {', '.join(options.models)})"
    say(f"{what}, about {seconds // 60} min {seconds % 60:02} s, by {options.engine}")
    if options.engine == "docker":
        say("images are built first where they are not there yet: minutes")
    run_facts = running.start(options, sent)
    prepare(options.out)
    status = 0
    try:
        with Progress(options, given.latency) as progress:
            running.run(options, run_facts, stacks.up, progress.tick, progress.measured)
    except KeyboardInterrupt:
        say("interrupted: the report holds what was measured")
        status = 130
    reported = _report(options.out, given)
    return status or reported


class Progress:
    """The bar with its ETA, in planned seconds; each cell's summary is printed above it."""

    def __init__(self, options: Options, latency: bool) -> None:
        self.options, self.latency = options, latency
        self.ended = 0.0  # planned seconds of the cells that are over
        layout = "{desc:<26}{percentage:3.0f}% |{bar}| {elapsed} passed{postfix}"
        self.planned = round(running.length_s(options), 1)
        self.bar = tqdm(total=self.planned, bar_format=layout, mininterval=0.5, dynamic_ncols=True, postfix="")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def tick(self, name: str, seconds: float) -> None:
        """So many seconds of a cell have passed."""
        self.bar.set_description_str(name, refresh=False)
        self._reach(self.bar.n + seconds)

    def measured(self, cell: dict[str, Any], samples: list[Sample]) -> None:
        """A cell is over: print what its closed loop measured, or why it did not."""
        self.ended += running.cell_s(self.options, cell["stack"])
        self._reach(self.ended)
        self.bar.clear()
        say(f"\n{cell['stack']} {cell['model']}")
        if samples:
            say(wrk_summary(cell["url"], samples, self.options.threads, self.options.users, self.latency))
        if cell.get("reason"):
            say(cell["reason"])

    def _reach(self, seconds: float) -> None:
        left = max(0.0, self.planned - seconds)
        self.bar.set_postfix_str(f"about {left // 60:.0f}:{left % 60:02.0f} left", refresh=False)
        self.bar.update(min(seconds, self.planned) - self.bar.n)


def run_options(given: argparse.Namespace) -> Options:
    """The command line with its defaults worked out; raises ValueError for what cannot be run."""
    known = facts.names(given.models_dir)
    models = given.models or tuple(sorted(known, key=lambda name: (_place(name), name)))
    if unknown := [name for name in models if name not in known] or (not models and ["any"]):
        there = ", ".join(known) or "none"
        raise ValueError(
            f"no package of {', '.join(unknown)} in {given.models_dir} (there: {there}): "
            "name others with --models, or their folder with --models-dir"
        )
    if unknown := [name for name in given.stacks if name not in STACKS]:
        raise ValueError(f"unknown stack {', '.join(unknown)}: choose from {', '.join(STACKS)}")
    if twice := [name for names in (models, given.stacks) for name, n in Counter(names).items() if n > 1]:
        raise ValueError(f"{', '.join(twice)} named twice: each cell is measured once")
    if given.threads > given.connections:
        raise ValueError(f"-t {given.threads} with -c {given.connections}: a thread needs a connection")
    if given.tool == "siege" and given.threads > 1:
        raise ValueError(f"-t {given.threads}: siege runs a thread a user, in one process: leave -t out")
    adapters.find(given.tool)
    here = Path(__file__).parent
    return Options(
        stacks=tuple(given.stacks),
        models=models,
        tool=given.tool,
        threads=given.threads,
        users=given.connections,
        rate=given.rate,
        times=times(given.quick, given.duration),
        **stack_options(given),
        sources=given.sources.resolve(),
        photos=photo_folder(given.photos),
        out=given.out or here / ("out/quick" if given.quick else "results"),
    )


def stack_options(given: argparse.Namespace) -> dict[str, Any]:
    """What every stack of this command line is brought up with."""
    return {
        "engine": given.engine or ("docker" if engine.available() and compose.installed() else "local"),
        "replicas": given.replicas,
        "max_replicas": given.max_replicas,
        "cpus": given.cpus or len(os.sched_getaffinity(0)) / CPU_SHARES,
        "memory_mb": given.memory_mb,
        "models_dir": given.models_dir.resolve(),
    }


def up(given: argparse.Namespace) -> int:
    """One stack until Ctrl-C or SIGTERM."""
    with stacks.up(given.kind, model=given.model, faster=1.0, **stack_options(given)) as running:
        say(f"{given.kind} answers at {running.url}; Ctrl-C ends it ({running.limited_by})")
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    return 0


def _place(name: str) -> int:
    return STUDY_ORDER.index(name) if name in STUDY_ORDER else len(STUDY_ORDER)


def times(quick: bool, closed_s: float | None) -> Times:
    """Seconds of the parts of a cell; -d sets the closed loop and moves the other loads with it."""
    base = QUICK if quick else FULL
    if closed_s is None:
        return base
    scale = closed_s / base.closed
    return replace(base, closed=closed_s, rate=max(1, base.rate * scale), level=max(1, base.level * scale))


def photo_folder(given: Path | None) -> Path:
    """The photos to send: those named, else the shared ones, else two made ones."""
    if given or photos.default_folder().is_dir():
        return (given or photos.default_folder()).resolve()
    return photos.synthetic(Path(__file__).parent / "out" / "photos").resolve()


def prepare(folder: Path) -> None:
    """An empty folder for the results; raises ValueError where it holds something else than older results."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {p.name for p in folder.iterdir()}
    is_run = not there.isdisjoint({results.RESULTS, results.PARTIAL})  # alone, a folder of plots may be anybody's
    ours = {*WRITTEN, "plots"} if is_run else {*WRITTEN}
    if strange := sorted(there - ours):
        raise ValueError(f"{folder} holds other files ({', '.join(strange[:3])}): name an empty folder with --out")
    for name in WRITTEN:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "plots", ignore_errors=True)


def constraints(given: argparse.Namespace) -> Constraints:
    """Those of the command line."""
    if given.min_accuracy > 1:
        raise ValueError(f"--min-accuracy {given.min_accuracy:g}: top-1 is between 0 and 1")
    return Constraints(given.min_accuracy, given.max_p99_ms, given.max_memory_mb, given.min_rate, given.core_hour_price)


def report(given: argparse.Namespace) -> int:
    """Draw the report again."""
    return _report(given.folder, given)


def _report(folder: Path, given: argparse.Namespace) -> int:
    made = reporting.write(folder, constraints(given))
    for text in [*findings.headline(made.cells), *findings.warnings(made.cells)]:
        say(text)
    for choice in made.chosen.choices:
        say(f"{choice.priority}: {choice.candidate.name} ({'; '.join(choice.reasons)})")
    say(f"report: {folder / 'report.html'}")
    return 0 if any(not cell.reasons for cell in made.cells) else 1


def compare(given: argparse.Namespace) -> int:
    """Print two runs side by side."""
    (before_run, before), (after_run, after) = results.read(given.before), results.read(given.after)
    for text in comparing.unlike(before_run, after_run):
        say(f"not the same in both: {text}")
    say(table_text(comparing.table(comparing.compare(before, after))))
    for text in comparing.left_out(before, after):
        say(f"left out: {text}")
    return 0


def plan(given: argparse.Namespace) -> int:
    """Print what a rate needs, and how far the model can be trusted."""
    facts_of_run, cells = results.read(given.folder)
    check_mix(given.mix, cells)
    needed = findings.needs(
        facts_of_run,
        cells,
        rate=given.rate,
        max_p99_ms=given.max_p99_ms,
        price=given.core_hour_price,
        mix=given.mix,
        cpus=given.cpus,
    )
    if not needed.rows:
        raise ValueError(f"{given.folder} has no valid single stack with idle answers: run perf/run.sh --stacks single")
    say(table_text(needed))
    say(table_text(tables.checks(planning.check(facts_of_run, cells))))
    return 0


def check_mix(mix: dict[str, float] | None, cells: list[Cell]) -> None:
    """Raise ValueError for a photo whose time is not known of every model."""
    timed = [set(cell.idle) for cell in cells if cell.stack in {"single", "plain"} and cell.idle and not cell.reasons]
    measured = sorted(set.intersection(*timed)) if timed else []
    if unknown := [name for name in mix or {} if name not in measured]:
        raise ValueError(f"photo {', '.join(unknown)} was not measured: choose from {', '.join(measured)}")
