"""`python -m convert.bench SOURCE --images DIR`: our quantisation beside ONNX Runtime's own recipe, in one table.

The same float model, photos and machine for all: ONNX Runtime's `quantize_static` (QDQ, per channel, min-max and
percentile; 8 bits, and 7 by `reduce_range`), and ours at 7 and 8 bits.
"""

import io
import sys
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime import quantization as ort
from onnxruntime.quantization.shape_inference import quant_pre_process

from convert import photos, pipeline, timing, verify
from convert.command import answered, parser, read_options
from convert.options import Options
from convert.photos import Photos
from convert.progress import Progress
from service.cpu import cores
from service.image import Contract

HEAD = ("recipe", "drop", "agreement", "mean dp", "MB", "1 thread ms", "2 threads ms", "images/s", "x ORT")
RECIPES = (
    ("ORT min-max, 8 bits", ort.CalibrationMethod.MinMax, False),
    ("ORT min-max, 7 bits", ort.CalibrationMethod.MinMax, True),
    ("ORT percentile, 8 bits", ort.CalibrationMethod.Percentile, False),
    ("ORT percentile, 7 bits", ort.CalibrationMethod.Percentile, True),
)


class Reader(ort.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Calibration photos, a batch a call. Percentiles need every batch of the same size, and hold the activations of
    all photos between two calls of `set_range` in memory (onnxruntime issue 10503)."""

    def __init__(self, batches: Sequence[NDArray[np.uint8]]) -> None:
        self.batches = [batch for batch in batches if len(batch) == photos.BATCH]
        self.set_range(0, len(self.batches))

    def __len__(self) -> int:
        return len(self.batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Only these batches from now on."""
        self.left = iter(self.batches[start_index:end_index])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next feed, None at the end."""
        batch = next(self.left, None)
        return None if batch is None else {"image": batch}


def main(argv: Sequence[str]) -> int:
    """The options of `python -m convert` but those of the package."""
    about = (
        "Our int8 beside ONNX Runtime's quantize_static: same float model and photos, one table; nothing is packaged."
    )
    options = read_options(parser("python -m convert.bench", about), argv, name="bench")
    return answered(lambda: compare(options, Progress()))


def compare(options: Options, progress: Progress) -> str:
    """The table."""
    with tempfile.TemporaryDirectory(prefix="sous-bench-") as folder:
        work = Path(folder)
        _, contract, found, _ = pipeline.load(options, work / "float.onnx", progress)
        models = {"float32": work / "float.onnx"} | theirs(work, contract, found, progress)
        for bits in (7, 8):
            ours = work / f"ours{bits}"
            ours.mkdir()
            (ours / "float.onnx").write_bytes((work / "float.onnx").read_bytes())
            candidate, _ = pipeline.quantise(replace(options, weight_bits=bits), contract, found, ours, progress)
            models[f"ours, {bits} bits"] = candidate.path
        return table(rows(models, contract, found, progress))


def theirs(work: Path, contract: Contract, found: Photos, progress: Progress) -> dict[str, Path]:
    """ONNX Runtime's recipe in its variants."""
    batches = list(photos.batches(found.calibration, contract))
    quant_pre_process(str(work / "float.onnx"), str(work / "prepared.onnx"), skip_symbolic_shape=True)
    models = {}
    chatter = redirect_stdout(io.StringIO())  # of the percentile calibration
    with progress.stage("ONNX Runtime's quantize_static", len(RECIPES)) as tick, chatter:
        for name, method, reduce in RECIPES:
            models[name] = work / f"{name}.onnx"
            ort.quantize_static(
                str(work / "prepared.onnx"),
                str(models[name]),
                Reader(batches),
                quant_format=ort.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduce,
                activation_type=ort.QuantType.QUInt8,
                weight_type=ort.QuantType.QInt8,
                calibrate_method=method,
                extra_options={"CalibStridedMinMax": 1},  # batches at once, of every method
            )
            tick()
    return models


def rows(models: dict[str, Path], contract: Contract, found: Photos, progress: Progress) -> list[list[str]]:
    """A row a model; timed in turns, the throughput beside that of ONNX Runtime's first variant."""
    paths = list(models.values())
    with progress.stage("answers to evaluation photos", photos.batch_count(found.evaluation)) as tick:
        answers = verify.answers(paths, found.evaluation, contract, tick)
    sample = next(photos.batches(found.evaluation, contract))
    plans = [(1, 1), (1, 2), (cores(), 1)]
    with progress.stage("times, in turns", len(plans)) as tick:
        timed = []
        for slots, threads in plans:
            plan = {"slots": slots, "intra_op_threads": threads, "max_batch_size": 1}
            timed.append(timing.beside(paths, plan, sample))
            tick()
    theirs_rate = timed[-1][list(models).index(RECIPES[0][0])].images_per_s
    return [
        row(name, verify.score(answers[0], answers[i], found.evaluation), path, [one[i] for one in timed], theirs_rate)
        for i, (name, path) in enumerate(models.items())
    ]


def row(name: str, score: verify.Score, path: Path, timed: Sequence[timing.Timed], theirs_rate: float) -> list[str]:
    """The cells of one model."""
    return [
        name,
        "" if score.top1 is None else f"{score.drop:.2f}",
        f"{score.agreement:.2f} %",
        f"{score.mean_dp:.5f}",
        f"{path.stat().st_size / 1e6:.2f}",
        *(f"{one.latency_ms:.2f}" for one in timed[:2]),
        f"{timed[-1].images_per_s:.1f}",
        f"{timed[-1].images_per_s / theirs_rate:.2f}",
    ]


def table(cells: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines: list[Any] = [HEAD, ["---"] + ["---:"] * (len(HEAD) - 1), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    sys.exit(main(sys.argv[1:]))
