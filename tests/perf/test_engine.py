"""The engine's API in the version that it speaks."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer

import pytest

from perf import engine


class Handler(BaseHTTPRequestHandler):
    """An engine whose oldest API is `server.oldest`."""

    def do_GET(self) -> None:
        given = self.path.split("/")[1]
        old = given[1].isdigit() and float(given[3:]) < float(self.server.oldest[2:])  # type: ignore[attr-defined]
        content = {"message": f"client version {given} is too old"} if old else self.answer()
        self.send_response(400 if old else 200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def answer(self) -> object:
        return {"MinAPIVersion": self.server.oldest} if self.path == "/version" else []  # type: ignore[attr-defined]

    def address_string(self) -> str:
        return "a socket"

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingUnixStreamServer]:
    path = tmp_path / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with ThreadingUnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("oldest", ["1.12", "1.24", "1.44"])
def test_an_engine_is_asked_in_a_version_that_it_speaks(listening: ThreadingUnixStreamServer, oldest: str) -> None:
    listening.oldest = oldest  # type: ignore[attr-defined]
    assert engine.containers("sous") == []
    assert engine.available()
