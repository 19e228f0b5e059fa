"""Pillow's time for a photo, as it is commonly written: open, convert, bicubic resize to a square array.

`python -m perf.bench_decode PHOTO --count N --size S` prints JSON. It is a program of its own because the service
changes how its process keeps freed memory, which would make Pillow faster too.
"""

import argparse
import io
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--size", type=int, default=224)
    given = parser.parse_args()
    photo = given.photo.read_bytes()
    times = []
    for _ in range(given.count + 1):
        begun = time.thread_time()
        np.asarray(
            Image.open(io.BytesIO(photo)).convert("RGB").resize((given.size, given.size), Image.Resampling.BICUBIC)
        )
        times.append(time.thread_time() - begun)
    json.dump({"decode_ms": statistics.median(times[1:]) * 1e3}, sys.stdout)


if __name__ == "__main__":
    main()
