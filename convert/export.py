"""Float ONNX from an opened source: `image` uint8 `[N, H, W, 3]` in, `probabilities` float32 `[N, C]` out."""

import errno
import gc
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, compose, helper, numpy_helper

from convert.errors import ConvertError
from convert.graph import IR_VERSION, add_constant, optimised, replace, session
from convert.shapes import constant_shapes
from convert.source import Source, first_line

OPSET = 18
PARITY = 1e-4
HALF_PARITY = 0.05  # of a SavedModel that computes in half precision: its own rounding is the difference
HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
OTHER = HALF | {TensorProto.DOUBLE}
LEAST_SPACE_BYTES = 1_000_000
BATCH = 8
COLLECT_S = 1.0


def export(
    source: Source, pixels: NDArray[np.uint8], input_range: tuple[float, float], target: Path
) -> tuple[float, float]:
    """Write the float model to `target`; its largest difference in probability from the source on `pixels`, and the
    limit that held for it.

    Raises:
        ConvertError: no route can export it, or the exported model answers otherwise than the source.
        OSError, MemoryError: the disk or the memory is full.
    """
    low, high = input_range
    expected = source.predict(pixels.astype(np.float32) * np.float32((high - low) / 255) + np.float32(low))
    softmax = needs_softmax(source, expected)
    if softmax:
        expected = np.exp(expected - expected.max(1, keepdims=True))
        expected /= expected.sum(1, keepdims=True)
    failures = []
    for route in (by_function, by_keras) if source.keras else (by_function,):
        try:
            half = one_route(route, source, input_range, target, softmax=softmax)
            limit = HALF_PARITY if half else PARITY
            return check_parity(target, pixels, expected, limit), limit
        except ConvertError as error:
            failures.append(str(error))
        except (OSError, MemoryError):
            raise
        except Exception as error:  # the exporters raise whatever their converters meet
            check_space(target.parent)
            failures.append(f"{route.__name__}: {type(error).__name__}: {first_line(error)}")
    reasons = "; ".join(dict.fromkeys(failures))
    raise ConvertError(
        f"{source.path} cannot be exported to ONNX ({reasons}): use layers that ONNX knows, with any batch"
    )


def one_route(
    route: Callable[[Source, Path], None],
    source: Source,
    input_range: tuple[float, float],
    target: Path,
    *,
    softmax: bool,
) -> bool:
    """Write the float model by one exporter; whether it computed in half precision."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        raw = Path(folder) / "raw.onnx"
        with collecting():
            route(source, raw)
        model = onnx.load(raw)
        expand(model)
        check_operators(model)
        model = compose.add_prefix(model, "source/")
        half = to_float32(model)
        onnx.save(with_pixels(model, source, input_range, softmax=softmax), raw)
        onnx.save(constant_shapes(optimised(raw, Path(folder) / "optimised.onnx")), target)
    return half


@contextmanager
def collecting() -> Iterator[None]:
    """Collect garbage every second meanwhile: tf2onnx copies the graph and its weights for each rewrite, in cycles that
    Python by itself leaves for long. 9.5 GB of a ResNet101V2 become 4.2, in the same time."""
    done = threading.Event()

    def collect() -> None:
        while not done.wait(COLLECT_S):
            gc.collect()

    thread = threading.Thread(target=collect, name="collector")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def expand(model: ModelProto) -> None:
    """erfc(x) as 1 - erf(x), of Keras' exact gelu, and expm1(x) as exp(x) - 1, of its celu: ONNX has the latter."""
    for node in [node for node in model.graph.node if node.op_type in {"Erfc", "Expm1"}]:
        one = add_constant(model, f"{node.name}_one", np.ones(1, np.float32))
        known = {"Erfc": "Erf", "Expm1": "Exp"}[node.op_type]
        inner = helper.make_node(known, node.input, [f"{node.name}_{known}"], f"{node.name}_{known}")
        terms = [one, *inner.output] if known == "Erf" else [*inner.output, one]
        replace(model, [node], [inner, helper.make_node("Sub", terms, node.output, node.name)])


def check_operators(model: ModelProto) -> None:
    """Refuse what the exporter passed through untranslated, by name."""
    known = {opset.domain: opset.version for opset in model.opset_import}
    for node in model.graph.node:
        if not onnx.defs.has(node.op_type, known.get(node.domain, 1), node.domain):
            raise ConvertError(f"there is no ONNX operator for {node.op_type} at {node.name}")


def check_space(folder: Path) -> None:
    """The exporters fail in many ways on a full disk: say what it was.

    Raises:
        OSError: next to nothing is free.
    """
    if shutil.disk_usage(folder).free < LEAST_SPACE_BYTES:
        raise OSError(errno.ENOSPC, "no space left", str(folder)) from None


