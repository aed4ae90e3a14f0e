"""The manual page fedthorax(1)."""

import shutil
import subprocess
from pathlib import Path

import click
import pytest
import typer

from federation.cli.main import app
from federation.cli.man_page import man_page


def page() -> str:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    return man_page(group, "1.2.3", 86400)


def test_page_has_every_command_and_option() -> None:
    text = page()
    assert text.startswith('.TH FEDTHORAX 1 "1970-01-02" "fedthorax 1.2.3"')
    for words in (
        r"fedthorax node withdraw SITE_DIR",
        r".B \-\-file FILE",
        "fedthorax study run",
        "fedthorax serve",
        r"fedthorax server enrol",
    ):
        assert words in text
    assert "[bold" not in text and "`" not in text
    assert not [line for line in text.splitlines() if line.startswith("'")]  # it would be a request of roff


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_page_is_valid(tmp_path: Path) -> None:
    (tmp_path / "fedthorax.1").write_text(page())
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", tmp_path / "fedthorax.1"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
