"""gunicorn's configuration; the command line overrides it. The master imports nothing native and opens no model."""

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from service import cpu
from service.settings import read_settings

_settings = read_settings()

worker_class = "service.protocol.Worker"
keepalive = 75  # seconds, heads included; longer than a balancer keeps an idle connection: the balancer closes first
graceful_timeout = (_settings.drain_delay_ms + _settings.request_timeout_ms) // 1000 + 5
timeout = max(30, 2 * graceful_timeout)  # a worker that drains gives no sign of life: it may last as long as draining
control_socket_disable = True


def when_ready(server: Any) -> None:  # it listens: nothing is left of a start on a port in use
    """Counts of an earlier run are not ours: a given folder is cleared, else there is a new one."""
    if server.cfg.preload_app:  # before this folder is known to the metrics
        sys.stderr.write("--preload cannot be used: each worker loads the models itself; leave it out\n")
        sys.exit(2)
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="sous-metrics-")
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    for file in Path(folder).glob("*.db"):
        file.unlink()


def post_fork(server: Any, _: Any) -> None:
    """The workers share the cores."""
    if not _settings.cores:
        os.environ["SOUS_CORES"] = str(max(1, cpu.cores() // server.num_workers))


def worker_int(worker: Any) -> None:
    """gunicorn's reloader calls this before it ends its own thread, and would leave the server running."""
    os.kill(worker.pid, signal.SIGINT)


def child_exit(_: Any, worker: Any) -> None:
    """A dead worker's gauges no longer count."""
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415  only where it is needed

    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def on_exit(_: Any) -> None:
    folder = os.environ["PROMETHEUS_MULTIPROC_DIR"]
    if Path(folder).name.startswith("sous-metrics-"):
        shutil.rmtree(folder, ignore_errors=True)
