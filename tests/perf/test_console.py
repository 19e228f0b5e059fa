"""The summary in wrk's format, read as scripts made for wrk read it (beside a summary that wrk 4.1 printed)."""

import re
from types import SimpleNamespace

from perf.console import table_text, wrk_summary
from perf.samples import Sample
from perf.tables import Table

URL = "http://127.0.0.1:8000/predict?model=m"
PRINTED_BY_WRK = """Running 2s test @ http://127.0.0.1:18099/predict?model=x
  2 threads and 10 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    49.37ms    6.40ms  73.82ms   91.92%
    Req/Sec    99.40      6.41   120.00     82.50%
  Latency Distribution
     50%   48.11ms
     75%   51.74ms
     90%   53.44ms
     99%   68.36ms
  396 requests in 2.00s, 49.57KB read
  Non-2xx or 3xx responses: 9
Requests/sec:    197.73
Transfer/sec:     24.75KB"""
PATTERNS = {
    "threads": r"^  (\d+) threads and (\d+) connections$",
    "latency": r"^    Latency\s+([\d.]+)(us|ms|s)\s+([\d.]+)(us|ms|s)\s+([\d.]+)(us|ms|s)\s+([\d.]+)%$",
    "per thread": r"^    Req/Sec\s+([\d.]+k?)\s+([\d.]+k?)\s+([\d.]+k?)\s+([\d.]+)%$",
    "p99": r"^     99%\s+([\d.]+)(us|ms|s)$",
    "requests": r"^  (\d+) requests in ([\d.]+)s, ([\d.]+)(B|KB|MB|GB) read$",
    "errors": r"^  Non-2xx or 3xx responses: (\d+)$",
    "rate": r"^Requests/sec:\s+([\d.]+)$",
    "transfer": r"^Transfer/sec:\s+([\d.]+)(B|KB|MB|GB)$",
}


def read(text: str) -> dict[str, tuple[str, ...]]:
    found = {name: re.search(pattern, text, re.M) for name, pattern in PATTERNS.items()}
    return {name: match.groups() for name, match in found.items() if match}


def test_what_reads_wrk_reads_ours(loads: SimpleNamespace) -> None:
    assert read(PRINTED_BY_WRK).keys() == PATTERNS.keys()
    sent = [*loads.closed(100, 48, 2), *loads.closed(4.5, 48, 2, status=503)]
    ours = read(wrk_summary(URL, sent, threads=2, users=10))
    assert ours.keys() == PATTERNS.keys()
    assert ours["threads"] == ("2", "10")
    assert ours["p99"] == ("48.00", "ms")
    assert ours["errors"] == ("9",)
    assert ours["requests"][0] == "209"
    assert 95 < float(ours["rate"][0]) < 110


def test_the_distribution_is_left_out_when_asked(loads: SimpleNamespace) -> None:
    assert "Latency Distribution" not in wrk_summary(URL, loads.closed(10, 5, 2), 1, 10, latency=False)


def test_unanswered_requests_are_socket_errors() -> None:
    sent = [Sample(0.0, 5.0, 200, 10, 0), Sample(0.5, 900.0, 0, 0, 0)]
    assert "  Socket errors: connect 0, read 1, write 0, timeout 0" in wrk_summary(URL, sent, 1, 1)


def test_a_text_table_keeps_its_columns() -> None:
    text = table_text(Table("T", ["name", "value"], [["a", "1"], ["long name", "1,000"]], "note"))
    assert text.splitlines() == ["T", "name       value", "a              1", "long name  1,000", "note"]
