"""Progress of long work: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

Item = TypeVar("Item")

EVERY = 20.0
"""Seconds from line to line where standard error is no terminal."""


def track(
    items: Iterable[Item], description: str, total: float | None = None
) -> Iterator[Item]:
    """Goes through `items` and says on standard error how far it is.

    Args:
      items: what to go through.
      description: what is being done.
      total: number of items, where they do not know it themselves.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    console = Console(stderr=True)
    if console.is_terminal:
        yield from rich_track(
            items, description, total, console=console, transient=True
        )
        return
    start = said = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - said >= EVERY:
            said = now
            of = f" of {total:.0f}" if total else ""
            words = f"{description}: {done}{of} after {now - start:.0f} s"
            print(words, file=sys.stderr, flush=True)
        yield item
