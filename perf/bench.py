"""`python -m perf.bench`: what the service promises of speed and memory, measured in one run on this machine."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from perf import facts, photos
from perf.bench_rows import CPU, Bench, Effort, decode_rows, expected_s, model_rows, packages, ready_rows
from perf.bench_servers import CHECKOUT
from perf.bench_table import Row, table
from perf.interrupts import ended_like_interrupts

FULL = Effort(rounds=5, round_s=4.0, decodes=30, starts=3, requests=1000)
QUICK = Effort(rounds=2, round_s=1.0, decodes=10, starts=1, requests=200)
PROGRESS = "{desc} |{bar}| {percentage:3.0f} % [{elapsed}<{remaining}]"


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; `files` are the photos found."""
    parser = argparse.ArgumentParser(prog="python -m perf.bench", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="short rounds: to see that all works")
    add("--models-dir", type=Path, default=CHECKOUT / "models", help="folder of packages (%(default)s)")
    add("--models", default=",".join(CPU), help="served alone and measured, comma-separated (%(default)s)")
    add(
        "--sources",
        type=Path,
        default=photos.default_sources(),
        help="the Keras files for the plain recipe (%(default)s)",
    )
    add("--photos", type=Path, default=photos.default_folder(), help="folder of JPEGs (%(default)s)")
    add("--out", type=Path, help="write the figures and the machine here, as JSON")
    given = parser.parse_args(arguments)
    given.models = given.models.split(",")
    if given.out and not given.out.parent.is_dir():
        parser.error(f"there is no folder {given.out.parent} for --out: make it, or name another")
    given.files = sorted(path for path in given.photos.glob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not given.files:
        parser.error(f"no JPEG in {given.photos}; name a folder of photos with --photos")
    missing = sorted(set(given.models) - set(packages(given.models_dir)))
    if missing:
        parser.error(f"no {', '.join(missing)} in {given.models_dir}; name another folder with --models-dir")
    return given


def measure(given: argparse.Namespace, effort: Effort) -> Iterator[Row]:
    """All rows, each as soon as it is known."""
    total = expected_s(given.models, len(given.files), effort)
    with tqdm(total=total, bar_format=PROGRESS, dynamic_ncols=True) as progress:
        bench = Bench(given.models_dir, given.models, given.sources, given.files, effort, progress)
        yield from decode_rows(bench)
        for model in given.models:
            yield from model_rows(bench, model)
        yield from ready_rows(bench)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table, as far as it came; status 2 where not everything could be measured."""
    given = options(arguments)
    ended_like_interrupts()
    effort = QUICK if given.quick else FULL
    minutes = expected_s(given.models, len(given.files), effort) / 60
    sys.stdout.write(f"This takes about {minutes:.0f} minutes. Nothing else should run on this machine.\n")
    rows: list[Row] = []
    failure = ""
    try:
        rows.extend(measure(given, effort))  # what came before an error stays
    except (RuntimeError, KeyboardInterrupt) as error:
        failure = str(error) or "interrupted"
    sys.stdout.write(table(rows) + "\n")
    if given.out:
        figures = [{**asdict(row), "met": row.met} for row in rows]
        found = {"machine": facts.machine(), "load_average": os.getloadavg(), "rows": figures}
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    if failure:
        sys.stderr.write(f"error: {failure}\n")
    return 2 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
