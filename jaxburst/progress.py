"""A progress bar for long work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

Item = TypeVar("Item")


def track(
    items: Iterable[Item], description: str, total: float | None = None
) -> Iterator[Item]:
    """Goes through `items` with a bar on standard error, where that is a terminal.

    Args:
      items: what to go through.
      description: what is being done.
      total: number of items, where they do not know it themselves.
    """
    console = Console(stderr=True)
    yield from rich_track(
        items,
        description,
        total or None,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
