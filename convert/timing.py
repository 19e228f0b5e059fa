"""Latency and throughput of a model on this machine, and the plan that follows."""

import asyncio
import io
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.cpu import cores
from service.image import Contract, Limits, decode
from service.model import Engine

CALLS = 100_000  # of one measurement, however short they are; their times are kept
NEAR_BEST = 0.9  # of the best throughput: among such plans the smallest batch wins, then the lowest latency
LARGER = 2  # times the model's input: width and height of the photos that a plan is measured with
ROUNDS = 3
LIMITS = Limits(max_bytes=1 << 24, max_pixels=1 << 26)


@dataclass(frozen=True)
class Timed:
    """One plan as measured; `latency_ms` is that of one image with nothing else running."""

    slots: int
    intra_op_threads: int
    max_batch_size: int
    images_per_s: float
    latency_ms: float


def plans(available: int) -> list[tuple[int, int, int]]:
    """slots, intra-op threads and batch sizes worth measuring on this many cores. As many slots as cores always: slots
    decode too, and one of several cores would wait meanwhile."""
    return [(available, threads, batch) for threads in dict.fromkeys((1, available)) for batch in (1, 2, 4)]


def measure(path: Path, plan: tuple[int, int, int], pixels: NDArray[np.uint8], seconds: float) -> Timed:
    """Run one plan for about `seconds`, or CALLS calls a slot, after a warm-up, on the given images."""
    slots, threads, batch = plan
    engine = Engine(path, threads)
    images, one = np.concatenate([pixels] * (batch // len(pixels) + 1))[:batch], pixels[:1]
    for warm in (images, one, one):
        engine.infer(warm)
    latency = best_of(lambda: engine.infer(one), seconds / 4)
    end = time.perf_counter() + seconds

    def serve(_: int) -> int:
        done = 0
        while time.perf_counter() < end and done < CALLS:
            engine.infer(images)
            done += 1
        return done * batch

    start = time.perf_counter()
    with ThreadPoolExecutor(slots) as pool:
        done = sum(pool.map(serve, range(slots)))
    return Timed(slots, threads, batch, round(done / (time.perf_counter() - start), 2), round(latency * 1e3, 3))


def best_of(call: Callable[[], Any], seconds: float) -> float:
    """Median seconds of a call repeated for about `seconds`, three times at least, CALLS times at most."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def best(timed: Sequence[Timed]) -> Timed:
    """Of the plans near the best throughput that of the smallest batch, which holds the least memory; of several, that
    of the lowest latency."""
    top = max(one.images_per_s for one in timed)
    near = [one for one in timed if one.images_per_s >= NEAR_BEST * top]
    return min(near, key=lambda one: (one.max_batch_size, one.latency_ms))


def plan_grid(path: Path, pixels: NDArray[np.uint8], tick: Callable[[], None], seconds: float = 0.7) -> dict[str, Any]:
    """The `plan` member of report.json: the grid as measured, in turns, and the plan chosen from it."""
    photo, grid = photo_of(pixels[0]), plans(cores())
    engines = {threads: Engine(path, threads) for _, threads, _ in grid}
    latencies: dict[int, list[float]] = {threads: [] for threads in engines}
    rates: list[list[float]] = [[] for _ in grid]
    for _ in range(ROUNDS):
        for threads, engine in engines.items():
            latencies[threads].append(best_of(partial(engine.infer, pixels[:1]), seconds))
        for (slots, threads, batch), found in zip(grid, rates, strict=True):
            work = partial(answer, engines[threads], Contract(*pixels.shape[1:3]), [photo] * batch)
            found.append(batch * asyncio.run(served(work, slots, seconds)))
            tick()
    timed = [
        Timed(*plan, round(float(np.median(found)), 2), round(float(np.median(latencies[plan[1]])) * 1e3, 3))
        for plan, found in zip(grid, rates, strict=True)
    ]
    chosen = best(timed)
    return {
        "cores": cores(),
        "slots": chosen.slots,
        "intra_op_threads": chosen.intra_op_threads,
        "max_batch_size": chosen.max_batch_size,
        "grid": [asdict(one) for one in timed],
    }


def photo_of(pixels: NDArray[np.uint8]) -> bytes:
    """A JPEG of uint8 `[H, W, 3]`, enlarged."""
    height, width = pixels.shape[:2]
    file = io.BytesIO()
    Image.fromarray(pixels).resize((LARGER * width, LARGER * height)).save(file, "JPEG")
    return file.getvalue()


def answer(engine: Engine, contract: Contract, photos: Sequence[bytes]) -> None:
    """What a slot does with a batch."""
    engine.infer(np.stack([decode(photo, contract, LIMITS) for photo in photos]))


async def served(work: Callable[[], Any], slots: int, seconds: float) -> float:
    """Calls a second that as many threads as slots make, each called from an event loop and answering to it, as the
    service's do: the fewer the calls, the fewer turns."""
    loop, start = asyncio.get_running_loop(), time.perf_counter()

    async def slot() -> int:
        done = 0
        while time.perf_counter() < start + seconds and done < CALLS:
            await loop.run_in_executor(pool, work)
            done += 1
        return done

    with ThreadPoolExecutor(slots) as pool:
        return sum(await asyncio.gather(*(slot() for _ in range(slots)))) / (time.perf_counter() - start)


def beside(paths: Sequence[Path], plan: dict[str, Any], pixels: NDArray[np.uint8], rounds: int = 3) -> list[Timed]:
    """Models under the same plan in turns, the median of the rounds each: fit for ratios on a noisy machine."""
    shape = (plan["slots"], plan["intra_op_threads"], plan["max_batch_size"])
    runs = [[measure(path, shape, pixels, 1.5) for path in paths] for _ in range(rounds)]
    found = []
    for turns in zip(*runs, strict=True):
        rate = float(np.median([turn.images_per_s for turn in turns]))
        found.append(Timed(*shape, rate, float(np.median([turn.latency_ms for turn in turns]))))
    return found


def cpu_features() -> list[str]:
    """The instruction sets of this CPU that decide which int8 kernels run."""
    known = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    return [name for name in known if name in flags]


def machine() -> dict[str, Any]:
    """What the timings were taken on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {"cpu": model, "instructions": cpu_features(), "cores": cores(), "kernel": os.uname().release.split("-")[0]}
