"""Runs the Python of the documentation: every page is a program.

    python docs/pages.py            # runs all, renews docs/images and docs/notebooks

The blocks of a page run one after the other in one namespace. Where a block of text
follows one of Python, it is what was printed. A picture that a page shows is one that
its Python wrote.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).parent
NOTEBOOKS = ("quickstart.md", "your-network.md")
NEEDS = {"pytorch-onnx.md": ("torch", "onnx")}

_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.M | re.S)
_IMAGE = re.compile(r"!\[[^]]*\]\(images/([^)]+)\)")


def blocks(path: Path) -> Iterator[tuple[int, str, str | None]]:
    """The line of each block of Python, its text, and what it shall print."""
    text = path.read_text()
    for found in _BLOCK.finditer(text):
        yield text[: found.start()].count("\n") + 2, found[1], found[2]


def execute(path: Path) -> list[str]:
    """Runs a page where we are; returns where what was printed is not what it says."""
    names, wrong = {"__name__": "__main__"}, []
    for line, code, expected in blocks(path):
        printed = io.StringIO()
        program = compile("\n" * (line - 1) + code, path.name, "exec")
        with contextlib.redirect_stdout(printed):
            exec(program, names)
        if expected is not None and printed.getvalue() != expected:
            wrong.append(
                f"{path.name}, line {line}: expected\n{expected}\nprinted\n"
                f"{printed.getvalue()}"
            )
    return wrong


def prepare(folder: Path) -> None:
    """Lets a page that runs in a folder read the records of experiments."""
    (folder / "results").symlink_to(DOCS.parent / "results")


def images(path: Path) -> list[str]:
    """The pictures that a page shows."""
    return _IMAGE.findall(path.read_text())


def notebook(path: Path, target: Path) -> None:
    """The page as a notebook, executed."""
    import nbformat
    from nbclient import NotebookClient

    made, text, end = nbformat.v4.new_notebook(), path.read_text(), 0
    text = _IMAGE.sub("", text)
    for found in _BLOCK.finditer(text):
        between = text[end : found.start()].strip()
        if between:
            made.cells.append(nbformat.v4.new_markdown_cell(between))
        made.cells.append(nbformat.v4.new_code_cell(found[1].rstrip()))
        end = found.end()
    made.cells.append(nbformat.v4.new_markdown_cell(text[end:].strip()))
    os.environ.pop("MPLBACKEND", None)  # notebooks show what is drawn
    for number, cell in enumerate(made.cells):
        cell.id = f"{path.stem}-{number}"
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        NotebookClient(made, resources={"metadata": {"path": folder}}).execute()
    for cell in made.cells:
        cell.metadata.clear()  # the time it took
    made.metadata.pop("widgets", None)
    nbformat.write(made, target)


def main(names: list[str]) -> None:
    for path in sorted(DOCS.glob("*.md")):
        os.environ["MPLBACKEND"] = "agg"
        if names and path.name not in names or not any(blocks(path)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder))
            with contextlib.chdir(folder):
                wrong = execute(path)
            for name in images(path):
                shutil.copy(Path(folder, name), DOCS / "images" / name)
        print(f"{path.name}: {'as it says' if not wrong else ''}", *wrong, sep="\n")
        if path.name in NOTEBOOKS:
            notebook(path, DOCS / "notebooks" / f"{path.stem}.ipynb")


if __name__ == "__main__":
    main(sys.argv[1:])
