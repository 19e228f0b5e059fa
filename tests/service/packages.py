"""Tiny real packages by docs/package.md."""

import hashlib
import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

COLOURS = ("red", "green", "blue")
COLOUR_RGB = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}


def colour_model(size: int, work: int, properties: Mapping[str, str]) -> onnx.ModelProto:
    """Names the strongest colour channel. `work` convolutions of about 75 MFLOP make it as slow as a test needs."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
    ]
    weights = {"weights": np.eye(3, dtype=np.float32) * np.float32(0.05)}
    last = "logits"
    if work:
        weights |= {
            "first": np.full((64, 3, 1, 1), 1e-3, np.float32),
            "conv": np.full((64, 64, 3, 3), 1e-3, np.float32),
        }
        nodes += [
            helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["planes", "first"], ["work0"]),
            *(helper.make_node("Conv", [f"work{n}", "conv"], [f"work{n + 1}"], pads=[1, 1, 1, 1]) for n in range(work)),
            helper.make_node("ReduceMean", [f"work{work}"], ["worked"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Unsqueeze", ["worked"], ["column"], axes=[1]),
            helper.make_node("Clip", ["column"], ["nothing"], min=0.0, max=1e-6),
            helper.make_node("Add", ["logits", "nothing"], ["sum"]),
        ]
        last = "sum"
    nodes.append(helper.make_node("Softmax", [last], ["probabilities"], axis=1))
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", size, size, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    # opset 9: Clip and Unsqueeze still have their bounds and axes as attributes
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=8)
    helper.set_model_props(model, dict(properties))
    return model


def properties(size: int) -> dict[str, str]:
    return {
        "sous.format": "1",
        "sous.precision": "float32",
        "sous.verdict": "keep float",
        "sous.labels": json.dumps(COLOURS),
        "sous.preprocessing": json.dumps(
            {"height": size, "width": size, "resize": "bicubic", "crop": "none", "color": "RGB"}
        ),
        "sous.source": json.dumps({"file": "colours.keras", "sha256": "00", "format": "keras"}),
        "sous.calibration": "null",
        "sous.evaluation": json.dumps({"photos": 8, "agreement": 1.0}),
    }


def write_package(
    models: Path,
    name: str = "colours",
    version: int = 1,
    *,
    size: int = 32,
    work: int = 0,
    plan: Mapping[str, int] | None = None,
    golden_shift: float = 0.0,
    golden_images: int = 8,
) -> Path:
    """A package by docs/package.md; `golden_shift` is how far the golden answers are from the model's."""
    folder = models / name / str(version)
    folder.mkdir(parents=True)
    onnx.save(colour_model(size, work, properties(size)), folder / "model.onnx")
    inputs = np.random.default_rng(0).integers(0, 256, (golden_images, size, size, 3), np.uint8)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    probabilities = session.run(None, {"image": inputs})[0] + np.float32(golden_shift)
    np.savez(folder / "golden.npz", inputs=inputs, probabilities=probabilities, tolerance=np.float32(1e-3))
    report: dict[str, Any] = {"format": 1, "name": name, "version": version, "verdict": "keep float", "files": {}}
    for file in ("model.onnx", "golden.npz"):
        data = (folder / file).read_bytes()
        report["files"][file] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    if plan:
        report["plan"] = {"grid": [], **plan}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def jpeg(colour: str, size: tuple[int, int] = (64, 48)) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, COLOUR_RGB[colour]).save(file, "JPEG")
    return file.getvalue()
