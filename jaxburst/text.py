"""Tables as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def aligned(rows: Iterable[Sequence], left: int = 1) -> str:
    """Rows of cells, the first columns to the left and the others to the right.

    Example:
      >>> print(aligned([("name", "T"), ("relu0", 12)]))
      name    T
      relu0  12
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: list[str]) -> str:
        pairs = enumerate(zip(row, widths, strict=True))
        return "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in pairs
        ).rstrip()

    return "\n".join(map(line, cells))
