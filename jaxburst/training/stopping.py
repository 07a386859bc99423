"""Ctrl-C and SIGTERM wait until what was computed is saved."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit, KeyboardInterrupt):
    """Stopped by a signal, with everything saved: a program ends with 130 or 143."""


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[], int]]:
    """Gives a function that returns the signal that came, or 0.

    A second signal does not wait. Outside the main thread, which alone receives
    signals, none is noticed.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def notice(number, _):
        came.append(number)
        restore()

    before = {number: signal.signal(number, notice) for number in SIGNALS}
    try:
        yield lambda: came[0] if came else 0
    finally:
        restore()
    if came:  # too late to be acted upon
        signal.raise_signal(came[0])


def stop(number: int, line: str) -> NoReturn:
    """Says how to go on, and stops as the signal asks."""
    print(line, file=sys.stderr, flush=True)
    if hasattr(sys, "ps1"):  # somebody is at a prompt, and stays there
        raise KeyboardInterrupt(line)
    raise Stopped(128 + number)
