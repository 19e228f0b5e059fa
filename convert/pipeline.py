"""convert(): the stages on one screen."""

import ctypes
import gc
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from convert import card, golden, labelled, package, photos, timing, verify
from convert.centre import centre
from convert.equalise import equalise
from convert.errors import ConvertError, GateRefusedError
from convert.export import check_space, export
from convert.norms import simplify
from convert.optimise import prepare
from convert.options import RANGES, Options
from convert.photos import Photos
from convert.progress import Progress
from convert.prune import prune
from convert.quantise import Candidate, Effect, Search
from convert.report import describe, evaluation_of, properties, recipe_of
from convert.source import first_line, open_source
from service.cpu import cores
from service.image import Contract
from service.model import PackageError

PARITY_PHOTOS = 16
FASTER = 1.05  # int8 is worth it from this ratio of throughput on
EMULATED_SECONDS, REPLAYED = 45, 64  # at most, and pictures
M_MMAP_THRESHOLD, MAPPED_BYTES = -3, 1 << 20  # of glibc: larger blocks leave no holes in its heap when they are freed
LEAST_PORTABLE = 99.0  # percent of answers that two kinds of CPU must share


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
        evidence = evaluate(options, contract, found, paths, candidate, progress=progress)
        report = describe(options, origin, contract, found) | evidence | {"parity": parity}
        if report["verdict"] != "keep float":
            report["quantisation"] = recipe_of(candidate, effects)
        report["stages"] = progress.stages
        return write(report, work, stage, candidate)


def load(options: Options, target: Path, progress: Progress) -> tuple[dict[str, str], Contract, Photos, dict[str, Any]]:
    """Open the source, find and check the photos, export the float model and prove its parity. What is told of the
    source is returned, not the source: its weights and graphs are memory that quantising needs."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
    with progress.stage("load", 1) as tick:
        source = open_source(options.source, trust=options.trust_source)
        contract = Contract(source.height, source.width, options.resize, options.crop)
        found = photos.find(options.images, options.labels, source.classes, options.calibration)
        tick()
    progress.note(str(found))
    every = (*found.calibration, *found.tuning, *found.evaluation)
    with progress.stage("check photos", photos.batch_count(every)) as tick:  # not after half an hour
        photos.check(every, contract, tick)
    with progress.stage("check range and labels", 1) as tick:
        pixels = np.concatenate(list(photos.batches(found.calibration[:PARITY_PHOTOS], contract)))
        labelled.check(source, found, contract, options.input_range, progress)
        tick()
    with progress.stage("export", 1) as tick:
        worst, limit = export(source, pixels, RANGES[options.input_range], target)
        tick()
    origin = {"file": source.path.name, "sha256": source.sha256, "format": source.kind}
    del source
    gc.collect()  # the exporters' graphs hold each other: 5 GB of a ResNet101V2
    ctypes.CDLL(None).malloc_trim(0)
    return origin, contract, found, {"max_dp": worst, "photos": len(pixels), "limit": limit}


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
    simplify(folded.model)
    with progress.stage("float answers, tuning photos", photos.batch_count(found.tuning)) as tick:
        (reference,) = verify.answers([work / "float.onnx"], found.tuning, contract, tick)
    recipes = Search(folded, pixels, found.tuning, reference, contract, options.gate, work, progress)
    return recipes.run(options.weight_bits)


def evaluate(
    options: Options,
    contract: Contract,
    found: Photos,
    paths: Sequence[Path],
    candidate: Candidate,
    *,
    progress: Progress,
) -> dict[str, Any]:
    """Gate and verdict on the evaluation photos, on the code that serves.

    Raises:
        GateRefusedError: a limit is missed.
    """
    with progress.stage("verify on evaluation photos", photos.batch_count(found.evaluation)) as tick:
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
    verdict, reason = judge(len(candidate.quantisation.weights), len(candidate.recipe.keep_float), timed)
    if verdict == "keep float":
        plan = timing.plan_grid(paths[0], sample, lambda: None)
    with progress.stage("replay on an AVX2-only CPU", 1) as tick:
        packaged, count = paths[1], REPLAYED
        if verdict == "keep float":  # no float kernel saturates
            packaged, count = paths[0], 8
        pictures = golden.images(count, contract.height, contract.width)
        portable = verify.on_avx2(packaged, pictures, packaged.parent, EMULATED_SECONDS)
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
            f"not signed off: only {found['agreement']:.1f} % of {found['photos']} answers are the same on"
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


def judge(rounded: int, kept: int, timed: Sequence[timing.Timed]) -> tuple[str, str]:
    """The verdict and its reason, of so many layers in int8 and tensors kept float."""
    if not rounded:
        return "keep float", "No layer of this network can run in int8: dense layers stay float."
    ratio = timed[1].images_per_s / timed[0].images_per_s
    if ratio < FASTER:
        return "keep float", f"int8 has {ratio:.2f} x the throughput of float on this machine: not worth its rounding."
    note = f" with {kept} tensor{'s' * (kept > 1)} kept float where rounding cost most" if kept else ""
    return ("mixed" if kept else "int8"), f"int8 has {ratio:.2f} x the throughput of float inside the gate{note}."


def write(report: dict[str, Any], work: Path, stage: Path, candidate: Candidate) -> dict[str, Any]:
    """The package's four files."""
    chosen = work / "float.onnx" if report["verdict"] == "keep float" else candidate.path
    height, width = report["preprocessing"]["height"], report["preprocessing"]["width"]
    with package.writing(stage.parent):
        (stage / "model.onnx").write_bytes(chosen.read_bytes())
        package.describe(stage / "model.onnx", properties(report))
        golden.write(stage / "golden.npz", work / "float.onnx", chosen, height, width)
        report["files"] = package.hashes(stage)
        package.write_json(stage / "report.json", report)
        (stage / "MODEL_CARD.md").write_text(card.model_card(report), encoding="utf-8")
    return report
