"""The benchmark's parts against real servers, and the whole of it on a small package."""

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from perf import bench, bench_servers
from perf.bench_load import Connection, closed_loop, is_ready, post
from perf.bench_rows import Effort, expected_s, ratio
from perf.bench_table import Bar, Row, table
from perf.meter import cpu_seconds
from perf.photos import synthetic
from tests.service.packages import write_package


class Echo(BaseHTTPRequestHandler):
    """Answers with the body it was sent; /close and /old end the connection, /fail refuses."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        if self.path == "/old":
            self.protocol_version, self.close_connection = "HTTP/1.0", True
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.seen.append(self.client_address)
        self.send_response(503 if self.path == "/fail" else 200)
        if self.path != "/old":
            self.send_header("Content-Length", str(len(body)))
        if self.path == "/close":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True


@pytest.fixture
def echo():
    with EchoServer(("127.0.0.1", 0), Echo) as server:
        server.seen = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_every_request_of_a_closed_loop_is_answered_over_the_given_connections(echo):
    load = closed_loop(echo.server_address[1], [post("/", "a/b", b"x" * 100_000)], 103, 10)
    assert (load.requests, len(load.latencies_ms), len(echo.seen), len(set(echo.seen))) == (103, 103, 103, 10)
    assert load.rate == pytest.approx(103 / load.wall_s)


@pytest.mark.parametrize("path", ["/", "/close", "/old"])
def test_an_answer_is_whole_however_the_server_ends_it(echo, path):
    connection = Connection(echo.server_address[1])
    for body in (b"first" * 50_000, b"second", b""):
        assert connection.ask(post(path, "a/b", body)) == (200, body)
    connection.close()


def test_a_failed_request_is_no_figure(echo):
    with pytest.raises(RuntimeError, match="status 503"):
        closed_loop(echo.server_address[1], [post("/fail", "a/b", b"x")], 20, 2)


def test_nothing_that_is_not_there_is_ready(echo):
    port = echo.server_address[1]
    assert not is_ready(port)  # it knows no GET
    echo.shutdown()
    echo.server_close()
    assert not is_ready(port)


def test_a_server_is_all_its_processes():
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(30_000_000)); input()'])"
    with spawned(program) as process:
        server = bench_servers.Server(process.pid, 0, 0.0)
        while len(bench_servers.tree(process.pid)) < 2 or server.cpu_s() < 0.2:
            assert process.poll() is None
        assert server.rss_mb() > 5


@contextmanager
def spawned(program: str) -> "Iterator[subprocess.Popen[bytes]]":
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.communicate(b"\n", timeout=20)


def test_a_server_that_does_not_start_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"does not answer: .*no package"), bench_servers.service(tmp_path):
        pass


def test_a_bar_is_met_on_its_own_side():
    assert Bar(2.5, at_least=True).is_met(2.5)
    assert not Bar(2.5, at_least=True).is_met(2.4)
    assert Bar(1.15).is_met(1.15)
    assert not Bar(1.15).is_met(1.16)


def test_the_table_says_what_is_met_and_what_is_not():
    rows = [
        Row("decode", 3.0, "x", Bar(2.5, at_least=True)),
        Row("cpu", 1.3, "x", Bar(1.15)),
        Row("rate", 9, "/s", None),
    ]
    _, decode, cpu, rate = table(rows).splitlines()
    assert decode.split() == ["decode", "3.00", "x", ">=", "2.5", "x", "met"]
    assert cpu.split() == ["cpu", "1.30", "x", "<=", "1.15", "x", "NOT", "MET"]
    assert rate.split() == ["rate", "9.00", "/s"]


def test_a_ratio_is_taken_round_by_round():
    assert ratio([2, 40, 3], [1, 10, 1]) == 3  # a slow round is slow on both sides


def test_what_is_missing_is_said_before_anything_is_measured(tmp_path, capsys):
    for arguments, message in (
        (["--photos", str(tmp_path)], "no JPEG in"),
        (["--photos", str(synthetic(tmp_path / "photos")), "--models-dir", str(tmp_path)], "no mobilenet_v2"),
        (["--out", str(tmp_path / "missing" / "out.json")], "there is no folder"),
    ):
        with pytest.raises(SystemExit) as refused:
            bench.main(arguments)
        assert refused.value.code == 2
        assert message in capsys.readouterr().err


def test_it_states_how_long_it_takes():
    full = expected_s(["mobilenet_v2", "resnet101_v2"], 2, bench.FULL)
    assert expected_s(["mobilenet_v2", "resnet101_v2"], 2, bench.QUICK) < full / 3 < 600


def test_the_whole_of_it_runs_on_a_small_package(tmp_path, monkeypatch, capsys):
    models = tmp_path / "models"
    write_package(models, "resnet101_v2")
    write_package(models, "zebra")
    monkeypatch.setattr(bench, "QUICK", Effort(rounds=1, round_s=0.05, decodes=2, starts=1, requests=20))
    arguments = ["--quick", "--models", "resnet101_v2", "--models-dir", str(models), "--sources", str(tmp_path)]
    paths = ["--photos", str(synthetic(tmp_path / "photos")), "--out", str(tmp_path / "out.json")]
    assert bench.main(arguments + paths) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["machine"]["cores"] == len(os.sched_getaffinity(0))
    named = [row["what"] for row in found["rows"]]
    for part in (
        "decode",
        "raw body: CPU",
        "multipart body: CPU",
        "throughput",
        "idle latency",
        "resident",
        "2 models: ready",
    ):
        assert any(part in name for name in named), part
    assert all(row["measured"] > 0 for row in found["rows"])
    output = capsys.readouterr()
    assert "about" in output.out
    assert "not compared with the plain recipe" in output.out + output.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_prints_what_it_has_and_leaves_no_process(tmp_path, number):
    write_package(tmp_path / "models", "resnet101_v2")
    command = [sys.executable, "-m", "perf.bench", "--models", "resnet101_v2", "--models-dir", str(tmp_path / "models")]
    photos = synthetic(tmp_path / "photos")
    process = subprocess.Popen(
        [*command, "--photos", str(photos)], cwd=bench_servers.CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    before = []
    while len(before) < 2 or not cpu_seconds(before[1]):
        before = bench_servers.tree(process.pid)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert b"error: interrupted" in err
    assert b"Traceback" not in err
    assert out.splitlines()[1].startswith(b"what")
    assert [pid for pid in before if cpu_seconds(pid) is not None] == []
