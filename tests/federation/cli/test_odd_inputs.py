"""Inputs that a tired user gives to commands: a folder or file of another kind, a text of another encoding."""

import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from federation.cli import main
from federation.cli.main import app
from federation.server.start import init_server
from models.network import build_network
from models.network_settings import NetworkSettings
from models.refusal import Refusal
from models.release import save_release
from pipeline.site.folder import Site, init_site, site_settings
from tests.helpers.descriptions import description
from tests.helpers.dicom_files import write_series
from tests.pipeline.scoring.test_score import SPACING_MM, chest

NAME = "Müller^Anna"
SQLITE = b"SQLite format 3\0"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return init_site(tmp_path / "site", site_settings(None, name="north")).folder


def refusal(*arguments: str | Path) -> Refusal:
    """Run a command, which must be refused with a code."""
    refused = CliRunner().invoke(app, [*map(str, arguments)]).exception
    assert isinstance(refused, Refusal), refused
    return refused


@pytest.mark.parametrize("command", [("status",), ("check",), ("ingest",), ("join", "x")])
def test_link_to_itself_is_reported_as_an_error_of_the_system(
    tmp_path: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site").symlink_to("site")
    monkeypatch.setattr(sys, "argv", ["fedthorax", "node", command[0], str(tmp_path / "site"), *command[1:]])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("E_SYSTEM: ")


@pytest.mark.parametrize("command", [("node", "init"), ("server", "init"), ("clinic", "init")])
def test_file_in_place_of_a_folder_is_named(
    tmp_path: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["fedthorax", *command, str(tmp_path / "file")])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "E_PATH: " in said and str(tmp_path / "file") in said and "free space" not in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", [("enrol", "north"), ("revoke", "north")])
@pytest.mark.parametrize("content", [b"{}" * 600, SQLITE + bytes(5000), None])
def test_damaged_database_of_a_server_is_reported(
    tmp_path: Path,
    command: tuple[str, str],
    content: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    init_server(tmp_path / "server")
    roster = tmp_path / "server" / "sites.sqlite"
    roster.mkdir() if content is None else roster.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["fedthorax", "server", command[0], str(tmp_path / "server"), command[1]])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("E_DATABASE: ")


def test_nested_stamp_of_a_folder_is_refused(site: Path) -> None:
    (site / "format.json").write_text("[" * 60_000)
    assert refusal("node", "status", site).code == "E_FORMAT_NEWER"


def test_identifiers_in_another_encoding_are_refused_and_not_shown(site: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{NAME}\n", encoding="latin-1")
    refused = refusal("node", "withdraw", site, "--file", tmp_path / "list")
    assert refused.code == "E_WITHDRAW_FILE"
    assert "Anna" not in f"{refused} {refused.private}"
    assert refused.__cause__ is None and refused.__suppress_context__
    assert not (site / "withdrawn.txt").exists()


def test_settings_in_another_encoding_make_no_site(tmp_path: Path) -> None:
    (tmp_path / "hospital").mkdir()
    (tmp_path / "hospital" / "site.toml").write_text('name = "Zürich"\n', encoding="latin-1")
    assert refusal("node", "init", tmp_path / "site", "--from", tmp_path / "hospital").code == "E_SETTINGS_SYNTAX"
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("server", [None, "new.example:8443"])
@pytest.mark.parametrize("place", ["certificates/study.crt", "{}/study.crt"])  # the second is the given file itself
def test_site_is_made_from_settings_that_have_a_server(tmp_path: Path, server: str | None, place: str) -> None:
    (tmp_path / "hospital").mkdir()
    (tmp_path / "study.crt").write_text("certificate")
    text = re.sub(r"(?m)^(address|ca_certificate) = .*", "", site_settings(None, name="north"))
    tables = f'[server]\naddress = "old.example:1"\nca_certificate = "{place.format(tmp_path)}"'
    (tmp_path / "hospital" / "site.toml").write_text(text.replace("[server]", tables))
    options = ("--server", server) if server else ()
    places = [str(tmp_path / "site"), "--from", str(tmp_path / "hospital"), "--ca", str(tmp_path / "study.crt")]
    made = CliRunner().invoke(app, ["node", "init", *places, *options])
    assert made.exit_code == 0, made.output
    site = Site.open(tmp_path / "site")
    assert site.settings.server.address == (server or "old.example:1")
    assert site.ca_certificate.read_text() == "certificate"


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--name", "Hôpital Nord", "a to z, digits and hyphens"),
        ("--name", 'a"b', "a to z, digits and hyphens"),
        ("--server", "study.example.org", "host:port"),
    ],
)
def test_wrong_option_makes_no_site_and_its_rule_is_named(tmp_path: Path, option: str, value: str, rule: str) -> None:
    wrong = CliRunner().invoke(app, ["node", "init", str(tmp_path / "site"), option, value])
    assert wrong.exit_code == 2
    said = " ".join(wrong.output.replace("│", " ").split())
    assert option in said and rule in said
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    "command", [("check",), ("ingest",), ("status",), ("join", "x"), ("start",), ("find", "x"), ("backup", "copy")]
)
def test_folder_of_a_hospital_is_not_taken_for_its_site(tmp_path: Path, command: tuple[str, ...]) -> None:
    """As `phantom` writes it. Nothing in it changes."""
    (tmp_path / "site.toml").write_text(site_settings(None, name="north"))
    refused = refusal("node", command[0], tmp_path, *command[1:])
    assert refused.code == "E_SITE_NOT_MADE" and "node init SITE_DIR --from" in refused.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["site.toml"]


def test_missing_lung_mask_is_named_once(tmp_path: Path) -> None:
    save_release(tmp_path / "model", build_network(NetworkSettings(), seed=3), description())
    write_series(tmp_path / "scan", chest(), spacing_mm=SPACING_MM)
    mask = tmp_path / "mask.nii.gz"
    refused = refusal("score", tmp_path / "scan", "--model", tmp_path / "model", "--lungs", mask)
    assert (refused.code, refused.private) == ("E_MASK_FILE", str(mask))


def test_archive_that_does_not_exist_is_named(tmp_path: Path) -> None:
    refused = refusal("server", "import", tmp_path / "missing.tar", tmp_path / "server")
    assert refused.code == "E_ARCHIVE_READ" and "No such file or directory" in refused.says
    assert refused.private == str(tmp_path / "missing.tar")
    assert not (tmp_path / "server").exists()


@pytest.mark.parametrize("command", ["report", "show", "release", "stop", "follow", "resume"])
def test_folder_of_no_server_is_named_before_its_runs(tmp_path: Path, command: str) -> None:
    refused = refusal("study", command, "trial-1", "--server", tmp_path / "nothere")
    assert refused.code == "E_NO_SERVER"
    assert refusal("study", "compare", "trial-1", "--server", tmp_path / "nothere").code == "E_NO_SERVER"


def test_folder_that_is_no_app_is_not_read(site: Path, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "unreadable.py").touch(mode=0)
    assert refusal("node", "approve", site, tmp_path / "large").code == "E_APP_CONFIG"


def test_folder_of_a_hospital_does_not_become_a_clinic(site: Path) -> None:
    before = sorted(path.name for path in site.iterdir())
    assert refusal("clinic", "token", site, "anna").code == "E_NO_CLINIC"
    assert sorted(path.name for path in site.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("clinic", "token", "x", "anna", "--days", "nan"),
        ("server", "enrol", "x", "y", "--patients", "1" * 20),
        ("phantom", "x", "--seed", "-5"),
    ],
)
def test_number_out_of_range_is_wrong_usage(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2
