"""The documentation builds as a site, without a warning and without a network, and its commands exist."""

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
# In a block of commands, as any user and from any folder, or in running text.
COMMAND = re.compile(
    r"(?:^    (?:.*[ /])?|`)fedthorax ((?:demo|phantom|import|node|server|study|score|serve|clinic)\b[^`#|>&;]*)"
)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the build opens a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # between MyST and Sphinx
@pytest.mark.usefixtures("no_network")
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """Sphinx warns of links that lead nowhere and of pages outside the navigation.

    The page of the Python API has an entry for each public name and for no other name.
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
    """Whether the words name a command, with options that it has."""
    command = typer.main.get_command(app)
    while isinstance(command, Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    options = {option for parameter in command.params for option in parameter.opts}
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    return not isinstance(command, Group) and used <= options


def test_the_commands_on_the_pages_exist() -> None:
    found = [(page.name, words) for page in PAGES for words in commands(page)]
    assert len(found) > 100
    assert [(page, " ".join(words)) for page, words in found if not exists(words)] == []
