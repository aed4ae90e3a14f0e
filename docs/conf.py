"""Settings of Sphinx: builds the pages of docs/ as a site. `make docs` writes it to build/docs, without a network."""

import re

from numpydoc.xref import DEFAULT_LINKS
from sphinx.application import Sphinx

import fedthorax

project = "fedthorax"
author = "the fedthorax authors"
copyright = f"{author}. Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
exclude_patterns = ["systemd", "nginx"]

# Headings get anchors, so that a page can link to a section of another: page.md#section.
myst_heading_anchors = 3

# docs/python-api.md is made from the docstrings of `fedthorax`, whose parameters say their types.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
add_module_names = False
python_maximum_signature_line_length = 88
numpydoc_show_class_members = False
# Types link to names of `fedthorax`. numpydoc's own links lead to other sites; resolving them would need a network.
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"
numpydoc_xref_aliases = {word: word for word in DEFAULT_LINKS} | {
    name: f"fedthorax.{name}" for name in fedthorax.__all__
}

html_theme = "furo"
html_title = "fedthorax"
html_copy_source = False
html_show_sphinx = False

RESULT = re.compile(r"\]\((?:\.\./)+benchmarks/results/(\w+)\.md\)")
NAME = re.compile(r"(?<![`:])`([^`]+)`(?!`)")  # a name in a docstring


def link_results(app: Sphinx, docname: str, source: list[str]) -> None:
    """Point links to a file of benchmarks/results to its section of measured.md, which includes all of them.

    On GitHub the same link leads to the file itself, so the pages keep it.
    """
    source[0] = RESULT.sub(r"](/measured.md#\1)", source[0])


def link_names(_app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Make links of the names of `fedthorax` in a docstring, and code of all other names."""
    lines[:] = [NAME.sub(_link, line) for line in lines]


def _link(found: re.Match[str]) -> str:
    name = found[1]
    return f":py:obj:`~fedthorax.{name}`" if name in fedthorax.__all__ else f"``{name}``"


def setup(app: Sphinx) -> None:
    app.connect("source-read", link_results)
    app.connect("autodoc-process-docstring", link_names, priority=400)  # before numpydoc
