"""One ONNX Runtime session and what its file says of itself. Source: docs/package.md."""

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.image import Contract

FORMAT = "1"
LATE_S, LATE_TIMES = 1.0, 20  # of a call on the pool's thread: over both, the usual time of its images, it is lost


class PackageError(ValueError):
    """A file or folder that is no package this service can serve."""


@dataclass(frozen=True)
class Metadata:
    """What `model.onnx` says of itself in `metadata_props`."""

    labels: tuple[str, ...]  # one a class, in the order of the output
    contract: Contract
    precision: str  # int8, mixed or float32
    verdict: str  # int8, mixed or keep float
    raw: Mapping[str, Any]  # every `sous.` value, without the prefix, JSON decoded


def open_session(path: Path, intra_op_threads: int) -> ort.InferenceSession:
    """A CPU session with `intra_op_threads` threads (the caller's among them) that do not spin.

    Raises:
        PackageError: the file is missing or no ONNX model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a class an error code, and no common one but Exception
        raise PackageError(
            f"{path} cannot be loaded by ONNX Runtime ({str(error).splitlines()[0]}): copy it again"
        ) from None


class Engine:
    """A session shared by all threads that call it.

    A call by itself computes on all of the session's threads. One beside it runs on a thread of the pool, which with
    two threads then helps nobody else: threads that help several calls at once wait for each other, an eighth of
    ResNet101V2's time on two cores. Never two there: ONNX Runtime may give both to the same thread.
    """

    def __init__(self, path: Path, intra_op_threads: int) -> None:
        self.session = open_session(path, intra_op_threads)
        self._image_s = 0.0  # of the last call on a caller's thread
        self._places = [(threading.Lock(), self.run), (threading.Lock(), self._run_aside)]
        if intra_op_threads == 1:  # the caller's: there is no pool
            self._places.clear()

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities, float32 `[N, C]`, of uint8 RGB images `[N, H, W, 3]`."""
        for free, run in self._places:
            if free.acquire(blocking=False):
                try:
                    return run(images)
                finally:
                    free.release()
        return self.run(images)

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The same on the caller's thread, helped by those of the pool, whatever else runs."""
        start = time.perf_counter()
        probabilities: NDArray[np.float32] = self.session.run(None, {"image": images})[0]
        self._image_s = (time.perf_counter() - start) / len(images)
        return probabilities

    def _run_aside(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """On a thread of the pool. ONNX Runtime divides its work among the others of the pool, if there are any.

        Its pool (1.32) was seen to sleep over such a call, once: what is late is computed here, which also wakes it.
        """
        outcome: SimpleQueue[tuple[list[NDArray[np.float32]], str]] = SimpleQueue()
        # the callback holds the images, which a late call reads
        self.session.run_async(
            None, {"image": images}, lambda *given, _images=images: outcome.put((given[0], given[2])), None
        )
        try:
            results, error = outcome.get(timeout=max(LATE_S, LATE_TIMES * self._image_s * len(images)))
        except Empty:
            return self.run(images)
        if error:
            raise RuntimeError(error)
        return results[0]


class Model:
    """A package's model, shared by all threads that call it.

    Raises:
        PackageError: the file is no ONNX model, or is none that `convert` wrote.
    """

    def __init__(self, path: Path, intra_op_threads: int) -> None:
        self.engine = Engine(path, intra_op_threads)
        self.metadata = read_metadata(path, self.engine.session.get_modelmeta().custom_metadata_map)
        _check_shapes(path, self.engine.session, self.metadata)

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities, float32 `[N, C]`, of uint8 RGB images `[N, H, W, 3]`."""
        return self.engine.infer(images)


def read_metadata(path: Path, properties: Mapping[str, str]) -> Metadata:
    """Metadata from `metadata_props`.

    Raises:
        PackageError: members are missing, or of another format.
    """
    plain = ("format", "precision", "verdict")
    members = {name.removeprefix("sous."): value for name, value in properties.items() if name.startswith("sous.")}
    if members.get("format") != FORMAT:
        found = f"format {members['format']}" if "format" in members else "no `sous.format`"
        raise PackageError(f"{path} has {found} in its metadata, this service reads format {FORMAT}: convert it again")
    try:
        raw: dict[str, Any] = {name: value if name in plain else json.loads(value) for name, value in members.items()}
        shape = raw["preprocessing"]
        contract = Contract(int(shape["height"]), int(shape["width"]), shape["resize"], shape["crop"])
        return Metadata(tuple(raw["labels"]), contract, raw["precision"], raw["verdict"], raw)
    except (KeyError, TypeError, ValueError) as error:
        raise PackageError(f"{path} has bad metadata ({error!r}): convert it again") from None


def _check_shapes(path: Path, session: ort.InferenceSession, metadata: Metadata) -> None:
    image, output = session.get_inputs()[0], session.get_outputs()[0]
    found = (image.name, image.type, image.shape[1:], output.type, output.shape[1:])
    contract = metadata.contract
    wanted = (
        "image",
        "tensor(uint8)",
        [contract.height, contract.width, 3],
        "tensor(float)",
        [len(metadata.labels)],
    )
    if found != wanted:
        raise PackageError(f"{path} has {found} where its metadata say {wanted}: convert it again")
