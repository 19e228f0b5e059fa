"""Every kind of source becomes a package that the service loads and answers with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from convert import pipeline
from convert.verify import percent
from service.model import Model
from service.repository import open_repository
from service.settings import Settings
from tests.convert import sources
from tests.convert.conftest import Outcome

Convert = Callable[..., Outcome]


def save_keras(model: Any, folder: Path) -> Path:
    model.save(folder / "source.keras")
    return folder / "source.keras"


def save_h5(model: Any, folder: Path) -> Path:
    """Keras 2's format, which Keras 3 still writes."""
    model.save(folder / "source.h5")
    return folder / "source.h5"


def export(model: Any, folder: Path) -> Path:
    """Keras 3's SavedModel."""
    model.export(folder / "source", format="tf_saved_model", verbose=False)
    return folder / "source"


def save_tf(model: Any, folder: Path) -> Path:
    """Keras 2's SavedModel."""
    model.save(folder / "source", save_format="tf")
    return folder / "source"


def save_tensorflow(model: Any, folder: Path) -> Path:
    """TensorFlow's own SavedModel."""
    import tensorflow as tf  # noqa: PLC0415

    tf.saved_model.save(model, str(folder / "source"))
    return folder / "source"


CASES = {
    "functional": (sources.functional, save_keras, {}),
    "sequential": (sources.sequential, save_keras, {}),
    "nested": (sources.nested, save_keras, {}),
    "h5 functional": (sources.functional, save_h5, {}),
    "h5 sequential": (sources.sequential, save_h5, {}),
    "h5 nested": (sources.nested, save_h5, {}),
    "exported": (sources.functional, export, {}),
    "exported nested": (sources.nested, export, {}),
    "saved_model.save": (sources.sequential, save_tensorflow, {}),
    "mixed_float16": (sources.functional, save_keras, {"dtype": "mixed_float16"}),
    "float16": (sources.functional, save_h5, {"dtype": "float16"}),
    "float64": (sources.functional, save_keras, {"dtype": "float64"}),
    "exported float64": (sources.functional, export, {"dtype": "float64"}),
    "bfloat16": (sources.functional, save_keras, {"dtype": "bfloat16"}),
    "exported mixed_float16": (sources.functional, export, {"dtype": "mixed_float16"}),
    "exported bfloat16": (sources.functional, export, {"dtype": "mixed_bfloat16"}),
    "reversed colours": (sources.reversed_colours, save_keras, {}),
    "varied": (sources.varied, save_keras, {}),
    "parted": (sources.parted, save_keras, {}),
    "gated": (sources.gated, save_keras, {}),
    "attentive": (sources.attentive, save_keras, {}),
    "logits": (sources.functional, save_keras, {"last": None}),
    "by name": (sources.by_name, save_keras, {}),
}
KERAS_2_CASES = {
    "h5 functional": (sources.functional, save_h5, {}),
    "h5 sequential": (sources.sequential, save_h5, {}),
    "h5 nested": (sources.nested, save_h5, {}),
    "h5 varied": (sources.varied, save_h5, {}),
    "h5 by name": (sources.by_name, save_h5, {}),
    "h5 mixed_float16": (sources.functional, save_h5, {"dtype": "mixed_float16"}),
    "h5 that calls TensorFlow": (sources.operators, save_h5, {"input_range": "0,255"}),
    "keras nested": (sources.nested, save_keras, {}),
    "SavedModel nested": (sources.nested, save_tf, {}),
}


@pytest.mark.usefixtures("always_int8")
@pytest.mark.parametrize("case", CASES)
def test_a_source_becomes_a_package_that_serves(case: str, keras: Any, convert: Convert, tmp_path: Path) -> None:
    build, save, options = CASES[case]
    outcome = convert(save(sources.trained(keras, build, **options), tmp_path))
    check(outcome, 0.05 if case in {"exported mixed_float16", "exported bfloat16"} else 1e-4)


@pytest.mark.filterwarnings(
    "ignore:You are saving your model as an HDF5 file", "ignore:The `keras.initializers.serialize"
)
@pytest.mark.usefixtures("always_int8")
@pytest.mark.parametrize("case", KERAS_2_CASES)
def test_what_keras_2_wrote_becomes_a_package_that_serves(
    case: str, keras_2: Any, convert: Convert, tmp_path: Path
) -> None:
    build, save, options = KERAS_2_CASES[case]
    source = save(sources.trained(keras_2, build, **options), tmp_path)
    check(convert(source, f"--input-range={options.get('input_range', '0,1')}"), 1e-4)


