import os
import signal
import threading

import pytest

from perf.interrupts import held


def test_signals_wait_until_the_block_has_ended_and_then_count_once() -> None:
    done = list[int]()
    with pytest.raises(KeyboardInterrupt), held():
        done.extend(os.kill(os.getpid(), number) or number for number in (signal.SIGINT, signal.SIGINT))
    assert done == [signal.SIGINT] * 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_get_no_signals_and_hold_none() -> None:
    ran = list[object]()

    def inside() -> None:
        with held():
            ran.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert ran == [signal.default_int_handler]
