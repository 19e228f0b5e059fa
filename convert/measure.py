"""`python -m convert.measure PACKAGE`: measure a package's plan again, on the machine that is to serve it; with
`--replay SECONDS` also whether it answers there as on an emulated AVX2-only CPU."""

import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert import card, golden, package, timing, verify
from convert.command import Parser, answered, positive
from convert.errors import FULL, ConvertError
from convert.pipeline import REPLAYED, check_portable
from convert.progress import Progress
from convert.source import first_line
from service.cpu import cores


def measure(folder: Path, progress: Progress, replay_s: int = 0) -> dict[str, Any]:
    """The plan of `models/NAME/VERSION` as measured here, with the golden inputs; written into its report.json. With
    `replay_s`, as many pictures as an emulated CPU answers in so many seconds are compared, and the model card is
    written again with what came out.

    Raises:
        ConvertError: the folder is no package, cannot be written to, or there is no emulator that works.
        GateRefusedError: the answers differ.
    """
    report, pixels = read(folder)
    if replay_s:
        report["portability"] = replayed(folder, report, progress, replay_s)
    try:
        with progress.stage("measure plans", timing.ROUNDS * len(timing.plans(cores()))) as tick:
            plan = timing.plan_grid(folder / "model.onnx", pixels, tick)
    except Exception as error:  # ONNX Runtime has a class an error code, and no common one but Exception
        raise ConvertError(f"{folder} cannot be measured ({first_line(error)}): convert it again") from None
    report |= {"plan": plan, "plan_machine": timing.machine()}
    fresh, fresh_card = folder / ".report.json", folder / ".MODEL_CARD.md"
    try:
        if replay_s:
            fresh_card.write_text(card.model_card(report), encoding="utf-8")
        package.write_json(fresh, report)
        fresh.replace(folder / "report.json")
        if replay_s:
            fresh_card.replace(folder / "MODEL_CARD.md")
    except OSError as error:
        remedy = "free some space" if error.errno in FULL else "run as its owner, and not on a read-only mount"
        raise ConvertError(f"{folder} cannot be written to ({error.strerror or error}): {remedy}") from None
    finally:
        for path in (fresh, fresh_card):
            with suppress(OSError):
                path.unlink(missing_ok=True)
    return plan


def replayed(folder: Path, report: Mapping[str, Any], progress: Progress, seconds: int) -> dict[str, Any]:
    """The `portability` member of report.json for this machine; raises as `measure`."""
    try:
        card.model_card(report)  # it will be written again
        pictures = golden.images(REPLAYED, report["preprocessing"]["height"], report["preprocessing"]["width"])
    except Exception as error:  # any class, for members that are missing or of another type
        raise ConvertError(f"{folder}/report.json is damaged ({first_line(error)}): convert it again") from None
    with progress.stage("replay on an AVX2-only CPU", 1) as tick, tempfile.TemporaryDirectory(prefix="sous-") as work:
        found = verify.on_avx2(folder / "model.onnx", pictures, Path(work), seconds)
        tick()
    if "skipped" in found:
        raise ConvertError(f"answers cannot be replayed: {found['skipped']}")
    check_portable(found, report.get("quantisation", {}).get("weight_bits", 7))
    return found


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
    """Exit status: 0 measured; 2 no package, not writable or interrupted, 3 other answers there: the package is as it
    was."""
    parser = Parser(prog="python -m convert.measure", description=__doc__)
    parser.add_argument("package", type=Path, help="models/NAME/VERSION")
    parser.add_argument(
        "--replay", type=positive, default=0, metavar="SECONDS", help="compare with an emulated CPU, too"
    )
    given = parser.parse_args(argv)

    def run() -> str:
        plan = measure(given.package, Progress(), given.replay)
        return json.dumps({key: value for key, value in plan.items() if key != "grid"})

    return answered(run, "report.json has the plan")


if __name__ == "__main__":
    sys.exit(main())
