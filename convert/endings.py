"""How a command ends before it is done: by a signal, in one line."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = "interrupted: nothing was written"


def catch() -> None:
    """Make the signals that end a program KeyboardInterrupts, but those ignored already, as a shell starts what runs in
    the background."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupted)


def interrupted(*_: object) -> None:
    """The first signal cleans up, further ones do not disturb that."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore these signals, for what is over at once."""
    if threading.current_thread() is not threading.main_thread():  # where no signal is handled
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fail(message: str, status: int = 2) -> int:
    """One line on standard error."""
    print(f"convert: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return status
