"""One factor at a time: what ablation.py and parts.py share.

Settings are `{factor: {value: setting}}`; the first value of each factor is that of the
setting from which every other changes one thing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import common

import jaxburst as jb


def measured(factors: dict[str, dict], run: common.Kept, one: Callable) -> list[dict]:
    """A row for every value; what several factors have in common is measured once."""
    rows = []
    for factor, settings in factors.items():
        for value, setting in settings.items():
            print(f"{factor}: {value}", flush=True)
            found = run(repr(setting), one, setting)
            rows.append({"factor": factor, "value": value} | found)
    return rows


def table(rows: list[dict], head: list[str], cells: Callable) -> str:
    """Markdown, with the cells of each row; a factor is named once."""
    lines, last = [], None
    for row in rows:
        name = "" if row["factor"] == last else row["factor"]
        lines.append([name, row["value"], *cells(row)])
        last = row["factor"]
    return common.markdown(["factor", "value", *head], lines)


@contextlib.contextmanager
def figure(path: Path, rows: list[dict], columns: int, curve: Callable, *, marker=""):
    """A panel for each factor, of the curve `(x, y)` of each row; the first is black.

    Gives `(figure, axis)` to write on; all panels have the scales of the axis.
    """
    names = list(dict.fromkeys(row["factor"] for row in rows))
    lines = -(-len(names) // columns)
    size = {"figsize": (3.5 * columns, 3 * lines), "squeeze": False}
    size |= {"sharex": True, "sharey": True}
    with common.figure(path, lines, columns, **size) as (whole, axes):
        for axis in axes.flat[len(names) :]:
            axis.remove()
        for name, axis in zip(names, axes.flat, strict=False):
            for i, row in enumerate(row for row in rows if row["factor"] == name):
                look = {"color": jb.plot.COLOURS[(i - 1) % 6]}
                look |= {"ls": "-" if i < 7 else "--"}
                if i == 0:  # wide, so that what lies on it shows
                    look = {"color": "black", "lw": 3}
                axis.plot(*curve(row), marker=marker, label=row["value"], **look)
            axis.set_title(name)
            axis.legend(fontsize=7)
        common.logarithmic(axes[0, 0])
        yield whole, axes[0, 0]
