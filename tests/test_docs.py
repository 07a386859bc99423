"""The documentation is true: every page runs, and prints what it says."""

import re
import sys
from pathlib import Path

import jax
import pytest

DOCS = Path(__file__).parent.parent / "docs"
sys.path.insert(0, str(DOCS))

import pages  # noqa: E402

OPTIMISED = True
PAGES = [path for path in sorted(DOCS.glob("*.md")) if any(pages.blocks(path))]


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_page_runs_and_prints_what_it_says(path, tmp_path, monkeypatch):
    for package in pages.NEEDS.get(path.name, ()):
        pytest.importorskip(package)
    pages.prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    with jax.numpy_rank_promotion("allow"):  # as users have it
        wrong = pages.execute(path)
    assert not wrong, "\n".join(wrong)
    drawn = {file.name for file in tmp_path.iterdir()}
    assert drawn.issuperset(pages.images(path))


def test_links_lead_somewhere():
    root, broken, seen = DOCS.parent, [], 0
    for path in [*root.glob("*.md"), *DOCS.rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
            if not link.startswith(("http", "mailto")):
                seen += 1
                if not (path.parent / link).exists():
                    broken.append(f"{path.name}: {link}")
    assert seen > 30 and not broken
