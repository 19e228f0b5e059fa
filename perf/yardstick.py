"""The machine's speed at a moment: the CPU time of a fixed piece of work.

Virtual machines share their host's cores, caches and clock with others: the same request may cost half as much CPU time
again a minute later. A little work that never changes, timed beside every load, says how much of a difference between
two loads is the machine's.
"""

import time

import numpy as np

ROUNDS = 60
_ENTRIES = np.linspace(-1, 1, 128 * 128, dtype=np.float32).reshape(128, 128)  # 64 KB: fits a core's own cache
_RESULT = np.empty_like(_ENTRIES)


def yardstick_ms() -> float:
    """CPU milliseconds of this thread for the fixed work; about 2 on a server of 2020."""
    began = time.thread_time_ns()
    for _ in range(ROUNDS):
        np.multiply(_ENTRIES, _ENTRIES, out=_RESULT)
        np.add(_RESULT, _ENTRIES, out=_RESULT)
        np.maximum(_RESULT, 0, out=_RESULT)
    return (time.thread_time_ns() - began) / 1e6
