"""The plain recipe for real: a small Keras model, Flask, and a photo, as the stack that is measured."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from perf import stacks
from perf.deployment import PLAIN_MEMORY_MB
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
    with stacks.up("plain", model="tiny", models_dir=tmp_path, engine="local", cpus=0.5) as running:
        assert running.replicas() == 1
        assert running.limited_by
        answer = ask(running.url, load(photos_dir)[0].body)
        assert 0 < running.usage().memory_bytes < PLAIN_MEMORY_MB * 1024**2
    assert answer["model"] == "tiny"
    probabilities = [p["probability"] for p in answer["predictions"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-3)
    assert "Bread" in {p["label"] for p in answer["predictions"]}


def ask(url: str, body: bytes) -> dict[str, Any]:
    request = urllib.request.Request(f"{url}/predict?model=tiny", body, {"Content-Type": CONTENT_TYPE})
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


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
