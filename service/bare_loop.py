"""The floor under the service: its own decode and session in bare threads, without HTTP, queue or slots.

`python -m service.bare_loop decode|loop|latency PHOTO ...` prints one JSON object. `perf.bench` runs it as a program
beside the service, so that perf imports nothing of the service and both sides of a ratio come from the same code.
"""

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.image import Contract, Limits, decode
from service.model import Model

Infer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
LIMITS = Limits(max_bytes=1 << 30, max_pixels=1 << 40)


def time_decode(photo: bytes, count: int, size: int) -> dict[str, float]:
    """Median CPU time of decoding one photo to `size` x `size`, milliseconds."""
    contract = Contract(size, size)
    return {"decode_ms": median_ms(lambda: decode(photo, contract, LIMITS), count, time.thread_time)}


def loop(model: Model, photo: bytes, count: int, threads: int, infer: Infer) -> dict[str, float]:
    """`count` photos decoded and inferred by `threads` threads: seconds of CPU and of the clock."""
    workers = [threading.Thread(target=answer, args=(model, photo, count // threads, infer)) for _ in range(threads)]
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    done = count // threads * threads
    return {"photos": done, "cpu_s": time.process_time() - cpu_s, "wall_s": time.perf_counter() - wall_s}


def answer(model: Model, photo: bytes, count: int, infer: Infer) -> None:
    for _ in range(count):
        infer(decode(photo, model.metadata.contract, LIMITS)[np.newaxis])


def time_stages(model: Model, photo: bytes, count: int) -> dict[str, float]:
    """Median times of decoding and of inferring one photo, nothing else running, milliseconds."""
    contract = model.metadata.contract
    pixels = decode(photo, contract, LIMITS)[np.newaxis]
    return {
        "decode_ms": median_ms(lambda: decode(photo, contract, LIMITS), count, time.perf_counter),
        "infer_ms": median_ms(lambda: model.infer(pixels), count, time.perf_counter),
    }


def median_ms(call: Callable[[], object], count: int, clock: Callable[[], float]) -> float:
    call()
    times = []
    for _ in range(count):
        begun = clock()
        call()
        times.append(clock() - begun)
    return statistics.median(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m service.bare_loop", description=__doc__)
    parser.add_argument("what", choices=("decode", "loop", "latency"))
    parser.add_argument("photo", type=Path)
    parser.add_argument("--onnx", type=Path, help="a package's model.onnx; not for decode")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--intra-op-threads", type=int, default=1)
    parser.add_argument("--as-served", action="store_true", help="threads divided among calls as the service does")
    parser.add_argument("--size", type=int, default=224, help="height and width to decode to, pixels")
    given = parser.parse_args()
    photo = given.photo.read_bytes()
    if given.what == "decode":
        found = time_decode(photo, given.count, given.size)
    else:
        model = Model(given.onnx, given.intra_op_threads)
        infer = model.infer if given.as_served else model.engine.run
        answer(model, photo, 5, infer)  # warm
        found = (
            loop(model, photo, given.count, given.threads, infer)
            if given.what == "loop"
            else time_stages(model, photo, given.count)
        )
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