def by_function(source: Source, target: Path) -> None:
    """tf2onnx on a traced function. (`from_keras` fails with a KeyError on Keras 3 models.)"""
    import tensorflow as tf  # noqa: PLC0415  takes seconds: not before it is needed
    import tf2onnx  # noqa: PLC0415

    spec = [tf.TensorSpec([None, source.height, source.width, 3], tf.float32, name="image")]
    function = tf.function(source.call, input_signature=spec, autograph=False)
    # Grouped convolutions are functions of their own, compiled by XLA: inline them.
    tf.config.run_functions_eagerly(True)
    try:
        captures = function.get_concrete_function().graph.captures
    finally:
        tf.config.run_functions_eagerly(False)
    model, _ = tf2onnx.convert.from_function(function, input_signature=spec, opset=OPSET)
    constants = {inner.name: outer.numpy() for outer, inner in captures if outer.dtype != tf.resource}
    inputs = [entry for entry in model.graph.input if entry.name not in constants]
    for name, value in constants.items():  # tensors that a layer holds (Normalization's mean) come out as inputs
        add_constant(model, name, value)
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    onnx.save(model, target)


def by_keras(source: Source, target: Path) -> None:
    """Keras' own exporter."""
    source.keras.export(str(target), format="onnx", verbose=False, opset_version=OPSET)


def needs_softmax(source: Source, outputs: NDArray[np.float32]) -> bool:
    """Whether the source answers logits. Probabilities lie in 0 to 1 and sum to one; anything else within 0 to 1 are
    labels that do not exclude each other."""
    if not np.isfinite(outputs).all():
        raise ConvertError(f"{source.path} answers NaN or infinity on the photos: check its weights and --input-range")
    within = (
        outputs.min() >= -1e-3 and outputs.max() <= 1 + 1e-3
    )  # half precision sums to one within a few 1e-4 a class
    if within and np.allclose(outputs.sum(1), 1, atol=1e-2):
        return False
    if within:
        raise ConvertError(
            f"{source.path} answers values that do not sum to one (sigmoid outputs?): end it in a softmax"
        )
    return True


def to_float32(model: ModelProto) -> bool:
    """Bring constants and casts of half and double precision to float32, in place; whether any were half."""
    tensors, found = list(model.graph.initializer), False
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                tensors.append(attribute.t)
            elif attribute.name in {"to", "dtype"} and attribute.i in OTHER:
                found |= attribute.i in HALF
                attribute.i = TensorProto.FLOAT
    for tensor in tensors:
        if tensor.data_type in OTHER:
            found |= tensor.data_type in HALF
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    return found


def with_pixels(model: ModelProto, source: Source, input_range: tuple[float, float], *, softmax: bool) -> ModelProto:
    """Names, types and a symbolic batch as the package has them; the source's range of pixels made inside the graph."""
    graph, (low, high) = model.graph, input_range
    scale = add_constant(model, "pixel_scale", np.array((high - low) / 255, np.float32))
    shift = add_constant(model, "pixel_shift", np.array(low, np.float32))
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", scale], ["scaled"]),
        helper.make_node("Add", ["scaled", shift], [graph.input[0].name]),
        *graph.node,
        helper.make_node("Softmax", [graph.output[0].name], ["probabilities"], axis=1)
        if softmax
        else helper.make_node("Identity", [graph.output[0].name], ["probabilities"]),
    ]
    shape: list[str | int | None] = ["N", source.height, source.width, 3]
    entry = helper.make_tensor_value_info("image", TensorProto.UINT8, shape)
    result = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", source.classes])
    new = helper.make_graph(nodes, "sous", [entry], [result], list(graph.initializer))
    return helper.make_model(new, opset_imports=model.opset_import, ir_version=IR_VERSION, functions=model.functions)


def check_parity(path: Path, pixels: NDArray[np.uint8], expected: NDArray[np.float32], limit: float) -> float:
    """The largest difference from the expected probabilities, run at batch 1 and 8 (a batch axis that became fixed
    fails)."""
    engine = session(path, 2)
    try:
        runs = [
            [engine.run(None, {"image": pixels[i : i + batch]})[0] for i in range(0, len(pixels), batch)]
            for batch in (1, BATCH)
        ]
    except MemoryError:
        raise
    except Exception as error:  # ONNX Runtime has a class an error code, and no common one but Exception
        raise ConvertError(f"the exported model does not run at batch 1 and {BATCH}: {first_line(error)}") from None
    worst = max(float(np.abs(np.concatenate(found) - expected).max()) for found in runs)
    if not worst < limit:
        raise ConvertError(
            f"the exported model differs from the source by {worst:.2g} in probability (limit {limit:g}): report it"
        )
    return worst
