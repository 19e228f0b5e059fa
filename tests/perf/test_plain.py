"""The plain recipe for real: a small Keras model, Flask, and a photo."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from perf.photos import CONTENT_TYPE, load

ROOT = Path(__file__).parents[2]
MODEL = """
import sys, keras
from keras import layers
head = [layers.GlobalAveragePooling2D(), layers.Dense(11, activation="softmax")]
keras.Sequential([keras.Input((32, 32, 3)), layers.Conv2D(4, 3), *head]).save(sys.argv[1])
"""


def test_the_recipe_answers_a_photo_with_ranked_labels(tmp_path: Path, photos_dir: Path) -> None:
    pytest.importorskip("tensorflow", reason="the plain recipe needs TensorFlow")
    source = tmp_path / "tiny.keras"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    subprocess.run([sys.executable, "-c", MODEL, str(source)], check=True, capture_output=True, env=environment)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "perf/plain.py", "--source", str(source), "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as served:
        try:
            answer = ask(port, load(photos_dir)[0].body)
        finally:
            served.terminate()
    assert answer["model"] == "tiny"
    probabilities = [p["probability"] for p in answer["predictions"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-3)
    assert "Bread" in {p["label"] for p in answer["predictions"]}


def ask(port: int, body: bytes) -> dict[str, list[dict[str, float | str]]]:
    url = f"http://127.0.0.1:{port}/predict?model=tiny"
    request = urllib.request.Request(url, body, {"Content-Type": CONTENT_TYPE})
    deadline = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def test_a_source_that_is_not_there_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "perf/plain.py", "--source", "nosuch.keras"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no such file: nosuch.keras; name a Keras file with --source" in done.stderr
