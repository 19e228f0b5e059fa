"""The members of report.json, and what of them the ONNX file says itself."""

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import onnx

from convert import photos, ranges, timing, verify
from convert.options import Options
from convert.photos import Photos
from convert.quantise import Candidate, Effect
from convert.verify import Score
from service.image import Contract

TOOLS = (
    "keras", "tf-keras", "tensorflow-cpu", "tf2onnx", "onnx", "onnxruntime", "numpy", "pillow", "simplejpeg",
    "cykooz-resizer",
)  # fmt: skip


def describe(options: Options, origin: dict[str, str], contract: Contract, found: Photos) -> dict[str, Any]:
    """What was converted, from what, with what."""
    return {
        "format": 1,
        "name": options.name,
        "version": options.version,
        "labels": list(found.labels),
        "preprocessing": {**asdict(contract), "color": "RGB"},
        "input_range": options.input_range,
        "source": origin,
        "photos": {
            "split": found.split,
            "calibration": len(found.calibration),
            "calibration_sha256": photos.fingerprint(found.calibration),
            "tuning": len(found.tuning),
            "evaluation": len(found.evaluation),
            "copies_left_out": found.copies,
        },
        "tools": {"python": platform.python_version()} | {name: version_of(name) for name in TOOLS},
    }


def evaluation_of(score: Score, paths: Sequence[Path], timed: Sequence[timing.Timed]) -> dict[str, Any]:
    """The `evaluation` member of report.json: percent, but for `agreement`, a fraction by the contract."""
    sides = {}
    for side, path, times, share in zip(("float", "int8"), paths, timed, (score.float_top1, score.top1), strict=True):
        sides[side] = {"bytes": path.stat().st_size, "latency_ms": times.latency_ms, "images_per_s": times.images_per_s}
        if share is not None:
            low, high = verify.interval(share, score.photos)
            sides[side] |= {"top1": share, "top1_low": low, "top1_high": high}
    drop = {} if score.top1 is None else {"drop": score.drop}
    drift = {"agreement": score.agreement / 100, "max_dp": score.max_dp, "mean_dp": score.mean_dp}
    return {"photos": score.photos, **drift, **drop, **sides}


def recipe_of(candidate: Candidate, effects: Sequence[Effect]) -> dict[str, Any]:
    """How the weights and ranges were made, and what was measured on the way."""
    model = onnx.load(candidate.path)
    recipe = candidate.recipe
    return {
        "clip": ranges.METHOD,
        "weight_bits": recipe.weight_bits,
        "macs": candidate.macs,
        "kept_float": sorted(recipe.keep_float),
        "float_steps": float_steps(model),
        "tuning": asdict(candidate.score),
        "effects": [asdict(effect) for effect in effects],
    }


def float_steps(model: onnx.ModelProto) -> list[str]:
    """Nodes that multiply by float weights, by name."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in {"Conv", "MatMul", "Gemm"} and node.input[1] in weights
    ]


def properties(report: dict[str, Any]) -> dict[str, Any]:
    """`metadata_props` by docs/package.md."""
    evaluation, recipe = report["evaluation"], report.get("quantisation")
    side, agreement = evaluation["int8"], evaluation["agreement"]
    if report["verdict"] == "keep float":  # what is packaged is the model that answers are compared with
        side, agreement = evaluation["float"], 1.0
    accuracy = {key: side[key] / 100 for key in ("top1", "top1_low", "top1_high") if key in side}
    if accuracy:
        accuracy["float_top1"] = evaluation["float"]["top1"] / 100
    calibration = recipe and {
        "photos": report["photos"]["calibration"],
        "sha256": report["photos"]["calibration_sha256"],
        "method": recipe["clip"],
        "weight_bits": recipe["weight_bits"],
    }
    return {
        "format": "1",
        "precision": report["precision"],
        "verdict": report["verdict"],
        "labels": report["labels"],
        "preprocessing": report["preprocessing"],
        "source": report["source"],
        "calibration": calibration,
        "evaluation": {"photos": evaluation["photos"], "agreement": agreement, **accuracy},
    }
