"""A small HTTP server with a known service time, and runs made from known samples."""

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perf import results, samples
from perf.photos import synthetic
from perf.samples import Part, Sample, Second
from perf.usage import Usage


@dataclass
class Server:
    """Answers POST /predict after `delay_s`, `slots` at once; every `fail_every`-th with 503, every `cut_every`-th with
    half a body."""

    url: str = ""
    delay_s: float = 0.01
    slots: int = 2
    fail_every: int = 0
    cut_every: int = 0
    bodies: list[tuple[str, bytes]] = field(default_factory=list)  # content type and body of the first requests
    answered: int = 0
    connections: int = 0

    def replicas(self) -> int:
        return 1

    def usage(self) -> Usage:
        return Usage(cpu_seconds=self.answered * self.delay_s, memory_bytes=100_000_000, throttled_seconds=0.0)


@pytest.fixture
def server() -> Iterator[Server]:
    """A running Server."""
    state = Server()
    slots = threading.Semaphore(state.slots)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5

        def setup(self) -> None:
            super().setup()
            state.connections += 1

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if len(state.bodies) < 8:
                state.bodies.append((self.headers["Content-Type"], body))
            with slots:
                time.sleep(state.delay_s)
                state.answered += 1
            answer = b'{"predictions": []}'
            fails = state.fail_every and state.answered % state.fail_every == 0
            self.send_response(503 if fails else 200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.close_connection = bool(state.cut_every) and state.answered % state.cut_every == 0
            self.wfile.write(answer[: len(answer) // 2] if self.close_connection else answer)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:  # a load tool that ends drops its connections
            pass

    with Quiet(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, args=(0.05,))
        thread.start()
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def photos_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made photos."""
    return synthetic(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """A package of `mobilenet_v2`, as far as perf reads it."""
    folder = tmp_path / "models" / "mobilenet_v2" / "1"
    folder.mkdir(parents=True)
    report = {
        "version": 1,
        "verdict": "int8",
        "files": {"model.onnx": {"bytes": 2_500_000}},
        "evaluation": {"photos": 3347, "agreement": 0.97, "float": {"top1": 58.9}, "int8": {"top1": 58.8}},
    }
    (folder / "report.json").write_text(json.dumps(report))
    return tmp_path / "models"


def closed(rate: float, ms: float, seconds: float = 10.0, status: int = 200) -> list[Sample]:
    """Evenly spaced requests that all take `ms`."""
    return [Sample(k / rate, ms, status, 500, k % 2) for k in range(round(rate * seconds))]


def resources(
    seconds: int = 12, *, cores: float = 0.5, generator: float = 0.2, memory: int = 100_000_000, replicas: int = 1
) -> list[Second]:
    """A second each of steady use."""
    return [
        Second(float(k), replicas, memory, cores * k, 0.0, generator * k, 0.0, (cores + generator) * k)
        for k in range(seconds)
    ]


RATES = {"plain": 10.0, "single": 100.0, "balanced": 190.0, "scaled": 180.0}  # of the first model
MODELS = {"mobilenet_v2": (0.589, 0.588, 1.0), "resnet101_v2": (0.6, 0.599, 0.1)}  # float, int8, speed


@pytest.fixture
def loads() -> SimpleNamespace:
    """`closed` and `resources`, to make known samples with."""
    return SimpleNamespace(closed=closed, resources=resources)


@pytest.fixture
def run_facts() -> dict[str, Any]:
    """What a run writes down before it measures, with all cells measured."""
    return make_run_facts()


def make_run_facts() -> dict[str, Any]:
    model = {
        "version": 1,
        "verdict": "int8",
        "photos": 3347,
        "agreement": 0.97,
        "package_bytes": 2_500_000,
        "source_bytes": 9_700_000,
    }
    phases = {
        "rate": {"offered": 6.0, "levels": [[6.0, 10.0]]},
        "varying": {"offered": 2.0, "levels": [[2.0, 5.0], [9.0, 5.0]]},
    }
    return {
        "started": "2026-01-02T03:04:05Z",
        "machine": {
            "cpu": "Test CPU",
            "flags": ["avx2"],
            "cores": 2,
            "memory_mb": 16000,
            "system": "Linux",
            "python": "3.11",
            "versions": {"locust": "2"},
            "commit": "abc",
        },
        "options": {
            "tool": "locust",
            "threads": 1,
            "users": 10,
            "rate": None,
            "engine": "local",
            "replicas": 2,
            "max_replicas": 3,
            "cpus": 0.5,
            "memory_mb": 512,
            "seconds": {"warm": 1, "idle": 1, "closed": 10, "rate": 10, "level": 5},
        },
        "photos": ["a.jpg", "b.jpg"],
        "models": {name: model | {"float_accuracy": f, "accuracy": q} for name, (f, q, _) in MODELS.items()},
        "cells": [{"stack": stack, "model": name, "phases": phases} for stack in RATES for name in MODELS],
    }


@pytest.fixture
def finished(tmp_path: Path, finished_once: Path) -> Path:
    """The folder of a finished run, to be written to: two models on four stacks."""
    return shutil.copytree(finished_once, tmp_path / "run")


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, to be read only."""
    folder, run_facts = tmp_path_factory.mktemp("finished"), make_run_facts()
    for facts in run_facts["cells"]:
        write_cell(folder, facts["stack"], facts["model"], RATES[facts["stack"]] * MODELS[facts["model"]][2])
    results.save(folder, run_facts)
    return folder


def write_cell(folder: Path, stack: str, model: str, rate: float) -> None:
    """All parts of one cell: its users wait 10 / rate seconds; its CPU is used up at that rate."""
    replicas = 1 if stack in ("plain", "single") else 2
    cores, memory = 0.5 * replicas, 800_000_000 if stack == "plain" else 90_000_000 * replicas
    for phase, sent in (
        ("idle", closed(20, 0.5 / RATES["single"] * 1000, 2)),
        ("closed", closed(rate, 10_000 / rate)),
        ("rate", closed(6, 3_000 / rate)),
        ("varying", closed(4, 3_000 / rate) if stack == "scaled" else []),
    ):
        part = Part(stack, model, phase)
        samples.append_samples(folder, part, sent)
        samples.append_resources(folder, part, resources(cores=cores, memory=memory, replicas=replicas))


@pytest.fixture
def children_end() -> Iterator[None]:
    """Fail where a child of this process is left when the test ends."""
    before = children()
    yield
    deadline = time.monotonic() + 5
    while (left := children() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def children() -> set[int]:
    """Process ids of our own children. (A thread that ends meanwhile hands its children to another: read anew.)"""
    while True:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            tasks = [(task / "children").read_text() for task in Path("/proc/self/task").iterdir()]
            return {int(pid) for text in tasks for pid in text.split()}
