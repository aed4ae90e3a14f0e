"""The command `fedthorax explain`."""

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
