"""The command line of a conversion: options, then one call."""

import argparse
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from convert.card import table
from convert.endings import INTERRUPTED, SIGNALS, catch, fail, interrupted
from convert.errors import FULL, ConvertError
from convert.options import RANGES, Options
from convert.photos import LEAST_CALIBRATION
from convert.pipeline import convert
from convert.progress import Progress
from convert.verify import Gate
from service.model import PackageError


class Parser(argparse.ArgumentParser):
    """Answers a bad command line in one line, as every other mistake."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"convert: {message}; `{self.prog} --help` lists the options\n")


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """The command line of what quantises, without what becomes of it."""
    found = Parser(prog=program, description=description)
    add = found.add_argument
    add("source", type=Path, metavar="SOURCE", help=".keras or .h5 file, or SavedModel folder")
    add("--images", required=True, type=Path, help="photos: class folders, files named 7_x.jpg, or one flat folder"
        " (no accuracy then); in training, validation and evaluation folders, or split by hash")  # fmt: skip
    add("--labels", type=Path, help="names of the classes in the order of the output: a line each, or a JSON list")
    add("--input-range", choices=sorted(RANGES), default="0,1", metavar="LOW,HIGH", help="pixels the source was trained"
        " on: 0,1 (default), -1,1 or 0,255")  # fmt: skip
    add(
        "--resize",
        choices=["bicubic", "bilinear", "box", "nearest"],
        default="bicubic",
        help="filter to the input size, as in training (default: bicubic; Keras' own loaders: bilinear, nearest)",
    )
    add("--crop", choices=["none", "center"], default="none", help="none squeezes the whole photo (default)")
    add("--macs", type=share, default=100.0, metavar="PERCENT", help="of the multiplications to leave, by pruning"
        " channels (default: 100, none pruned)")  # fmt: skip
    add("--calibration", type=calibration, default=512, metavar="N", help="photos to calibrate on (default: 512)")
    add(
        "--gate-drop",
        type=percent,
        default=0.5,
        metavar="POINTS",
        help="top-1 points that may be lost, else nothing is written (default: 0.5)",
    )
    add(
        "--gate-agreement",
        type=percent,
        default=97.0,
        metavar="PERCENT",
        help="percent of answers equal to float's, else nothing is written (default: 97)",
    )
    add("--trust-source", action="store_true", help="run code stored in the source (Lambda layers)")
    return found


def packaging() -> argparse.ArgumentParser:
    """The command line of a conversion."""
    about = "Convert a Keras image classifier to a signed-off int8 ONNX package."
    found = parser("python -m convert", about)
    add = found.add_argument
    add("--name", required=True, type=package_name, help="name of the package: models/NAME/VERSION")
    add("--version", type=positive, default=1, metavar="N", help="version of the package (default: 1)")
    add("--weight-bits", type=int, choices=[7, 8], default=7, help="8 only where all CPUs have VNNI (default: 7)")
    add("--replace", action="store_true", help="replace a package of this name and version")
    add("--models", type=Path, default=Path("models"), help="folder of the packages (default: models)")
    return found


def package_name(text: str) -> str:
    """A name by docs/package.md."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no package name: lower-case letters, digits, '_', '.', '-'")
    return text


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def calibration(text: str) -> int:
    """A number of photos that says something."""
    if (count := positive(text)) < LEAST_CALIBRATION:
        raise argparse.ArgumentTypeError(f"{count} photos are too few to calibrate on: {LEAST_CALIBRATION} at least")
    return min(count, sys.maxsize)


def percent(text: str) -> float:
    """A number from 0 to 100."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 100")
    return value


def share(text: str) -> float:
    """A number above 0, to 100."""
    if not (value := percent(text)):
        raise argparse.ArgumentTypeError("0 % of the multiplications leave no network: a number above 0, to 100")
    return value


def options_from(arguments: argparse.Namespace) -> Options:
    """Options of one conversion."""
    given = vars(arguments)
    gate = Gate(given.pop("gate_drop"), given.pop("gate_agreement"))
    return Options(gate=gate, **given)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 packaged, 2 bad input or interrupted, 3 refused by the gate."""
    options = read_options(packaging(), sys.argv[1:] if argv is None else argv)

    def run() -> str:
        report = convert(options, Progress())
        written = os.fsencode(options.models / options.name / str(options.version))
        return f"{table(report)}\nwritten: {written.decode(errors='backslashreplace')}"

    return answered(run, "report.json has the figures")


def read_options(known: argparse.ArgumentParser, argv: Sequence[str], **more: str) -> Options:
    """Options of a command line, and `more` that it does not have. (argparse takes "-1,1" for an option unless it is
    bound to its name.)"""
    words = list(argv)
    if "--input-range" in words[:-1]:
        at = words.index("--input-range")
        words[at : at + 2] = [f"--input-range={words[at + 1]}"]
    return options_from(known.parse_args(words, argparse.Namespace(**more)))


def answered(run: Callable[[], str], kept: str = "") -> int:
    """Print what `run` gives, or in one line why it could not; the exit status. `kept`: where else the result is."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    catch()
    try:
        found = run()
    except (ConvertError, PackageError) as error:
        return fail(str(error), getattr(error, "exit_status", 2))
    except KeyboardInterrupt:
        return fail(INTERRUPTED)
    except OSError as error:
        return fail(explained(error))
    except MemoryError:
        return fail("out of memory: calibrate on fewer photos (--calibration), or convert on a machine with more")
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is interrupted:  # else the process is ending
                signal.signal(number, handler)
    try:
        print(found, flush=True)  # noqa: T201  the command's result
    except OSError as error:
        sys.stdout = None  # it cannot be flushed at exit either
        told = fail(f"done, but standard output cannot be written to ({error.strerror}){kept and f': {kept}'}")
        return 0 if kept else told
    return 0


def explained(error: OSError) -> str:
    """What the system refused, with the remedy where it is known."""
    if error.errno in FULL:
        return f"no space left for {error.filename or 'temporary files'}: free some, or set TMPDIR to another disk"
    return f"{error.filename or 'a file'}: {error.strerror or error}: check its path and your rights to it"
