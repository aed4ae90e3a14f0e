"""Settings of Sphinx: builds the pages of docs/ as a site. `make docs` writes it to build/docs, without a network."""

import re

from sphinx.application import Sphinx

project = "fedthorax"
author = "the fedthorax authors"
copyright = f"{author}. Apache-2.0"

extensions = ["myst_parser"]
exclude_patterns = ["systemd", "nginx"]

# Headings get anchors, so that a page can link to a section of another: page.md#section.
myst_heading_anchors = 3

html_theme = "furo"
html_title = "fedthorax"
html_copy_source = False
html_show_sphinx = False

RESULT = re.compile(r"\]\((?:\.\./)+benchmarks/results/(\w+)\.md\)")


def link_results(app: Sphinx, docname: str, source: list[str]) -> None:
    """Point links to a file of benchmarks/results to its section of measured.md, which includes all of them.

    On GitHub the same link leads to the file itself, so the pages keep it.
    """
    source[0] = RESULT.sub(r"](/measured.md#\1)", source[0])


def setup(app: Sphinx) -> None:
    app.connect("source-read", link_results)
