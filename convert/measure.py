"""`python -m convert.measure PACKAGE`: measure a package's plan again, on the machine that is to serve it."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from convert import package, timing
from convert.errors import ConvertError
from convert.progress import Progress
from service.cpu import cores


def measure(folder: Path, progress: Progress) -> dict[str, Any]:
    """The plan of `models/NAME/VERSION` as measured here, with the golden inputs; written into its report.json.

    Raises:
        ConvertError: the folder is no package.
    """
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        pixels = np.load(folder / "golden.npz", allow_pickle=False)["inputs"]
    except (OSError, ValueError, KeyError) as error:
        raise ConvertError(f"{folder} is no package ({error}): give models/NAME/VERSION") from None
    with progress.stage("measure plans", len(timing.plans(cores()))) as tick:
        plan = timing.plan_grid(folder / "model.onnx", pixels, tick)
    fresh = folder / ".report.json"
    package.write_json(fresh, report | {"plan": plan, "plan_machine": timing.machine()})
    fresh.replace(folder / "report.json")
    return plan


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 measured, 2 no package."""
    parser = argparse.ArgumentParser(prog="python -m convert.measure", description=__doc__)
    parser.add_argument("package", type=Path, help="models/NAME/VERSION")
    try:
        plan = measure(parser.parse_args(argv).package, Progress())
    except ConvertError as error:
        print(f"convert.measure: {error}", file=sys.stderr)  # noqa: T201  the command's one line
        return error.exit_status
    print(json.dumps({key: value for key, value in plan.items() if key != "grid"}))  # noqa: T201  the command's result
    return 0


if __name__ == "__main__":
    sys.exit(main())
