"""convert(): the stages on one screen."""

import ctypes
import gc
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from convert import card, golden, package, photos, ranges, timing, verify
from convert.centre import centre
from convert.equalise import equalise
from convert.errors import ConvertError, GateRefusedError
from convert.export import check_space, export
from convert.optimise import prepare
from convert.photos import Photos
from convert.progress import Progress
from convert.prune import prune
from convert.quantise import Candidate, Effect, Search
from convert.source import Source, first_line, open_source
from convert.verify import Gate, Score
from service.cpu import cores
from service.image import Contract
from service.model import PackageError

PARITY_PHOTOS = 16
RANGE_PHOTOS = 96
TUNING_PHOTOS = 1500
RANGES = {"0,1": (0.0, 1.0), "-1,1": (-1.0, 1.0), "0,255": (0.0, 255.0)}
FASTER = 1.05  # int8 is worth it from this ratio of throughput on
EMULATED_SECONDS = 45
M_MMAP_THRESHOLD, MAPPED_BYTES = -3, 1 << 20  # of glibc: larger blocks leave no holes in its heap when they are freed
LEAST_PORTABLE = 99.0  # percent of answers that two kinds of CPU must share
TOOLS = (
    "keras", "tf-keras", "tensorflow-cpu", "tf2onnx", "onnx", "onnxruntime", "numpy", "pillow", "simplejpeg",
    "cykooz-resizer",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    source: Path
    name: str
    images: Path
    labels: Path | None = None
    version: int = 1
    input_range: str = "0,1"
    resize: str = "bicubic"
    crop: str = "none"
    weight_bits: int = 7
    macs: float = 100.0
    calibration: int = 512
    gate: Gate = field(default_factory=Gate)
    trust_source: bool = False
    replace: bool = False
    models: Path = Path("models")


def convert(options: Options, progress: Progress) -> dict[str, Any]:
    """From source to signed-off package; its report.

    Raises:
        ConvertError: bad input; nothing was written.
        GateRefusedError: the quantised model missed a limit; nothing was written.
    """
    target = package.check_target(options.models, options.name, options.version, replace=options.replace)
    with (
        tempfile.TemporaryDirectory(prefix="sous-") as folder,
        package.staged(target, replace=options.replace) as stage,
    ):
        work = Path(folder)
        origin, contract, found, parity = load(options, work / "float.onnx", progress)
        candidate, effects = quantise(options, contract, found, work, progress)
        paths = (work / "float.onnx", candidate.path)
        kept = len(candidate.recipe.keep_float)
        evidence = evaluate(options, contract, found, paths, kept_float=kept, progress=progress)
        report = describe(options, origin, contract, found) | evidence | {"parity": parity}
        if report["verdict"] != "keep float":
            report["quantisation"] = recipe_of(candidate, effects)
        report["stages"] = progress.stages
        return write(report, work, stage, candidate)


def load(options: Options, target: Path, progress: Progress) -> tuple[dict[str, str], Contract, Photos, dict[str, Any]]:
    """Open the source, find and check the photos, export the float model and prove its parity. What is told of the
    source is returned, not the source: its weights and graphs are memory that quantising needs."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
    with progress.stage("load", 2) as tick:
        source = open_source(options.source, trust=options.trust_source)
        tick()
        contract = Contract(source.height, source.width, options.resize, options.crop)
        found = photos.find(options.images, options.labels, source.classes, options.calibration)
        pixels = np.concatenate(list(photos.batches(found.calibration[:PARITY_PHOTOS], contract)))
        check_labelled(source, found, contract, options.input_range)
        tick()
    judged = (*found.tuning[:TUNING_PHOTOS], *found.evaluation)
    with progress.stage("check photos", batches_of(judged)) as tick:  # not after half an hour
        for _ in photos.batches(judged, contract):
            tick()
    with progress.stage("export", 1) as tick:
        worst, limit = export(source, pixels, RANGES[options.input_range], target)
        tick()
    origin = {"file": source.path.name, "sha256": source.sha256, "format": source.kind}
    del source
    gc.collect()  # the exporters' graphs hold each other: 5 GB of a ResNet101V2
    ctypes.CDLL(None).malloc_trim(0)
    return origin, contract, found, {"max_dp": worst, "photos": len(pixels), "limit": limit}


def check_labelled(source: Source, found: Photos, contract: Contract, given: str) -> None:
    """Stop where labelled photos score clearly better (95 % intervals apart) under another range of pixels, or worse
    than by chance."""
    sample = found.tuning[:RANGE_PHOTOS]
    labels = photos.labels_of(sample)
    if labels is None or len(sample) < RANGE_PHOTOS // 4:
        return
    pixels = np.concatenate(list(photos.batches(sample, contract))).astype(np.float32)
    scores = {
        name: verify.percent(
            source.predict(pixels * np.float32((high - low) / 255) + np.float32(low)).argmax(1) == labels
        )
        for name, (low, high) in RANGES.items()
    }
    better = max(scores, key=lambda name: scores[name])
    if verify.interval(scores[better], len(sample))[0] > verify.interval(scores[given], len(sample))[1]:
        raise ConvertError(
            f"top-1 is {scores[given]:.0f} % with --input-range {given} but {scores[better]:.0f} % with {better} on"
            f" {len(sample)} photos: give --input-range={better}"
        )
    if verify.interval(scores[given], len(sample))[1] < 100 / source.classes:
        raise ConvertError(
            f"top-1 of the source is {scores[given]:.0f} % on {len(sample)} photos, worse than by chance: give --labels"
            " in the order of the model's output, without it class folders whose alphabetical order that is"
        )


def quantise(
    options: Options, contract: Contract, found: Photos, work: Path, progress: Progress
) -> tuple[Candidate, list[Effect]]:
    """Search for the cheapest recipe inside the gate, on calibration and tuning photos only.

    Raises:
        ConvertError: the network is of a form that cannot be quantised.
    """
    try:
        return search(options, contract, found, work, progress)
    except (ConvertError, PackageError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever ONNX Runtime and numpy raise for a graph not met before
        check_space(work)
        raise ConvertError(
            f"{options.source} cannot be quantised ({type(error).__name__}: {first_line(error)}): please report it,"
            " with the layers of the model"
        ) from error


def search(
    options: Options, contract: Contract, found: Photos, work: Path, progress: Progress
) -> tuple[Candidate, list[Effect]]:
    """Rewrite the float graph, then try recipes."""
    folded = prepare(onnx.load(work / "float.onnx"))
    pixels = list(photos.batches(found.calibration, contract))
    if options.macs < 100:
        folded = prune(folded, pixels, options.macs / 100, progress)
    for what, rewrite in (("centre channels", centre), ("equalise channels", equalise)):
        with progress.stage(what, len(pixels)) as tick:
            rewrite(folded.model, pixels, folded.entry, tick)
    tuning = found.tuning[:TUNING_PHOTOS]
    with progress.stage("float answers, tuning photos", batches_of(tuning)) as tick:
        (reference,) = verify.answers([work / "float.onnx"], tuning, contract, tick)
    recipes = Search(folded, pixels, tuning, reference, contract, options.gate, work, progress)
    return recipes.run(options.weight_bits)


def evaluate(
    options: Options, contract: Contract, found: Photos, paths: Sequence[Path], *, kept_float: int, progress: Progress
) -> dict[str, Any]:
    """Gate and verdict on the evaluation photos, on the code that serves.

    Raises:
        GateRefusedError: a limit is missed.
    """
    with progress.stage("verify on evaluation photos", batches_of(found.evaluation)) as tick:
        answers = verify.answers(paths, found.evaluation, contract, tick)
    score = verify.score(answers[0], answers[1], found.evaluation)
    if missed := options.gate.missed(score):
        raise GateRefusedError(f"not packaged: {'; '.join(missed)}. {advice(options, len(found.calibration))}")
    sample = np.concatenate(list(photos.batches(found.tuning[:8], contract)))
    with progress.stage("measure plans", timing.ROUNDS * len(timing.plans(cores()))) as tick:
        plan = timing.plan_grid(paths[1], sample, tick)
    with progress.stage("float beside int8", 1) as tick:
        timed = timing.beside(paths, plan, sample)
        tick()
    verdict, reason = judge(kept_float, timed)
    if verdict == "keep float":
        plan = timing.plan_grid(paths[0], sample, lambda: None)
    with progress.stage("replay on an AVX2-only CPU", 1) as tick:
        packaged = paths[0] if verdict == "keep float" else paths[1]
        portable = verify.on_avx2(
            packaged, golden.images(64, contract.height, contract.width), packaged.parent, EMULATED_SECONDS
        )
        tick()
    check_portable(portable, options.weight_bits)
    return {
        "verdict": verdict,
        "reason": reason,
        "precision": "float32" if verdict == "keep float" else verdict,
        "evaluation": evaluation_of(score, paths, timed),
        "gate": asdict(options.gate),
        "plan": plan,
        "portability": portable,
        "machine": timing.machine(),
    }


def check_portable(found: Mapping[str, Any], weight_bits: int) -> None:
    """Refuse a model whose answers depend on the CPU; 8-bit weights are for those who know theirs.

    Raises:
        GateRefusedError: the agreement is below the limit.
    """
    if weight_bits == 8 or "skipped" in found:
        return
    if found["agreement"] < LEAST_PORTABLE:
        raise GateRefusedError(
            f"not packaged: only {found['agreement']:.1f} % of {found['photos']} answers are the same on"
            f" {found['other_cpu']}, limit {LEAST_PORTABLE:g} %. Please report it:"
            " codes are made so that every CPU gives the same"
        )


def advice(options: Options, calibrated: int) -> str:
    """What to try after a refusal, with so many photos calibrated on."""
    more = f"more calibration photos (--calibration, now {options.calibration})"
    if calibrated < options.calibration:
        more = f"more photos to calibrate on ({calibrated} were all that there are)"
    if options.macs < 100:
        more = f"more of the multiplications (--macs, now {options.macs:g}), {more}"
    other = "8-bit weights on CPUs with VNNI (--weight-bits 8)"
    if options.weight_bits == 8:
        other = "codes that saturate on no CPU (--weight-bits 7)"
    return f"Try {more}, {other}, or looser limits (--gate-drop, --gate-agreement)"


def judge(kept: int, timed: Sequence[timing.Timed]) -> tuple[str, str]:
    """The verdict and its reason."""
    ratio = timed[1].images_per_s / timed[0].images_per_s
    if ratio < FASTER:
        return "keep float", f"int8 has {ratio:.2f} x the throughput of float on this machine: not worth its rounding."
    note = f" with {kept} tensor{'s' * (kept > 1)} kept float where rounding cost most" if kept else ""
    return ("mixed" if kept else "int8"), f"int8 has {ratio:.2f} x the throughput of float inside the gate{note}."


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
            "tuning": len(found.tuning[:TUNING_PHOTOS]),
            "evaluation": len(found.evaluation),
        },
        "tools": {"python": platform.python_version()} | {name: version_of(name) for name in TOOLS},
    }


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


def write(report: dict[str, Any], work: Path, stage: Path, candidate: Candidate) -> dict[str, Any]:
    """The package's four files."""
    chosen = work / "float.onnx" if report["verdict"] == "keep float" else candidate.path
    (stage / "model.onnx").write_bytes(chosen.read_bytes())
    package.describe(stage / "model.onnx", properties(report))
    height, width = report["preprocessing"]["height"], report["preprocessing"]["width"]
    golden.write(stage / "golden.npz", work / "float.onnx", chosen, height, width)
    report["files"] = package.hashes(stage)
    package.write_json(stage / "report.json", report)
    (stage / "MODEL_CARD.md").write_text(card.model_card(report), encoding="utf-8")
    return report


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


def batches_of(found: Sequence[Any]) -> int:
    """How many batches that many photos are."""
    return -(-len(found) // photos.BATCH)
