"""The balancer's promises, on real nginx (this machine's, the image's) before replicas that misbehave on purpose."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from perf import compose
from perf.deployment import FORGET_S
from perf.processes import REPO, Process
from service import gunicorn_conf
from service.settings import Settings
from tests.deploy.containers import missing, open_to_all, tag
from tests.service.running import until

needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx on this machine")
CONTAINED = """#!/bin/sh
exec docker run --rm --network host --user 0 --volume {folder}:{folder} --entrypoint nginx sous/balancer:{tag} "$@"
"""


class Replica(ThreadingHTTPServer):
    """Answers every POST with `status`, or, where that is 0, cuts the connection before a byte; keeps what it saw."""

    daemon_threads = True

    def __init__(self, status: int, ready: int = 200, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        super().__init__(address, Handler)
        self.status = status
        self.ready = ready  # what a GET is answered with; 0: nothing
        self.seen: list[dict[str, str]] = []
        self.free = threading.Event()  # a POST is not answered before it is set
        self.free.set()
        self.connections = 0

    @property
    def address(self) -> str:
        return f"{self.server_address[0]}:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Replica

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        if self.server.ready:
            self.answer(self.server.ready)
        else:
            threading.Event().wait(5)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(dict(self.headers))
        self.server.free.wait(5)
        if self.server.status:
            self.answer(self.server.status)
        else:
            self.close_connection = True

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "2")
        if status == 429:
            self.send_header("Retry-After", "3")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


Balanced = Callable[..., tuple["Client", list[Replica]]]


class Client:
    """Speaks to nginx over one connection."""

    def __init__(self, port: int, log: Path) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self.log = log
        self.reload: Callable[[str], None]  # with these servers

    def post(self, size: int = 1000, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        self.connection.request("POST", "/predict", b"x" * size, {"Content-Type": "image/jpeg", **headers})
        answer = self.connection.getresponse()
        return answer.status, answer.headers, answer.read()


def render(folder: Path, servers: str, port: int, path: str) -> Path:
    given = {
        "PATH": path,
        "SERVERS": servers,
        "LISTEN": f"127.0.0.1:{port}",
        "RUN": str(folder),
        "LOG": str(folder / "access.log"),
    }
    done = subprocess.run([REPO / "deploy/nginx/render"], env={**os.environ, **given}, check=True, capture_output=True)
    conf = folder / "nginx.conf"
    conf.write_bytes(done.stdout)
    return conf


@pytest.fixture(params=[pytest.param("machine", marks=needs_nginx), pytest.param("image", marks=pytest.mark.docker)])
def balanced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    """nginx before a replica for each given status."""
    running: list[Callable[[], None]] = []
    contained = request.param == "image"
    if contained:
        if reason := missing():
            pytest.skip(reason)
        compose.build()

    def start(*statuses: int) -> tuple[Client, list[Replica]]:
        folder = tmp_path_factory.mktemp("nginx")
        open_to_all(folder)
        path = os.environ["PATH"]
        if contained:
            (folder / "nginx").write_text(CONTAINED.format(folder=folder, tag=tag()))
            (folder / "nginx").chmod(0o755)
            path = f"{folder}:{path}"
        replicas = [Replica(status) for status in statuses]
        for replica in replicas:
            threading.Thread(target=replica.serve_forever, args=(0.02,)).start()
            running.extend([replica.server_close, replica.shutdown])
        servers = " ".join(replica.address for replica in replicas) or f"127.0.0.1:{free_port()}"
        client = Client(free_port(), folder / "access.log")
        port = client.connection.port
        conf = render(folder, servers, port, path)
        nginx = Process("nginx", ["nginx", "-e", "stderr", "-c", str(conf), "-g", "daemon off;"], {"PATH": path}, None)
        running.extend([nginx.stop, client.connection.close])

        def reload(servers: str) -> None:
            render(folder, servers, port, path)
            nginx.process.send_signal(signal.SIGHUP)

        client.reload = reload
        until_listening(port)
        return client, replicas

    yield start
    for stop in reversed(running):
        stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until_listening(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            probe.settimeout(0.05)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        threading.Event().wait(0.02)
    raise AssertionError("nginx does not listen")


def seen(replicas: list[Replica]) -> int:
    return sum(len(replica.seen) for replica in replicas)


def test_a_shed_post_is_not_sent_to_another_replica(balanced: Balanced) -> None:
    client, replicas = balanced(429, 429)
    status, headers, _ = client.post()
    assert (status, headers["Retry-After"], seen(replicas)) == (429, "3", 1)


@pytest.mark.parametrize("failing", [0, 503])
def test_a_request_without_an_answer_is_sent_once_more_to_another(balanced: Balanced, failing: int) -> None:
    client, replicas = balanced(failing, 200)
    assert [client.post()[0] for _ in range(6)] == [200] * 6
    assert len(replicas[0].seen) <= 2  # then left alone for a second
    assert len(replicas[1].seen) == 6


def test_replicas_that_have_all_failed_once_are_asked_on(balanced: Balanced) -> None:
    client, replicas = balanced(0, 0)
    assert client.post()[0] == 503
    for replica in replicas:
        replica.status = 200
    assert [client.post()[0] for _ in range(6)] == [200] * 6


def test_a_request_is_sent_to_two_replicas_at_most(balanced: Balanced) -> None:
    client, replicas = balanced(0, 0, 0)
    status, headers, body = client.post()
    assert (status, headers["Content-Type"], json.loads(body)["code"]) == (503, "application/problem+json", "not_ready")
    assert seen(replicas) == 2


def test_a_photo_that_ends_its_replica_meets_two_at_most_over_kept_connections_too(balanced: Balanced) -> None:
    client, replicas = balanced(200, 200, 200, 200, 200)
    assert [client.post()[0] for _ in range(10)] == [200] * 10
    assert [(len(replica.seen), replica.connections) for replica in replicas] == [(2, 1)] * 5
    for replica in replicas:
        replica.status = 0
    assert client.post()[0] == 503
    assert seen(replicas) == 12


@pytest.mark.parametrize("balanced", [pytest.param("image", marks=pytest.mark.docker)], indirect=True)
def test_a_request_that_is_cut_while_the_replicas_change_is_answered_by_a_new_one(balanced: Balanced) -> None:
    client, [old] = balanced(0)
    old.ready = 503
    old.free.clear()

    def ready() -> bool:
        with closing(http.client.HTTPConnection("127.0.0.1", client.connection.port)) as connection:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200

    with Replica(200) as new, ThreadPoolExecutor() as threads:
        threading.Thread(target=new.serve_forever, args=(0.02,), daemon=True).start()
        cut = threads.submit(client.post)
        until(lambda: old.seen)
        client.reload(new.address)
        until(ready)
        time.sleep(FORGET_S)
        old.free.set()
        assert cut.result()[0] == 200
        new.shutdown()
    assert (len(old.seen), len(new.seen)) == (1, 1)


def test_an_error_of_the_service_is_passed_on_as_it_is(balanced: Balanced) -> None:
    client, replicas = balanced(500, 500)
    assert (client.post()[::2], seen(replicas)) == ((500, b"{}"), 1)


def test_without_any_replica_the_answer_is_a_problem_document(balanced: Balanced) -> None:
    client, _ = balanced()
    status, headers, body = client.post()
    assert (status, headers["Content-Type"], json.loads(body)["code"]) == (503, "application/problem+json", "not_ready")


def test_a_body_over_the_limit_is_refused_as_the_service_refuses_it(balanced: Balanced) -> None:
    client, replicas = balanced(200)
    client.connection.putrequest("POST", "/predict")
    client.connection.putheader("Content-Length", str(Settings().max_request_bytes + 1))
    client.connection.endheaders()
    answer = client.connection.getresponse()
    assert (answer.status, json.loads(answer.read())["code"]) == (413, "request_too_large")
    assert seen(replicas) == 0


def test_connections_to_replicas_are_kept(balanced: Balanced) -> None:
    client, [replica] = balanced(200)
    assert [client.post()[0] for _ in range(50)] == [200] * 50
    assert replica.connections <= 2


def test_a_body_larger_than_the_buffer_arrives_whole(balanced: Balanced) -> None:
    client, [replica] = balanced(200)
    assert client.post(size=3_000_000)[0] == 200
    assert replica.seen[0]["Content-Length"] == "3000000"


def test_replicas_learn_who_asked(balanced: Balanced) -> None:
    client, [replica] = balanced(200)
    client.post()
    headers = replica.seen[0]
    assert headers["X-Forwarded-For"] == "127.0.0.1"
    assert headers["Host"].startswith("127.0.0.1:")
    assert re.fullmatch("[0-9a-f]{32}", headers["X-Request-ID"])


def test_the_access_log_names_the_replica_and_the_times(balanced: Balanced) -> None:
    client, [replica] = balanced(200)
    client.post()
    for _ in range(150):  # written a second later
        if line := client.log.read_text():
            break
        threading.Event().wait(0.02)
    assert f"upstream={replica.address} status=200 connect=0.0" in line
    assert re.search(r"answer=0\.\d+ total=0\.\d+ id=[0-9a-f]{32}", line)


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/metrics//", "/metrics%2f"])
def test_metrics_of_whichever_replica_are_not_answered(balanced: Balanced, path: str) -> None:
    client, _ = balanced(200)
    client.connection.request("GET", path)
    answer = client.connection.getresponse()
    assert (answer.status, json.loads(answer.read())["code"]) == (404, "not_found")


def test_a_malformed_request_gets_a_problem_document(balanced: Balanced) -> None:
    client, _ = balanced(200)
    client.connection.putrequest("GET", "/", skip_host=True)
    client.connection.endheaders()
    answer = client.connection.getresponse()
    assert (answer.status, answer.headers["Content-Type"]) == (400, "application/problem+json")
    assert json.loads(answer.read())["code"] == "bad_request"


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ("GET /% HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"),
        ("GET /../x HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"),
        (
            "GET /".ljust(65_536, "y"),
            431,
            "headers_too_large",
        ),  # all that is read: what is not would reset the connection
        ("GET / HTTP/1.1\r\n" + "x: ".ljust(65_536, "y"), 431, "headers_too_large"),
    ],
    ids=["percent", "above the root", "long address", "long header"],
)
def test_a_request_that_cannot_be_read_gets_one_too(balanced: Balanced, sent: str, status: int, code: str) -> None:
    client, _ = balanced(200)
    with socket.create_connection((client.connection.host, client.connection.port), timeout=5) as connection:
        connection.sendall(sent.encode())
        answer = connection.makefile("rb").read()
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Content-Type: application/problem+json" in answer
    assert f'"code":"{code}"'.encode() in answer


def test_headers_that_the_service_takes_pass(balanced: Balanced) -> None:
    client, replicas = balanced(200)
    assert client.post(**{"X-Big": "y" * 60_000})[0] == 200
    assert seen(replicas) == 1


def test_a_body_that_finds_no_room_is_shed_as_the_service_sheds_it(balanced: Balanced) -> None:
    client, replicas = balanced(200)
    (client.log.parent / "body").chmod(0)
    status, headers, body = client.post(size=3_000_000)
    assert (status, headers["Retry-After"], json.loads(body)["code"]) == (429, "1", "queue_full")
    assert seen(replicas) == 0


def test_what_is_uploaded_at_once_is_bounded_and_idle_connections_are_not(balanced: Balanced) -> None:
    client, _ = balanced(200)
    begun = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\n"
    with ExitStack() as stack:
        address = (client.connection.host, client.connection.port)
        uploads = [stack.enter_context(closing(socket.create_connection(address))) for _ in range(600)]
        assert client.post()[0] == 200
        for upload in uploads[:512]:
            upload.sendall(begun)
        for _ in range(100):
            status, headers, body = client.post()
            if status != 200:
                break
        assert (status, headers["Retry-After"], json.loads(body)["code"]) == (429, "1", "queue_full")
        client.connection.request("GET", "/health/ready")
        assert client.connection.getresponse().status == 200
    for _ in range(100):
        client.connection.close()
        if client.post()[0] == 200:
            break
    assert client.post()[0] == 200


@needs_nginx
@pytest.mark.parametrize("servers", ["127.0.0.1:8101", "127.0.0.1:8101 127.0.0.1:8102"])
def test_what_is_rendered_is_valid_configuration(tmp_path: Path, servers: str) -> None:
    conf = render(tmp_path, servers, free_port(), os.environ["PATH"])
    done = subprocess.run(["nginx", "-t", "-e", "stderr", "-c", conf], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def looked_after(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, list[Replica], Path]]:
    """deploy/nginx/balance before two replicas, the second not ready; the file holds what their name resolves to."""
    folder = tmp_path_factory.mktemp("balance")
    open_to_all(folder)
    first = Replica(200, address=("127.0.0.2", 0))
    second = Replica(200, ready=503, address=("127.0.0.3", first.server_address[1]))
    names = folder / "names"
    names.write_text("127.0.0.2 STREAM replica\n127.0.0.3 STREAM replica\n")
    (folder / "getent").write_text(f"#!/bin/sh\nexec cat {names}\n")
    (folder / "getent").chmod(0o755)
    client = Client(free_port(), folder / "access.log")
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "REPLICAS": f"replica:{first.server_address[1]}",
        "LISTEN": f"127.0.0.1:{client.connection.port}",
        "RUN": str(folder),
        "LOG": str(client.log),
    }
    for replica in (first, second):
        threading.Thread(target=replica.serve_forever, args=(0.02,)).start()
    balance = Process("balance", [str(REPO / "deploy/nginx/balance")], environment, None)
    until_listening(client.connection.port)
    yield client, [first, second], names
    balance.stop()
    client.connection.close()
    for replica in (first, second):
        replica.shutdown()
        replica.server_close()


def statuses(client: Client, seconds: float) -> set[int]:
    """Of a POST every 50 ms, each on a connection of its own."""
    found, deadline = set(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        found.add(client.post()[0])
        client.connection.close()
        time.sleep(0.05)
    return found


Looked = tuple[Client, list[Replica], Path]


@needs_nginx
def test_a_replica_that_is_too_busy_to_say_it_is_ready_serves_on_while_another_starts(looked_after: Looked) -> None:
    client, [busy, starting], _ = looked_after
    assert statuses(client, 1.5) == {200}
    busy.ready = 0
    assert statuses(client, 6) == {200}
    assert starting.seen == []


@needs_nginx
def test_a_replica_that_drains_serves_on_until_another_has_said_that_it_is_ready(looked_after: Looked) -> None:
    client, [draining, starting], _ = looked_after
    assert statuses(client, 1.5) == {200}
    starting.ready, draining.ready = 0, 503
    assert statuses(client, 3) == {200}
    starting.ready = 200
    assert statuses(client, 3) == {200}
    seen_before = len(draining.seen)
    assert statuses(client, 1) == {200}
    assert len(draining.seen) == seen_before


@needs_nginx
def test_a_lookup_that_fails_takes_no_replica_away(looked_after: Looked) -> None:
    client, _, names = looked_after
    assert statuses(client, 1.5) == {200}
    names.write_text("")
    assert statuses(client, 3) == {200}


@needs_nginx
def test_limits_are_in_step_with_the_service() -> None:
    defaults, settings = Settings(), configured()
    assert settings("client_max_body_size") == [str(max(defaults.max_request_bytes, defaults.max_image_bytes))]
    read_timeout, _ = settings("proxy_read_timeout")
    assert int(read_timeout.rstrip("s")) > defaults.request_timeout_ms / 1000
    to_replicas, _ = settings("keepalive_timeout")
    assert int(to_replicas.rstrip("s")) < gunicorn_conf.keepalive


@needs_nginx
def test_limits_follow_the_settings_of_the_service() -> None:
    settings = configured(SOUS_REQUEST_TIMEOUT_MS="30500", SOUS_MAX_REQUEST_BYTES="1000", SOUS_MAX_IMAGE_BYTES="2000")
    assert settings("client_max_body_size") == ["2000"]
    assert settings("proxy_read_timeout") == ["33s", "67s"]  # of two attempts, where an old worker asks the newest
    assert settings("proxy_next_upstream_timeout") == ["67s"]


def configured(**environment: str) -> Callable[[str], list[str]]:
    """What nginx is told by a name."""
    given = {"PATH": os.environ["PATH"], "SERVERS": "127.0.0.1:9", **environment}
    text = subprocess.check_output([REPO / "deploy/nginx/render"], env=given, text=True)
    return lambda name: re.findall(rf"^\s*{name} (.*?);", text, re.MULTILINE)
