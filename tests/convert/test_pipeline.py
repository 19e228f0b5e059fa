"""Verdicts and what a refusal advises."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from convert import export as module
from convert.errors import ConvertError, GateRefusedError
from convert.export import check_parity
from convert.graph import Array
from convert.options import Options
from convert.pipeline import advice, check_portable, judge
from convert.quantise import Effect, affordable
from convert.source import PREDICTED, Source, open_source
from convert.timing import Timed
from tests.convert import sources
from tests.convert.graphs import graph, normal, pictures


def timed(*rates: float) -> list[Timed]:
    """Float and int8."""
    return [Timed(2, 1, 1, rate, 1.0) for rate in rates]


@pytest.mark.parametrize(
    ("rounded", "kept", "rates", "verdict", "reason"),
    [
        (9, 0, (100, 210), "int8", "2.10 x the throughput of float inside the gate."),
        (9, 1, (100, 210), "mixed", "with 1 tensor kept float where rounding cost most."),
        (9, 2, (100, 210), "mixed", "with 2 tensors kept float"),
        (9, 0, (100, 104), "keep float", "int8 has 1.04 x the throughput of float on this machine"),
        (9, 1, (100, 90), "keep float", "0.90 x"),
        (0, 0, (100, 210), "keep float", "No layer of this network can run in int8"),
    ],
)
def test_verdicts(rounded: int, kept: int, rates: tuple[float, float], verdict: str, reason: str) -> None:
    found = judge(rounded, kept, timed(*rates))
    assert found[0] == verdict
    assert reason in found[1]


def test_the_source_answers_a_few_images_at_a_time() -> None:
    sizes = list[int]()

    def call(images: Array) -> Array:
        sizes.append(len(images))
        return images.mean((1, 2))

    images = normal(2 * PREDICTED + 1, 5, 5, 3)
    source = Source(Path("x.keras"), "keras", "", 5, 5, 3, call, None)
    assert np.array_equal(source.predict(images), images.mean((1, 2)))
    assert sizes == [PREDICTED, PREDICTED, 1]  # Keras keeps every layer's output of a call


def exported(path: Path, *, batch: str | int = "N") -> NDArray[np.uint8]:
    """A float model that answers the share of each colour, of any batch or of one; pixels for it."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=1),
        helper.make_node("ReduceMean", ["pixels", "places"], ["mean"], keepdims=0),
        helper.make_node("ReduceSum", ["mean", "colours"], ["sum"]),
        helper.make_node("Div", ["mean", "sum"], ["probabilities"]),
    ]
    model = graph(nodes, {"places": np.array([1, 2]), "colours": np.array([1])}, [12, 12, 3], pixels=True, axes=2)
    dimension = model.graph.input[0].type.tensor_type.shape.dim[0]
    if isinstance(batch, int):
        dimension.dim_value = batch
    onnx.save(model, path)
    return pictures(9)


def shares(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    mean = pixels.astype(np.float32).mean((1, 2))
    found: NDArray[np.float32] = mean / mean.sum(1, keepdims=True)
    return found


def test_an_exported_model_may_differ_from_its_source_by_less_than_the_limit(tmp_path: Path) -> None:
    pixels = exported(tmp_path / "float.onnx")
    expected = shares(pixels)
    assert check_parity(tmp_path / "float.onnx", pixels, expected, 1e-4) < 1e-5
    expected[8, 1] += 0.002  # the last image of a batch that is not full
    assert check_parity(tmp_path / "float.onnx", pixels, expected, 0.01) == pytest.approx(0.002, abs=1e-5)
    with pytest.raises(ConvertError, match=r"differs from the source by 0.002 in probability \(limit 0.0001\)"):
        check_parity(tmp_path / "float.onnx", pixels, expected, 1e-4)
    expected[0, 0] = np.nan
    with pytest.raises(ConvertError, match="differs from the source by nan"):
        check_parity(tmp_path / "float.onnx", pixels, expected, 1e-4)


def test_an_exported_model_whose_batch_became_fixed_is_refused(tmp_path: Path) -> None:
    pixels = exported(tmp_path / "float.onnx", batch=1)
    with pytest.raises(ConvertError, match="does not run at batch 1 and 8: "):
        check_parity(tmp_path / "float.onnx", pixels, shares(pixels), 1e-4)


@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")  # keras/src/export/tf2onnx_lib.py
def test_a_source_that_one_exporter_cannot_write_is_written_by_the_other(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise KeyError("no handler")

    source, pixels = open_source(saved, trust=False), np.stack([sources.picture(i % 4, i) for i in range(8)])
    monkeypatch.setattr(module, "by_function", failing)
    worst, limit = module.export(source, pixels, (0.0, 1.0), tmp_path / "float.onnx")
    assert worst < limit == 1e-4
    monkeypatch.setattr(module, "by_keras", failing)
    with pytest.raises(ConvertError, match=r"cannot be exported to ONNX \(failing: KeyError: 'no handler'\)"):
        module.export(source, pixels, (0.0, 1.0), tmp_path / "float.onnx")


def test_advice_names_options_that_exist_and_help() -> None:
    options = Options(Path("x"), "x", Path("images"), calibration=128)
    assert "--calibration, now 128" in advice(options, 128)
    assert "--calibration" not in advice(options, 100)  # a larger number would find no more
    assert "100 were all" in advice(options, 100)
    assert "--weight-bits 8" in advice(options, 128)
    assert "--macs, now 40" in advice(Options(Path("x"), "x", Path("images"), macs=40.0), 512)
    assert "--macs" not in advice(options, 128)
    assert "--weight-bits 7" in advice(Options(Path("x"), "x", Path("images"), weight_bits=8), 512)


def test_answers_that_depend_on_the_cpu_are_refused() -> None:
    found = {"agreement": 90.0, "photos": 64, "other_cpu": "Haswell"}
    with pytest.raises(GateRefusedError, match=r"only 90.0 % of 64 answers are the same on Haswell, limit 99 %"):
        check_portable(found, 7)
    with pytest.raises(GateRefusedError):
        check_portable({**found, "agreement": 98.4}, 7)  # one of 64
    check_portable({**found, "agreement": 100.0}, 7)
    check_portable(found, 8)
    check_portable({"skipped": "no emulator"}, 7)


def test_tensors_are_kept_float_as_long_as_they_are_cheap() -> None:
    effects = [Effect(name, 0.5, 0.0) for name in ("a", "costly", "b", "c", "d")]
    cost = {"a": 0.05, "costly": 0.2, "b": 0.03, "c": 0.01, "d": 0.001}
    assert affordable(effects, lambda names: sum(cost[name] for name in names)) == list("abcd")
    assert affordable([], lambda _: 0.0) == []
    assert len(affordable([Effect(str(number), 0.5, 0.0) for number in range(20)], lambda _: 0.0)) == 8
