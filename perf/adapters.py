"""The load tools: how each is called, and how what it prints becomes the same samples.

locust logs every request. wrk keeps a histogram of latencies: its requests are placed at the histogram's quantiles, in
no order and evenly in time. siege prints every request in steps of 10 ms, not when it was sent: evenly in time. Neither
says which photo a request carried (index -1), and neither sends at a constant rate: that part is locust's.
"""

import csv
import math
import random
import shutil
import sys
import time
from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate, chain
from pathlib import Path
from typing import NamedTuple

from perf import photos
from perf.samples import Sample

UNKNOWN_PHOTO = -1
SIEGE_SETTINGS = "verbose = true\ncolor = off\nparser = false\nlogging = false\nconnection = close\nlimit = 1000\n"


class Load(NamedTuple):
    """What to send, at whom, for how long."""

    url: str
    photos: Path  # folder
    users: int
    seconds: float
    schedule: tuple[tuple[float, float], ...] = ()  # (requests a second, seconds) in turn; empty: a closed loop
    processes: int = 1  # locust processes or wrk threads
    origin: float = 0.0  # Unix time that samples count from


class Tool(NamedTuple):
    """A load tool: the commands of one load (run at once, output to `N.out` in a folder) and what they measured.

    `farewell` is what the tool prints when its time is up, where it may hang after it.
    """

    commands: Callable[[Load, Path], list[list[str]]]
    samples: Callable[[Load, Path], list[Sample]]
    farewell: bytes = b""


def find(name: str) -> Tool:
    """The tool of that name; raises FileNotFoundError where it is not installed."""
    if name != "locust" and not shutil.which(name):
        raise FileNotFoundError(f"{name} is not installed: install it (Debian package {name}), or use --tool locust")
    return TOOLS[name]


def locust_commands(load: Load, folder: Path) -> list[list[str]]:
    """One process a share of the load."""
    kind = ["--seconds", f"{load.seconds}"]
    if load.schedule:
        kind = ["--schedule", ",".join(f"{rate}x{seconds}" for rate, seconds in load.schedule)]
    base = [sys.executable, "-m", "perf.load", "--url", load.url, "--photos", str(load.photos)]
    kind += ["--users", str(load.users), "--origin", f"{load.origin or time.time()}"]
    shares = range(1, load.processes + 1)
    return [[*base, *kind, "--share", f"{n}/{load.processes}", "--out", str(folder / f"{n}.csv")] for n in shares]


def locust_samples(_: Load, folder: Path) -> list[Sample]:
    """The samples of all processes by intended send."""
    return sorted(chain.from_iterable(map(_locust_file, sorted(folder.glob("*.csv")))))


def _locust_file(path: Path) -> list[Sample]:
    with path.open(newline="") as file:
        return [Sample(float(a), float(ms), int(status), int(n), int(p)) for a, ms, status, n, p in csv.reader(file)]


def wrk_commands(load: Load, folder: Path) -> list[list[str]]:
    """One wrk with our script; wrk takes whole seconds."""
    threads = [
        "-t",
        str(load.processes),
        "-c",
        str(load.users),
        "-d",
        f"{max(1, round(load.seconds))}s",
        "--timeout",
        "30s",
    ]
    script = str(Path(__file__).with_name("wrk.lua"))
    return [["wrk", *threads, "--latency", "-s", script, load.url, "--", photos.CONTENT_TYPE, *_bodies(load, folder)]]


