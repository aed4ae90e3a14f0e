"""Tests of the commands `fedthorax node releases | approve-release | revoke-release`."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from federation.approval.releases import ReleaseApprovals
from federation.cli.node import app as node
from federation.cli.trust import KEYS_VARIABLE
from models.network import build_network
from models.network_settings import NetworkSettings
from models.refusal import Refusal
from models.release import load_release, save_release
from models.signature import new_private_key, public_key, sign
from pipeline.site.folder import Site, init_site, site_settings
from tests.helpers.descriptions import description

SMALL = NetworkSettings(architecture="resnet10", widen_factor=0.0625)


@pytest.fixture(autouse=True)
def nobody_is_trusted_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init_site(tmp_path / "site", site_settings(None, name="hospital-a"))


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A signed release. The public key is in the same parent folder."""
    private = tmp_path / "office.key"
    private.write_bytes(new_private_key())
    (tmp_path / "office.pub").write_bytes(public_key(private))
    made = tmp_path / "release"
    save_release(made, build_network(SMALL, seed=1), description(network=SMALL, study="first\x1b[2J"))
    sign(made, private)
    return made


def run(command: str, site: Site, *arguments: str | Path, answer: str = "") -> Result:
    return CliRunner().invoke(node, [command, str(site.folder), *map(str, arguments)], input=answer)


def approve(site: Site, release: Path, answer: str) -> Result:
    return run("approve-release", site, release, "--trust", release.with_name("office.pub"), answer=answer)


def code(result: Result) -> str:
    assert isinstance(result.exception, Refusal)
    return result.exception.code


@pytest.mark.slow
def test_signed_release_is_shown_approved_listed_and_revoked(site: Site, release: Path) -> None:
    sha256 = load_release(release).sha256
    said_no = approve(site, release, "n\n")
    assert said_no.exit_code == 1
    assert not ReleaseApprovals(site).may_begin(sha256)
    shown = approve(site, release, "y\n")
    assert shown.exit_code == 0
    assert sha256 in shown.stdout
    assert "SYNTHETIC" in shown.stdout
    assert "\x1b" not in shown.stdout
    (listed,) = json.loads(run("releases", site, "--json").stdout)
    assert (listed["sha256"], listed["decided"]) == (sha256, "approved")
    assert sha256[:12] in run("releases", site).stdout
    assert run("revoke-release", site, sha256[:8]).exit_code == 0
    assert not ReleaseApprovals(site).may_begin(sha256)


def test_release_is_not_approved_without_a_trusted_key(site: Site, release: Path) -> None:
    assert code(run("approve-release", site, release, "--yes")) == "E_TRUSTED_KEY"
    assert not ReleaseApprovals(site).decisions()


def test_release_with_other_key_or_without_signature_is_refused(site: Site, release: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    other.write_bytes(new_private_key())
    (tmp_path / "other.pub").write_bytes(public_key(other))
    assert code(run("approve-release", site, release, "--yes", "--trust", tmp_path / "other.pub")) == "E_SIGNATURE"
    (release / "model.sig").unlink()
    assert code(approve(site, release, "y\n")) == "E_NOT_SIGNED"
    assert code(approve(site, tmp_path / "nowhere", "y\n")) == "E_NO_MODEL"


@pytest.mark.parametrize("name", ["0" * 64, "short", "../x", ""])
def test_unknown_release_cannot_be_revoked(site: Site, name: str) -> None:
    assert code(run("revoke-release", site, name)) == "E_RELEASE_UNKNOWN"