def check(outcome: Outcome, parity: float) -> None:
    """What every package promises."""
    assert (outcome.status, outcome.err) == (0, "")
    served = Model(outcome.package / "model.onnx", 1)
    labels = np.arange(40) % 4
    images = np.stack([sources.picture(label, 500 + seed) for seed, label in enumerate(labels)])
    answers = served.infer(images)
    assert np.allclose(answers.sum(1), 1, atol=1e-3)
    assert percent(answers.argmax(1) == labels) > 90
    assert served.metadata.labels == sources.CLASSES
    assert outcome.report["parity"]["limit"] == parity
    assert outcome.report["parity"]["max_dp"] < parity


@pytest.mark.parametrize("mark", ["7-bit", "8-bit"])
@pytest.mark.usefixtures("always_int8")
def test_weights_have_the_bits_asked_for(mark: str, saved: Path, convert: Convert) -> None:
    # without VNNI 8-bit weights saturate: that is what the gate is for, not this test
    outcome = convert(saved, "--weight-bits", mark[0], "--gate-agreement", "50", "--gate-drop", "50")
    assert (outcome.status, outcome.report["quantisation"]["weight_bits"]) == (0, int(mark[0]))


@pytest.mark.usefixtures("always_int8")
def test_a_pruned_network_is_packaged_with_the_share_that_is_left(keras: Any, convert: Convert, tmp_path: Path) -> None:
    outcome = convert(save_keras(sources.trained(keras, sources.wide), tmp_path), "--macs", "90")
    assert outcome.status == 0
    assert 0.8 < outcome.report["quantisation"]["macs"] <= 0.9
    left = 100 * outcome.report["quantisation"]["macs"]
    assert outcome.err == f"pruned: {left:.1f} % of the multiplications are left"
    assert f"{left:.0f} % of the multiplications are left" in (outcome.package / "MODEL_CARD.md").read_text()
    labels = np.arange(40) % 4
    images = np.stack([sources.picture(label, 500 + seed) for seed, label in enumerate(labels)])
    assert percent(Model(outcome.package / "model.onnx", 1).infer(images).argmax(1) == labels) > 90


@pytest.mark.usefixtures("always_int8")
def test_a_tensor_that_int8_cannot_hold_is_kept_float_and_the_rest_is_int8(
    keras: Any, convert: Convert, tmp_path: Path
) -> None:
    outcome = convert(save_keras(sources.trained(keras, sources.lopsided), tmp_path))
    assert (outcome.status, outcome.report["verdict"], outcome.report["precision"]) == (0, "mixed", "mixed")
    kept = outcome.report["quantisation"]["kept_float"]
    assert kept
    assert "kept float where rounding cost most" in outcome.report["reason"]
    assert {"QuantizeLinear", "DequantizeLinear"} <= {
        n.op_type for n in onnx.load(outcome.package / "model.onnx").graph.node
    }
    assert outcome.report["evaluation"]["agreement"] >= 0.97


def test_a_network_that_gains_nothing_is_packaged_in_float_and_serves(
    saved: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "FASTER", 1e9)
    outcome = convert(saved)
    assert outcome.status == 0
    assert outcome.report["verdict"] == "keep float"
    served = Model(outcome.package / "model.onnx", 1)
    assert (served.metadata.precision, served.metadata.verdict) == ("float32", "keep float")
    assert served.metadata.raw["calibration"] is None
    assert served.metadata.raw["evaluation"]["agreement"] == 1.0  # of the float model, with itself
    assert "QuantizeLinear" not in {node.op_type for node in onnx.load(outcome.package / "model.onnx").graph.node}
    assert served.infer(sources.picture(2, 3)[None]).argmax() == 2
    assert "Verdict: **keep float**" in (outcome.package / "MODEL_CARD.md").read_text()
    assert open_repository(Settings(models_dir=str(outcome.package.parents[1]))).find("small").model is not None


@pytest.mark.usefixtures("always_int8")
def test_a_network_without_a_layer_for_int8_kernels_stays_float_whatever_the_clock_says(
    keras: Any, convert: Convert, tmp_path: Path
) -> None:
    outcome = convert(save_keras(sources.trained(keras, sources.volumes), tmp_path))
    assert (outcome.status, outcome.report["verdict"]) == (0, "keep float")
    assert outcome.report["reason"].startswith("No layer of this network can run in int8")


@pytest.mark.usefixtures("always_int8")
def test_the_service_opens_the_package_and_reproduces_its_golden_set(saved: Path, convert: Convert) -> None:
    outcome = convert(saved)
    served = open_repository(Settings(models_dir=str(outcome.package.parents[1]))).find("small")
    assert (served.package.version, served.model.metadata.verdict) == (1, "int8")
    assert served.golden_drift is not None
    assert served.golden_drift < 0.05
