"""Command line: `python -m perf run | up | report | compare | plan`."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from perf import commands
from perf.candidates import CORE_HOUR_PRICE
from perf.deployment import MAX_REPLICAS, MEMORY_MB, REPLICAS, StackError
from perf.engine import EngineError
from perf.interrupts import ended_like_interrupts
from perf.photos import default_sources
from perf.run import FULL, STACKS
from perf.scaler import above_zero

HERE = Path(__file__).parent
LEAST_CPUS = 0.01


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a user's mistake is one line and status 2."""
    given = parser().parse_args(arguments)
    ended_like_interrupts()
    command: Callable[[argparse.Namespace], int] = given.command
    try:
        return command(given)
    except BrokenPipeError:  # the reader of our output has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except (ValueError, OSError, StackError, EngineError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def cpu_limit(text: str) -> float:
    """Cores of a replica."""
    if (cores := above_zero(text)) < LEAST_CPUS:
        raise argparse.ArgumentTypeError(f"{text} is under {LEAST_CPUS:g}, the least that Docker gives")
    return cores


def parser() -> argparse.ArgumentParser:
    """Every command and option."""
    top = argparse.ArgumentParser(
        prog="python -m perf", description="Measure models on deployments and choose between them."
    )
    commands_ = top.add_subparsers(required=True, metavar="COMMAND")
    _run(commands_.add_parser("run", help="measure every model on every stack and write the report (perf/run.sh)"))
    up = commands_.add_parser("up", help="bring one stack up until Ctrl-C, by docker compose or as local processes")
    up.add_argument("kind", choices=("single", "balanced", "scaled"))
    up.add_argument("--model", default="", help="the only one served (all)")
    _stack(up)
    up.set_defaults(command=commands.up)
    report = commands_.add_parser("report", help="draw the report again from its data")
    report.add_argument("folder", type=Path, nargs="?", default=HERE / "results", help="of a run (perf/results)")
    _constraints(report)
    report.set_defaults(command=commands.report)
    compare = commands_.add_parser("compare", help="judge a change: two runs side by side, with intervals")
    compare.add_argument("before", type=Path, help="folder of the earlier run")
    compare.add_argument("after", type=Path, help="folder of the later one")
    compare.set_defaults(command=commands.compare)
    _plan(commands_.add_parser("plan", help="replicas, cores and price that a rate needs, from measured service times"))
    return top


def _run(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "-t", "--threads", type=_count, default=1, help="load generator processes, or threads of wrk (%(default)s)"
    )
    run.add_argument("-c", "--connections", type=_count, default=10, help="users of the closed loop (%(default)s)")
    run.add_argument("-d", "--duration", type=_duration, help=f"of the closed loop: 30s, 2m ({FULL.closed:g}s)")
    run.add_argument(
        "--latency", action=argparse.BooleanOptionalAction, default=True, help="print each cell's latency distribution"
    )
    run.add_argument(
        "--rate", type=above_zero, help="requests a second of the constant rate (60 %% of each cell's own peak)"
    )
    run.add_argument("--models", type=_names, help="of the packages, comma-separated (all)")
    run.add_argument("--stacks", type=_names, default=STACKS, help=f"comma-separated ({','.join(STACKS)})")
    run.add_argument(
        "--tool", choices=("locust", "wrk", "siege"), default="locust", help="for the closed loop (%(default)s)"
    )
    run.add_argument("--photos", type=Path, help="folder of the photos to send (../shared/data/photos, else made)")
    run.add_argument("--out", type=Path, help="folder of the results (perf/results; perf/out/quick with --quick)")
    run.add_argument(
        "--quick", action="store_true", help="every cell with short loads, under 5 minutes: to see that all works"
    )
    _stack(run)
    run.add_argument(
        "--sources",
        type=Path,
        default=default_sources(),
        help="folder of the Keras files, for the plain recipe (source-models, else ../shared/models)",
    )
    _constraints(run)
    run.set_defaults(command=commands.run)


def _stack(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--engine", choices=("docker", "local"), help="docker compose, or local processes (docker where it runs)"
    )
    command.add_argument("--replicas", type=_count, default=REPLICAS, help="of the balanced stack (%(default)s)")
    command.add_argument("--max-replicas", type=_count, default=MAX_REPLICAS, help="of the scaled stack (%(default)s)")
    command.add_argument("--cpus", type=cpu_limit, help="CPU limit of a replica, cores (what fits the machine)")
    command.add_argument("--memory-mb", type=_count, default=MEMORY_MB, help="memory limit of a replica (%(default)s)")
    command.add_argument(
        "--models-dir", type=Path, default=HERE.parent / "models", help="folder of the packages (models)"
    )


def _constraints(command: argparse.ArgumentParser) -> None:
    limits = command.add_argument_group("what the recommendation must meet")
    limits.add_argument("--min-accuracy", type=above_zero, default=0.0, help="top-1, 0 to 1")
    limits.add_argument("--max-p99-ms", type=above_zero, default=float("inf"))
    limits.add_argument("--max-memory-mb", type=above_zero, default=float("inf"))
    limits.add_argument("--min-rate", type=above_zero, default=0.0, help="answers a second")
    limits.add_argument(
        "--core-hour-price", type=above_zero, default=CORE_HOUR_PRICE, help="in any currency (%(default)s)"
    )


def _plan(plan: argparse.ArgumentParser) -> None:
    plan.add_argument("folder", type=Path, nargs="?", default=HERE / "results", help="of a run (perf/results)")
    plan.add_argument("--rate", type=above_zero, required=True, help="requests a second")
    plan.add_argument("--max-p99-ms", type=above_zero, default=100.0, help="limit of the p99 (%(default)g)")
    plan.add_argument("--mix", type=_mix, help="photo=share,...: of the measured photos (all alike)")
    plan.add_argument("--cpus", type=cpu_limit, help="CPU limit of a replica, cores (that of the run)")
    plan.add_argument(
        "--core-hour-price", type=above_zero, default=CORE_HOUR_PRICE, help="in any currency (%(default)s)"
    )
    plan.set_defaults(command=commands.plan)


def _names(text: str) -> tuple[str, ...]:
    if not (names := tuple(name for name in text.split(",") if name)):
        raise argparse.ArgumentTypeError(f"{text!r} names none")
    return names


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return value


def _duration(text: str) -> float:
    """wrk's 30, 30s, 2m, 1h in seconds."""
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    return above_zero(number) * unit


def _mix(text: str) -> dict[str, float]:
    pairs = [part.rpartition("=") for part in text.split(",")]
    return {name: above_zero(share) for name, _, share in pairs}


if __name__ == "__main__":
    sys.exit(main())
