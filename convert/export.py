"""Float ONNX from an opened source: `image` uint8 `[N, H, W, 3]` in, `probabilities` float32 `[N, C]` out."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from convert.errors import ConvertError
from convert.graph import IR_VERSION, add_constant, optimised, rename, session
from convert.source import Source, first_line

OPSET = 18
PARITY = 1e-4


def export(source: Source, pixels: NDArray[np.uint8], input_range: tuple[float, float], target: Path) -> float:
    """Write the float model to `target`; its largest difference in probability from the source on `pixels`.

    Raises:
        ConvertError: no route can export it, or the exported model answers otherwise than the source.
    """
    low, high = input_range
    expected = source.predict(pixels.astype(np.float32) * np.float32((high - low) / 255) + np.float32(low))
    failures = []
    for route in (by_function, by_keras):
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            raw = Path(folder) / "raw.onnx"
            try:
                route(source, raw)
            except Exception as error:  # the exporters raise whatever their converters meet
                failures.append(f"{route.__name__}: {type(error).__name__}: {first_line(error)}")
                continue
            model = with_pixels(onnx.load(raw), source, input_range, softmax=needs_softmax(source, expected))
            onnx.save(model, raw)
            onnx.save(optimised(raw, Path(folder) / "optimised.onnx"), target)
        return check_parity(target, pixels, expected)
    raise ConvertError(f"{source.path} cannot be exported to ONNX ({'; '.join(failures)}): use layers that ONNX knows")


def by_function(source: Source, target: Path) -> None:
    """tf2onnx on a traced function. (`from_keras` fails with a KeyError on Keras 3 models.)"""
    import tensorflow as tf  # noqa: PLC0415  takes seconds: not before it is needed
    import tf2onnx  # noqa: PLC0415

    spec = [tf.TensorSpec([None, source.height, source.width, 3], tf.float32, name="image")]
    function = tf.function(source.call, input_signature=spec)
    tf2onnx.convert.from_function(function, input_signature=spec, opset=OPSET, output_path=str(target))


def by_keras(source: Source, target: Path) -> None:
    """Keras' own exporter."""
    if source.keras is None:
        raise ConvertError("a SavedModel has no Keras exporter")
    source.keras.export(str(target), format="onnx", verbose=False, opset_version=OPSET)


def needs_softmax(source: Source, outputs: NDArray[np.float32]) -> bool:
    """Whether the source answers logits. Probabilities lie in 0 to 1 and sum to one; anything else within 0 to 1 are
    labels that do not exclude each other."""
    if not np.isfinite(outputs).all():
        raise ConvertError(f"{source.path} answers NaN or infinity on the photos: check its weights and --input-range")
    within = outputs.min() >= 0 and outputs.max() <= 1
    if within and np.allclose(outputs.sum(1), 1, atol=1e-3):
        return False
    if within:
        raise ConvertError(
            f"{source.path} answers values that do not sum to one (sigmoid outputs?): end it in a softmax"
        )
    return True


def with_pixels(model: ModelProto, source: Source, input_range: tuple[float, float], *, softmax: bool) -> ModelProto:
    """Names, types and a symbolic batch as the package has them; pixels scaled to the source's range inside the graph."""
    graph, (low, high) = model.graph, input_range
    names = {graph.input[0].name: "source_image", graph.output[0].name: "logits" if softmax else "probabilities"}
    for node in graph.node:
        rename(node.input, names)
        rename(node.output, names)
    scale = add_constant(model, "pixel_scale", np.array((high - low) / 255, np.float32))
    shift = add_constant(model, "pixel_shift", np.array(low, np.float32))
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", scale], ["scaled"]),
        helper.make_node("Add", ["scaled", shift], ["source_image"]),
        *graph.node,
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    shape: list[str | int | None] = ["N", source.height, source.width, 3]
    entry = helper.make_tensor_value_info("image", TensorProto.UINT8, shape)
    result = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", source.classes])
    new = helper.make_graph(nodes, "sous", [entry], [result], list(graph.initializer))
    return helper.make_model(new, opset_imports=model.opset_import, ir_version=IR_VERSION, functions=model.functions)


def check_parity(path: Path, pixels: NDArray[np.uint8], expected: NDArray[np.float32]) -> float:
    """The largest difference from the source's answers, run at batch 1 and 8 (a batch axis that became fixed fails)."""
    engine = session(path, 2)
    if (expected.sum(1) - 1).max() > 1e-3 or expected.min() < 0:
        expected = np.exp(expected - expected.max(1, keepdims=True))
        expected /= expected.sum(1, keepdims=True)
    try:
        one = [engine.run(None, {"image": pixels[i : i + 1]})[0] for i in range(len(pixels))]
        eight = [engine.run(None, {"image": pixels[i : i + 8]})[0] for i in range(0, len(pixels), 8)]
    except Exception as error:  # ONNX Runtime has a class an error code, and no common one but Exception
        raise ConvertError(f"the exported model does not run at batch 1 and 8: {first_line(error)}") from None
    worst = max(float(np.abs(np.concatenate(found) - expected).max()) for found in (one, eight))
    if not worst < PARITY:
        raise ConvertError(
            f"the exported model differs from the source by {worst:.2g} in probability (limit {PARITY:g}): a layer of the"
            " source is exported wrongly; try another Keras version or replace unusual layers"
        )
    return worst
