"""Progress bars with an ETA on standard error: one a stage."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


class Progress:
    """Draws a bar a stage, or nothing where it is `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[], None]]:
        """A stage of `total` ticks; yields the function to call after each."""
        layout = "{desc:<38.38} {percentage:3.0f} % |{bar:28}| {elapsed} elapsed, {remaining} left"
        with tqdm(total=total, desc=name, bar_format=layout, disable=self.quiet, mininterval=0.5) as bar:

            def tick() -> None:
                bar.update()

            yield tick

    def note(self, text: str) -> None:
        """A line between the bars."""
        if not self.quiet:
            tqdm.write(text, file=sys.stderr)