def wrk_samples(load: Load, folder: Path) -> list[Sample]:
    """wrk's histogram and status counts, spread over its requests."""
    lines = [line.split()[1:] for line in _printed(folder) if line.startswith("sous ")]
    values = [(float(a) / 1000, int(float(b))) for key, a, b in lines if key == "latency_us"]
    statuses = [(int(a), int(float(b))) for key, a, b in lines if key == "status"]
    totals = [(float(a) / 1e6, int(float(b))) for key, a, b in lines if key == "total"]
    if not totals:
        return []
    codes, silent = [code for code, n in statuses if code for _ in range(n)], dict(statuses).get(0, 0)
    rng = random.Random(0)  # noqa: S311  whose a latency was and when, wrk does not say: in no order
    pairs = list(zip(_at_quantiles(values, len(codes)), rng.sample(codes, len(codes)), strict=True))
    pairs += [(1000.0 * load.seconds, 0)] * silent
    return _evenly(totals[0][0], totals[0][1], rng.sample(pairs, len(pairs)))


def _at_quantiles(histogram: list[tuple[float, int]], n: int) -> list[float]:
    """n values at the middles of the histogram's n equal parts."""
    reached = list(accumulate(count for _, count in histogram))
    return [histogram[bisect_left(reached, (k + 0.5) / n * reached[-1])][0] for k in range(n)] if reached else []


def siege_commands(load: Load, folder: Path) -> list[list[str]]:
    """One siege that reads urls and bodies from files; only a body named like a picture is sent past its first zero."""
    bodies = _bodies(load, folder)
    (folder / "siegerc").write_text(SIEGE_SETTINGS)
    (folder / "urls").write_text("".join(f"{load.url} POST <{body}\n" for body in bodies))
    # It ends at a whole second of the clock (4.0.7): as asked, up to a second early. Its summary says how long it took.
    seconds = f"{math.ceil(load.seconds) + 1}S"
    settings = ["-R", str(folder / "siegerc"), "-f", str(folder / "urls"), "-T", photos.CONTENT_TYPE]
    return [["siege", *settings, "-b", "-c", str(load.users), "-t", seconds]]


def siege_samples(load: Load, folder: Path) -> list[Sample]:
    """siege's lines `HTTP/1.1 200  0.05 secs:  612 bytes ==> POST url`, and its count of failed transactions."""
    lines = [line.split() for line in _printed(folder)]
    answers = [(float(w[2]) * 1000, int(w[1]), int(w[4])) for w in lines if len(w) > 6 and w[0].startswith("HTTP/")]
    summary = {" ".join(w[:2]): w[2] for w in lines if len(w) > 2}
    elapsed = float(summary.get("Elapsed time:", load.seconds))
    failed = int(summary.get("Failed transactions:", 0))
    silent = failed - sum(status >= 400 for _, status, _ in answers)
    pairs = [(ms, status) for ms, status, _ in answers] + [(1000.0 * elapsed, 0)] * max(0, silent)
    return _evenly(elapsed, sum(size for *_, size in answers), pairs)


def _evenly(elapsed_s: float, size: int, answers: list[tuple[float, int]]) -> list[Sample]:
    """Samples evenly in time, so early that each is answered when the time is up; answers share the bytes."""
    parts, share = max(1, len(answers) - 1), size // max(1, len(answers))
    return [
        Sample(max(0.0, elapsed_s - ms / 1000) * k / parts, ms, status, share, UNKNOWN_PHOTO)
        for k, (ms, status) in enumerate(answers)
    ]


def _printed(folder: Path) -> list[str]:
    """Lines of the tool; none where it was not started."""
    out = folder / "1.out"
    return out.read_text(errors="replace").splitlines() if out.exists() else []


def _bodies(load: Load, folder: Path) -> list[str]:
    """The request bodies as files."""
    files = []
    for k, photo in enumerate(photos.load(load.photos)):
        (file := folder / f"body-{k}.jpg").write_bytes(photo.body)
        files.append(str(file))
    return files


TOOLS = {
    "locust": Tool(locust_commands, locust_samples),
    "wrk": Tool(wrk_commands, wrk_samples),
    # 4.0.7 ends its threads wherever they are: one within malloc keeps its lock, and the others wait for it for ever.
    # What siege had not printed yet and how many requests had no answer is lost with it.
    "siege": Tool(siege_commands, siege_samples, farewell=b"Lifting the server siege..."),
}
