"""Progress bars with an ETA on standard error: one a stage."""

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm


class Progress:
    """Draws a bar a stage, or nothing where it is `quiet`; `stages` says what each that ended took."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.stages: list[dict[str, str | float]] = []

    @contextmanager
    def stage(self, name: str, ticks: int | Sequence[float]) -> Iterator[Callable[[], None]]:
        """A stage of so many ticks, alike or of these parts of the work; yields the function to call after each."""
        began = time.monotonic()
        forget_peak()
        layout = "{desc:<30.30} {percentage:3.0f} % |{bar:12}| {elapsed} elapsed, {remaining} left"  # 80 columns
        parts = [1.0] * ticks if isinstance(ticks, int) else ticks
        left = iter(parts)
        with tqdm(total=sum(parts), desc=name, bar_format=layout, disable=self.quiet, mininterval=0.5) as bar:

            def tick() -> None:
                bar.update(next(left, 0.0))

            yield tick
        seconds = round(time.monotonic() - began, 1)
        self.stages.append({"stage": name, "seconds": seconds, "peak_memory_mb": peak_memory_mb()})

    def note(self, text: str) -> None:
        """A line between the bars."""
        if not self.quiet:
            tqdm.write(text, file=sys.stderr)


def forget_peak() -> None:
    """Begin a new peak of this process's resident memory, where the kernel can (proc(5), clear_refs)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> int:
    """Peak of this process's resident memory, 10^6 bytes; 0 where the kernel does not say."""
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024 // 10**6
    return 0
