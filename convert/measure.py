"""`python -m convert.measure PACKAGE`: measure a package's plan again, on the machine that is to serve it."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert import package, timing
from convert.__main__ import FULL, Parser, answered
from convert.errors import ConvertError
from convert.progress import Progress
from convert.source import first_line
from service.cpu import cores


def measure(folder: Path, progress: Progress) -> dict[str, Any]:
    """The plan of `models/NAME/VERSION` as measured here, with the golden inputs; written into its report.json.

    Raises:
        ConvertError: the folder is no package, or cannot be written to.
    """
    report, pixels = read(folder)
    try:
        with progress.stage("measure plans", timing.ROUNDS * len(timing.plans(cores()))) as tick:
            plan = timing.plan_grid(folder / "model.onnx", pixels, tick)
    except Exception as error:  # ONNX Runtime has a class an error code, and no common one but Exception
        raise ConvertError(f"{folder} cannot be measured ({first_line(error)}): convert it again") from None
    fresh = folder / ".report.json"
    try:
        package.write_json(fresh, report | {"plan": plan, "plan_machine": timing.machine()})
        fresh.replace(folder / "report.json")
    except OSError as error:
        remedy = "free some space" if error.errno in FULL else "run as its owner, and not on a read-only mount"
        raise ConvertError(f"{folder} cannot be written to ({error.strerror or error}): {remedy}") from None
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
    return plan


def read(folder: Path) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """A package's report and golden inputs.

    Raises:
        ConvertError: they are missing or damaged.
    """
    try:
        report = dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))
        with (folder / "golden.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return report, stored["inputs"]
    except Exception as error:  # any class, from json, numpy, zipfile and zlib, for damaged files
        raise ConvertError(f"{folder} is no package ({first_line(error)}): give models/NAME/VERSION") from None


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 measured; 2 no package, not writable or interrupted, and the package is as it was."""
    parser = Parser(prog="python -m convert.measure", description=__doc__)
    parser.add_argument("package", type=Path, help="models/NAME/VERSION")
    folder = parser.parse_args(argv).package

    def run() -> str:
        plan = measure(folder, Progress())
        return json.dumps({key: value for key, value in plan.items() if key != "grid"})

    return answered(run)


if __name__ == "__main__":
    sys.exit(main())
