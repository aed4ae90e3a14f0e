"""A site moves to a new address of its study's server, but not to another server."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.enrolment import invitations as enrolment
from federation.enrolment.certificates import create_node_key
from federation.enrolment.invitations import invite, revoke
from federation.enrolment.join import join, move
from models.refusal import Refusal
from pipeline.site.folder import Site, init_site, site_settings
from tests.e2e.ingress_rig import Rig, open_rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A server's ingress. The fake SuperLink behind it accepts every node."""
    with pytest.MonkeyPatch.context() as patch, open_rig(tmp_path_factory.mktemp("server") / "server") as rig:
        patch.setattr(enrolment, "enrol", lambda folder, public_key, name: None)
        patch.setattr(enrolment, "strike_off", lambda folder, name: None)
        yield rig


def new_site(folder: Path) -> Site:
    site = init_site(folder, site_settings(None, name="my-hospital"))
    create_node_key(site.node_key)
    return site


@pytest.fixture(scope="module")
def joined(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site that has joined. Shared by all tests: do not modify it."""
    site = new_site(tmp_path_factory.mktemp("joined") / "site")
    join(site, invite(rig.folder, "north"))
    return site.folder


@pytest.fixture
def site(joined: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(joined, tmp_path / "site"))


def files(site: Path) -> dict[str, bytes]:
    return {str(p.relative_to(site)): p.read_bytes() for p in site.rglob("*") if p.is_file()}


def refused(site: Path, address: str) -> str:
    with pytest.raises(Refusal) as refusal:
        move(Site.open(site), address)
    return refusal.value.code


def test_site_uses_the_new_address_after_it_has_verified_the_server(rig: Rig, site: Path) -> None:
    settings = site / "site.toml"
    there = f'address = "localhost:{rig.port}"'
    assert there in settings.read_text()
    settings.write_text(settings.read_text().replace(there, 'address = "old.example:8443"  # until March'))
    before = files(site)
    move(Site.open(site), f"127.0.0.1:{rig.port}")
    assert Site.open(site).settings.server.address == f"127.0.0.1:{rig.port}"
    assert "# until March" in settings.read_text()
    after = files(site)
    assert {name for name in after if after[name] != before.get(name)} == {"site.toml"}, "keys and certificates stay"


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("", "E_SERVER_ADDRESS"),
        ("study.example", "E_SERVER_ADDRESS"),
        ("https://study.example:8443", "E_SERVER_ADDRESS"),
        ("study.example:8443/", "E_SERVER_ADDRESS"),
        ('study.example:1"\nca_certificate = "x', "E_SERVER_ADDRESS"),
        ("::1:8443", "E_SERVER_ADDRESS"),
        ("study.example:99999", "E_SERVER_SILENT"),
        ("localhost:1", "E_SERVER_SILENT"),
    ],
)
def test_site_keeps_its_address_if_the_new_one_is_invalid_or_silent(site: Path, address: str, code: str) -> None:
    before = files(site)
    assert refused(site, address) == code
    assert files(site) == before


def test_site_does_not_move_to_the_server_of_another_study(site: Path, tmp_path: Path) -> None:
    before = files(site)
    with open_rig(tmp_path / "other") as other:
        assert refused(site, f"localhost:{other.port}") == "E_SERVER_UNTRUSTED"
    assert files(site) == before


def test_move_of_a_revoked_site_is_refused(rig: Rig, tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    join(site, invite(rig.folder, "out"))
    revoke(rig.folder, "out")
    with pytest.raises(Refusal, match="E_CERTIFICATE_REVOKED"):
        move(Site.open(site.folder), f"127.0.0.1:{rig.port}")


def test_move_of_a_site_that_has_not_joined_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="E_NO_SERVER_SET"):
        move(new_site(tmp_path / "site"), "study.example:8443")
