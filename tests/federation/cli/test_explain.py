"""The command `fedthorax explain`."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import configs
from federation.cli.explain import TEMPLATES
from federation.cli.main import app
from federation.system.refusals_page import REASONS


@pytest.mark.parametrize("what", ["E_CLOCK", "e_clock", "E_CLOCK:"])
def test_code_is_explained_with_its_remedy(what: str) -> None:
    done = CliRunner().invoke(app, ["explain", what])
    assert done.exit_code == 0
    assert REASONS["E_CLOCK"].says in done.stdout
    assert REASONS["E_CLOCK"].remedy in done.stdout


def test_unknown_code_is_refused_with_the_nearest_ones() -> None:
    done = CliRunner().invoke(app, ["explain", "E_CLOK"])
    assert done.exit_code == 2
    assert "E_CLOCK" in done.stderr


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_of_a_settings_file_is_shown(name: str) -> None:
    done = CliRunner().invoke(app, ["explain", name])
    assert done.exit_code == 0
    assert done.stdout == Path(configs.__file__).with_name(name).read_text()


def test_each_page_that_a_text_names_can_be_shown() -> None:
    """An installed hospital has no source with docs/."""
    texts = [reason.remedy for reason in REASONS.values()]
    texts.append(Path(configs.__file__).with_name("site.toml").read_text())
    pages = {page for text in texts for page in re.findall(r"docs/[a-z-]+\.md", text)}
    assert len(pages) > 4
    for page in pages:
        done = CliRunner().invoke(app, ["explain", page])
        assert done.exit_code == 0 and done.output.startswith("# ")
    assert "docs/*.md" in (Path(configs.__file__).parents[1] / "pyproject.toml").read_text()
    assert CliRunner().invoke(app, ["explain", "../pyproject.md"]).exit_code == 2
