"""The machine's speed at a moment: the CPU time of a fixed piece of work.

Virtual machines share their host's cores, caches and clock with others: the same request may cost half as much CPU time
again a minute later. A little work that never changes, timed beside every load, says how much of a difference between
two loads is the machine's. Of seven kinds of work tried for two minutes on such a machine, the time of int8 inference
(which varied by 12 %) followed that of zlib most closely: their ratio varied by 3 %.
"""

import random
import time
import zlib

_WORK = bytes(random.Random(0).choices(range(40), k=60_000))  # noqa: S311  the same every time


def yardstick_ms() -> float:
    """CPU milliseconds of this thread for the fixed work; about 2 on a server of 2020.

    It is done twice and timed once: what this process did before, and so what its core's cache holds, makes 8 %.
    """
    zlib.compress(_WORK, 6)
    began = time.thread_time_ns()
    zlib.compress(_WORK, 6)
    return (time.thread_time_ns() - began) / 1e6
