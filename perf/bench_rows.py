"""What `perf.bench` measures, row by row: pairs by turns (A B A B), each round's ratio, the median of the rounds.

The service's own pieces run as a program (`service.bare_loop`): perf imports nothing of the service.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from perf import bench_servers, photos
from perf.bench_load import Connection, closed_loop, post
from perf.bench_servers import CHECKOUT, Server
from perf.bench_table import Bar, Row
from perf.deployment import keras_file

CONNECTIONS = 10
DECODE = Bar(2.5, at_least=True)  # x plain Pillow
CPU = {"mobilenet_v2": Bar(1.15), "resnet101_v2": Bar(1.03)}  # x the bare loop, raw body
MULTIPART = Bar(1.20)
LATENCY = {"resnet101_v2": Bar(1.15)}  # x decode and the session on all cores
RSS = {"mobilenet_v2": Bar(130), "resnet101_v2": Bar(240), "3 models": Bar(360)}  # MB
READY = {1: Bar(1.5), 3: Bar(2.5)}  # s, by the number of models
PLAIN = {"mobilenet_v2": Bar(12, at_least=True), "resnet101_v2": Bar(6, at_least=True)}  # x the plain recipe

DECODE_S, LATENCY_S, MEMORY_S, START_S = 2.0, 4.0, 15.0, 2.0  # a step takes, about
COST_LOADS, PLAIN_LOADS = 4.0, 3.0  # loads of `round_s` in a step, about


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int  # of every pair
    round_s: float  # about, of one load
    decodes: int  # of one round
    starts: int  # of a service, for the time to ready
    requests: int  # before memory is read


@dataclass(frozen=True)
class Bench:
    """What is measured, how long, and the bar that shows where it is."""

    models_dir: Path
    models: list[str]
    sources: Path
    photos: list[Path]
    effort: Effort
    progress: "tqdm[Any]"

    def rounds(self, what: str, expected_s: float) -> Iterator[None]:
        """The rounds of one pair, each shown as it begins; the progress bar counts expected seconds."""
        for _ in range(self.effort.rounds):
            self.begin(what, expected_s)
            yield

    def begin(self, what: str, expected_s: float) -> None:
        self.progress.set_description(what)
        self.progress.update(expected_s)


def expected_s(models: list[str], photo_count: int, effort: Effort) -> float:
    """About how long everything below takes."""
    pairs = effort.rounds * photo_count
    loads_s = (COST_LOADS + PLAIN_LOADS) * effort.round_s
    models_s = sum(pairs * (loads_s + LATENCY_S * (model in LATENCY)) + MEMORY_S for model in models)
    return pairs * DECODE_S + models_s + (len(models) + 1) * effort.starts * START_S + MEMORY_S


def decode_rows(bench: Bench) -> Iterator[Row]:
    """Decoding against plain Pillow, CPU time."""
    count = f"--count={bench.effort.decodes}"
    for photo in bench.photos:
        ours, pillow = [], []
        for _ in bench.rounds(f"decode {photo.name}", DECODE_S):
            pillow.append(run("perf.bench_decode", photo, count)["decode_ms"])
            ours.append(run("service.bare_loop", "decode", photo, count)["decode_ms"])
        detail = f"{median(ours):.2f} against {median(pillow):.2f} ms"
        yield Row(f"decode {photo.name}, times as fast as Pillow", ratio(pillow, ours), "x", DECODE, detail)


def model_rows(bench: Bench, model: str) -> Iterator[Row]:
    """One model served alone: CPU and throughput, idle latency, memory, and the plain recipe."""
    with bench_servers.only(bench.models_dir, [model]) as folder, bench_servers.service(folder) as server:
        plan = read_plan(server, model)
        for photo in bench.photos:
            yield from cost_rows(bench, model, server, plan, photo)
        for photo in bench.photos if model in LATENCY else []:
            yield latency_row(bench, model, server, photo)
        yield memory_row(bench, server, [model])
        yield from plain_rows(bench, model, server, plan)


def cost_rows(bench: Bench, model: str, server: Server, plan: dict[str, Any], photo: Path) -> Iterator[Row]:
    """CPU seconds a thousand photos, and photos a second, raw and multipart.

    Each load stands between two bare loops: a machine that shares its host is another a few seconds later. Where the
    service divides a session's threads among calls, a loop that does so too says what HTTP and the queue cost alone.
    """
    count = requests_of(bench.effort.round_s, plan)
    threads = f"--intra-op-threads={plan['intra_op_threads']}"
    bare_loop = ("service.bare_loop", "loop", photo, onnx(bench, model), f"--count={count}", threads)
    bodies = uploads(photo, model)
    cost_s, bare_s, rate = ({way: list[float]() for way in bodies} for _ in range(3))
    bare_rate, divided_s = [], list[float]()
    for _ in bench.rounds(f"CPU of {model}, {photo.name}", COST_LOADS * bench.effort.round_s):
        before = run(*bare_loop)
        for way, request in bodies.items():
            used_s = server.cpu_s()
            rate[way].append(closed_loop(server.port, [request], count, CONNECTIONS).rate)
            cost_s[way].append((server.cpu_s() - used_s) / count * 1000)
            after = run(*bare_loop)
            bare_s[way].append((before["cpu_s"] + after["cpu_s"]) / 2 / after["photos"] * 1000)
            bare_rate.append(after["photos"] / after["wall_s"])
            before = after
        if plan["intra_op_threads"] > 1:
            divided_s.append(run(*bare_loop, "--as-served")["cpu_s"] / after["photos"] * 1000)
    for way, bar in (("raw", CPU.get(model)), ("multipart", MULTIPART)):
        what = f"{model}, {photo.name}, {way} body"
        each = sorted(a / b for a, b in zip(cost_s[way], bare_s[way], strict=True))
        detail = f"{median(cost_s[way]):.2f} against {median(bare_s[way]):.2f} CPU s per 1,000"
        spread = f"rounds {each[0]:.2f} to {each[-1]:.2f}"
        yield Row(f"{what}: CPU, x bare loop", median(each), "x", bar, f"{detail}, {spread}")
        yield Row(f"{what}: throughput", median(rate[way]), "/s", None, f"bare loop {median(bare_rate):.1f}/s")
    if divided_s:
        what = f"{model}, {photo.name}, raw body: CPU, x a loop that divides threads alike"
        yield Row(what, ratio(cost_s["raw"], divided_s), "x", None, f"{median(divided_s):.2f} CPU s per 1,000")


def latency_row(bench: Bench, model: str, server: Server, photo: Path) -> Row:
    """One photo at a time on an idle service, against decode and a session run on all cores."""
    request = uploads(photo, model)["raw"]
    count = max(5, bench.effort.decodes // 2)
    threads = f"--intra-op-threads={len(os.sched_getaffinity(0))}"
    floor_ms, service_ms = [], []
    for _ in bench.rounds(f"latency of {model}, {photo.name}", LATENCY_S):
        stages = run("service.bare_loop", "latency", photo, onnx(bench, model), f"--count={count}", threads)
        floor_ms.append(stages["decode_ms"] + stages["infer_ms"])
        service_ms.append(median(closed_loop(server.port, [request], count, 1).latencies_ms))
    what = f"{model}, {photo.name}: idle latency, x decode and session"
    detail = f"{median(service_ms):.1f} against {median(floor_ms):.1f} ms"
    return Row(what, ratio(service_ms, floor_ms), "x", LATENCY[model], detail)


def memory_row(bench: Bench, server: Server, models: list[str]) -> Row:
    """Resident memory of the serving process after many requests of all photos and bodies."""
    bench.begin(f"memory with {', '.join(models)}", MEMORY_S)
    requests = [body for model in models for photo in bench.photos for body in uploads(photo, model).values()]
    closed_loop(server.port, requests, bench.effort.requests, CONNECTIONS)
    what = named(models)
    return Row(f"{what}: resident after {bench.effort.requests:,} requests", server.rss_mb(), "MB", RSS.get(what))


def plain_rows(bench: Bench, model: str, server: Server, plan: dict[str, Any]) -> Iterator[Row]:
    """Throughput against the plain recipe, both up, loaded by turns."""
    source = keras_file(bench.sources, model)
    if source is None:
        bench.progress.write(f"no {model}.keras or .h5 in {bench.sources}: it is not compared with the plain recipe")
        return
    count = requests_of(bench.effort.round_s, plan)
    plain_count = max(3 * CONNECTIONS, count // 15)
    with bench_servers.plain(source) as recipe:
        for photo in bench.photos:
            request = [uploads(photo, model)["multipart"]]
            ours, plain = [], []
            for _ in bench.rounds(f"plain recipe, {model}, {photo.name}", PLAIN_LOADS * bench.effort.round_s):
                plain.append(closed_loop(recipe.port, request, plain_count, CONNECTIONS).rate)
                ours.append(closed_loop(server.port, request, count, CONNECTIONS).rate)
            what = f"{model}, {photo.name}: throughput, x plain recipe"
            detail = f"{median(ours):.1f} against {median(plain):.1f}/s"
            yield Row(what, ratio(ours, plain), "x", PLAIN.get(model), detail)


def ready_rows(bench: Bench) -> Iterator[Row]:
    """From the start of the service to its first 200 of /health/ready, files cached; and the memory of all models."""
    names = packages(bench.models_dir)
    for models in [*([name] for name in bench.models), *([names] if len(names) > 1 else [])]:
        seconds = []
        with bench_servers.only(bench.models_dir, models) as folder:
            for _ in range(bench.effort.starts):
                bench.begin(f"start with {', '.join(models)}", START_S)
                with bench_servers.service(folder) as server:
                    seconds.append(server.ready_s)
        yield Row(f"{named(models)}: ready", median(seconds), "s", READY.get(len(models)))
    if len(names) > 1:
        with bench_servers.service(bench.models_dir) as server:
            yield memory_row(bench, server, names)


def named(models: list[str]) -> str:
    return models[0] if len(models) == 1 else f"{len(models)} models"


def uploads(photo: Path, model: str) -> dict[str, bytes]:
    """The two ways to send a photo to POST /predict, as whole requests."""
    path, body = f"/predict?model={model}", photo.read_bytes()
    multipart = post(path, photos.CONTENT_TYPE, photos.multipart(photo.name, body))
    return {"raw": post(path, "image/jpeg", body), "multipart": multipart}


def requests_of(round_s: float, plan: dict[str, Any]) -> int:
    """An even number of requests that takes about so long: decoding and HTTP are 3 ms of CPU, the plan has the rest."""
    cores = len(os.sched_getaffinity(0))
    cpu_ms: float = plan["image_ms"] * plan["intra_op_threads"] + 3
    return max(2 * CONNECTIONS, 2 * round(round_s * 1000 * cores / cpu_ms / 2))


def read_plan(server: Server, model: str) -> dict[str, Any]:
    """The plan that the service chose for the version it serves, with `image_ms`."""
    request = f"GET /models/{model} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
    described = json.loads(Connection(server.port).ask(request.encode())[1])
    version = next(each for each in described["versions"] if each["version"] == described["default_version"])
    return dict(version["plan"])


def packages(models_dir: Path) -> list[str]:
    return sorted({path.parts[-3] for path in models_dir.glob("*/*/model.onnx")})


def onnx(bench: Bench, model: str) -> str:
    """The highest version's file, as an option."""
    versions = {int(path.parent.name): path for path in (bench.models_dir / model).glob("*/model.onnx")}
    return f"--onnx={versions[max(versions)].resolve()}"


def run(module: str, *arguments: object) -> dict[str, float]:
    """What a program of ours prints as JSON."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)  # noqa: S603  our own
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return dict(json.loads(done.stdout))


def median(values: list[float]) -> float:
    return float(statistics.median(values))


def ratio(above: list[float], below: list[float]) -> float:
    """Median of the rounds' own ratios."""
    return median([a / b for a, b in zip(above, below, strict=True)])
