"""The documentation site builds without warnings and without network access, and its commands exist."""

import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from click import Group
from sphinx.cmd.build import build_main

import fedthorax
from federation.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LOADED = re.compile(r"""<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//|<link[^>]*\shref="(?:https?:)?//""")
# In a code block (after any prompt, with any path to the program), or as inline code.
COMMAND = re.compile(
    r"(?:^    (?:.*[ /])?|`)fedthorax ((?:demo|phantom|import|node|server|study|score|serve|clinic)\b[^`#|>&;]*)"
)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the build opens a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # raised between MyST and Sphinx
@pytest.mark.usefixtures("no_network")
def test_site_builds_without_warnings_and_loads_no_external_resources(tmp_path: Path) -> None:
    """Sphinx warns about broken links and about pages that are not in the navigation.

    The Python API page has an entry for each public name and for no other name.
    """
    doctrees, site = tmp_path / "doctrees", tmp_path / "site"
    strict = ["--quiet", "--nitpicky", "--fail-on-warning", "--keep-going"]
    assert build_main([*strict, "-d", str(doctrees), str(ROOT / "docs"), str(site)]) == 0
    built = sorted(site.rglob("*.html"))
    assert len(built) >= len(PAGES) - 1
    assert [page.name for page in built if LOADED.search(page.read_text())] == []
    entries = re.findall(r'id="fedthorax\.([\w.]+)"', (site / "python-api.html").read_text())
    assert sorted(name for name in entries if "." not in name) == sorted(fedthorax.__all__)
    assert [name for name in entries if re.search(r"(^|\.)_", name)] == []


def commands(page: Path) -> Iterator[list[str]]:
    for line in page.read_text().replace("\\\n", " ").splitlines():
        for found in COMMAND.finditer(line):
            yield shlex.split(found[1])


def exists(words: list[str]) -> bool:
    """Return whether the words are an existing command with existing options."""
    command = typer.main.get_command(app)
    while isinstance(command, Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    return not isinstance(command, Group) and used <= options


def test_commands_on_the_pages_exist() -> None:
    found = [(page.name, words) for page in PAGES for words in commands(page)]
    assert len(found) > 100
    assert [(page, " ".join(words)) for page, words in found if not exists(words)] == []
