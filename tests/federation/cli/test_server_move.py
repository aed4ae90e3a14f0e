"""Tests of the commands `fedthorax server export | import`."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from federation.cli.server import app
from federation.migration import age_file
from federation.server.start import init_server
from federation.superlink.control import MOVED
from federation.system.process import free_port
from models.refusal import Refusal

PASSPHRASE = "correct horse battery staple"


def run(*arguments: str | Path, answer: str = "") -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], input=answer)


def done(*arguments: str | Path, answer: str = "") -> Result:
    result = run(*arguments, answer=answer)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: str | Path) -> Refusal:
    result = run(*arguments)
    assert isinstance(result.exception, Refusal), result.output
    return result.exception


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(age_file, "WORK_FACTOR", 4)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    init_server(tmp_path / "old", hosts=["old.example"], port=free_port())
    return tmp_path / "old"


def test_export_and_import_print_the_next_steps_and_equal_tables(old: Path, tmp_path: Path) -> None:
    left = done("export", old, tmp_path / "archive.tar")
    assert "contains the private key of the study's authority, not encrypted" in left.stderr
    assert str(old / MOVED) in left.stderr
    came = done("import", tmp_path / "archive.tar", tmp_path / "new", "--host", "new.example", "--port", "9443")
    assert "fedthorax node move SITE_DIR new.example:9443" in came.stderr
    assert [line for line in left.stdout.splitlines() if "SHA-256" in line] == [
        line for line in came.stdout.splitlines() if "SHA-256" in line
    ]
    assert left.stdout == came.stdout, "both commands print equal tables, for comparison"


def test_passphrase_is_requested_twice_and_never_shown(old: Path, tmp_path: Path) -> None:
    left = done("export", old, tmp_path / "sealed", "--seal", "--json", answer=f"{PASSPHRASE}\n{PASSPHRASE}\n")
    assert PASSPHRASE not in left.output
    assert "unsealed" not in left.stderr
    assert json.loads(left.stdout[left.stdout.index("{") :])["contents"]["sites"] == 0
    assert refused("import", tmp_path / "sealed", tmp_path / "new").code == "E_PASSPHRASE"
    (tmp_path / "passphrase").write_text(PASSPHRASE + "\nanother line\n")
    (tmp_path / "passphrase").chmod(0o600)
    done("import", tmp_path / "sealed", tmp_path / "new", "--passphrase-file", tmp_path / "passphrase")


@pytest.mark.parametrize(("content", "mode"), [("", 0o600), ("too short\n", 0o600), (PASSPHRASE, 0o644)])
def test_empty_short_or_readable_passphrase_file_is_refused(old: Path, tmp_path: Path, content: str, mode: int) -> None:
    """In particular, an empty file must not lead to an archive without encryption."""
    (tmp_path / "passphrase").write_text(content)
    (tmp_path / "passphrase").chmod(mode)
    refusal = refused("export", old, tmp_path / "archive", "--passphrase-file", tmp_path / "passphrase")
    assert refusal.code == "E_PASSPHRASE"
    assert not (tmp_path / "archive").exists()
    assert not (old / MOVED).exists()


def test_archive_inside_the_server_folder_is_a_usage_error(old: Path) -> None:
    assert run("export", old, old / "archive.tar").exit_code == 2
    assert not (old / MOVED).exists()
