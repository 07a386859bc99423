"""The documentation: `sphinx-build -W docs build/docs`. Nothing is loaded from outside.

Equations become MathML while the pages are built, so that no browser needs a script or
a font for them. Pages are Markdown; docstrings are Google's sections with RST in them.
"""

import re

from docutils import nodes
from latex2mathml.converter import convert

import jaxburst

project = "jaxburst"
author = "the jaxburst authors"
version = release = jaxburst.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["notebooks"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures have them
autodoc_default_options = {"members": True, "undoc-members": False}
autodoc_mock_imports = ["torch", "onnx", "nir"]
python_maximum_signature_line_length = 60
napoleon_use_ivar = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"jaxburst {version}"
html_static_path = ["static"]
html_css_files = ["style.css"]
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"


def _mathml(node, display: str) -> str:
    formula = re.sub(r"\\[bB]igg?(?=\\)", "", node.astext())  # brackets grow
    formula = formula.replace(r"\arg\min", r"\operatorname{arg\,min}")
    made = convert(formula, display=display)
    if "\\" in made:
        raise ValueError(f"{node.source}: not understood: {node.astext()}")
    return made


def _inline(translator, node):
    translator.body.append(_mathml(node, "inline"))
    raise nodes.SkipNode


def _block(translator, node):
    formula = _mathml(node, "block")
    translator.body.append(f'<div class="equation">{formula}</div>')
    raise nodes.SkipNode


_CODE = re.compile(r":\w+:`[^`]*`|``[^`]*``|`([^`]+)`")


def _docstring(app, what, name, thing, options, lines):
    """Docstrings write `code`, and set programs apart by indenting them."""
    text = _CODE.sub(lambda m: f"``{m[1]}``" if m[1] else m[0], "\n".join(lines))
    made, last = [], ""
    for line in text.split("\n"):
        starts = line.startswith("    ") and made and not made[-1]
        if starts and not last.startswith((" ", "..")) and not last.endswith("::"):
            made += ["::", ""]
            last = "::"
        made.append(line)
        last = line if line and not line.startswith("    ") else last
    lines[:] = made


def _skip(app, what, name, thing, skip, options):
    """A field of a named tuple is described among the attributes of its class."""
    return skip or str(thing.__doc__).startswith("Alias for field number")


def setup(app):
    app.connect("autodoc-skip-member", _skip)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("autodoc-process-docstring", _docstring, priority=100)  # first
