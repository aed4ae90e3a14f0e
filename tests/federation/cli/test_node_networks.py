"""Tests of the commands `fedthorax node networks | approve-network | revoke-network` and `study network`."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from federation.cli.node import app as node
from federation.cli.study import app as study
from federation.protocol.package_files import handed_over
from models.own_packages import installed
from models.refusal import Refusal
from models.settings import with_value
from pipeline.site.folder import Site, init_site, site_settings
from tests.helpers.own_package import CODE, PARTS, write_package


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site without a sandbox, so that the test needs no bubblewrap."""
    made = init_site(tmp_path / "site", site_settings(None, name="hospital-a"))
    settings = made.folder / "site.toml"
    text = with_value(settings.read_text(), "sandbox", "kind", '"none"')
    settings.write_text(with_value(text, "sandbox", "accepted_by", '"a test"'))
    return Site.open(made.folder)


def run(command: str, site: Site, *arguments: str | Path, answer: str = "") -> Result:
    return CliRunner().invoke(node, [command, str(site.folder), *map(str, arguments)], input=answer)


def code(result: Result) -> str:
    assert isinstance(result.exception, Refusal)
    return result.exception.code


@pytest.mark.slow
def test_package_is_shown_approved_listed_and_revoked(site: Site, tmp_path: Path) -> None:
    text = CODE + "\n\nimport socket  # \x1b[2J\n"
    folder = write_package(tmp_path / "received", code=text, parts=PARTS)
    sha256 = installed("my-networks", [folder]).sha256
    said_no = run("approve-network", site, "my-networks", "--from", folder, answer="n\n")
    assert said_no.exit_code == 1
    assert not handed_over(site.folder, sha256).exists()
    shown = run("approve-network", site, "my-networks", "--from", folder, answer="y\n")
    assert shown.exit_code == 0, shown.output
    for part in (
        sha256,
        "class Tiny(nn.Module):",
        "my-networks:tiny_group",
        "no batch norm",
        "def focal(logits, targets, known, gamma=2.0):",
        "loss        focal: sees the model's answers and the labels of training patients",
        "strategy    half_way: combines the hospitals' updates on the server; it does not run here",
        "network: could send data",
    ):
        assert part in shown.stdout
    assert "\x1b" not in shown.stdout
    (listed,) = json.loads(run("networks", site, "--json").stdout)
    assert (listed["sha256"], listed["decided"]) == (sha256, "approved")
    assert listed["brings"] == [
        *("network my-networks:tiny", "network my-networks:tiny_group", "loss my-networks:focal"),
        *("transform my-networks:dimmed", "strategy my-networks:half_way"),
    ]
    assert sha256[:12] in run("networks", site).stdout
    assert "class Tiny" in run("networks", site, "--show", sha256[:8]).stdout
    assert handed_over(site.folder, sha256).is_file()
    assert run("revoke-network", site, sha256[:8]).exit_code == 0
    assert not handed_over(site.folder, sha256).exists()


def test_unknown_package_and_unknown_code_are_refused(site: Site, tmp_path: Path) -> None:
    assert code(run("approve-network", site, "no-networks", "--from", tmp_path)) == "E_NETWORK_PACKAGE"
    assert code(run("approve-network", site, "../my-networks", "--from", tmp_path)) == "E_NETWORK_PACKAGE"
    for name in ("0" * 64, "../../keys", "a"):
        assert code(run("revoke-network", site, name)) == "E_NETWORK_UNKNOWN"


def test_lines_of_a_study_name_the_code(tmp_path: Path) -> None:
    folder = write_package(tmp_path, code="raise SystemExit('this code ran')\n")
    found = CliRunner().invoke(study, ["network", "my-networks:tiny", "--from", str(folder)])
    sha256 = installed("my-networks", [folder]).sha256
    assert found.stdout == f'# in [network]\narchitecture = "my-networks:tiny"\ncode = "{sha256}"\n'
    write_package(tmp_path, networks=(), parts=PARTS)
    sha256 = installed("my-networks", [folder]).sha256
    for name, lines in (
        ("focal", f'# in [training]\nloss = "my-networks:focal"\nloss_code = "{sha256}"\n'),
        ("dimmed", f'# in [training]\ntransform = "my-networks:dimmed"\ntransform_code = "{sha256}"\n'),
        ("half_way", f'# in [strategy]\nname = "my-networks:half_way"\ncode = "{sha256}"\n'),
    ):
        assert CliRunner().invoke(study, ["network", f"my-networks:{name}", "--from", str(folder)]).stdout == lines
    wrong = CliRunner().invoke(study, ["network", "my-networks:other", "--from", str(folder)])
    assert code(wrong) == "E_NETWORK_PACKAGE"
