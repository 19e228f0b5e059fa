"""How a command ends before it is done: by a signal, in one line."""

import signal
import sys

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


def fail(message: str, status: int = 2) -> int:
    """One line on standard error."""
    print(f"convert: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return status
