"""What `node check` and `node status` say about masked rounds."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.approval import peer_checks
from federation.approval.peers import PeerApprovals, identity_file
from federation.node.start import node_status
from federation.secure_aggregation import store
from federation.secure_aggregation.keys import Identity
from federation.secure_aggregation.roster import Member, Roster
from federation.secure_aggregation.store import witness_folder
from pipeline.site.folder import Site, init_site, site_settings
from pipeline.system.check_line import Line


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = init_site(tmp_path / "site", site_settings(None, name="north"))
    yield site
    shutil.rmtree(witness_folder(site.folder), ignore_errors=True)


def requiring(site: Site) -> Site:
    path = site.folder / "site.toml"
    path.write_text(path.read_text().replace("require_secure_aggregation = false", "require_secure_aggregation = true"))
    return Site.open(site.folder)


def approve(site: Site, others: int = 2) -> Roster:
    keys = {f"other-{number}": Identity.kept(site.folder / f"other-{number}").public for number in range(others)}
    keys["north"] = Identity.kept(identity_file(site)).public
    roster = Roster(members=tuple(Member(name=name, key=keys[name]) for name in sorted(keys)))
    PeerApprovals(site).approve(roster, by="a test")
    return roster


def found(site: Site) -> dict[str, Line]:
    return {line.name: line for line in peer_checks.lines(site)}


def code(line: Line) -> str:
    return line.says.split(":")[0]


def test_site_without_masked_studies_has_one_line(site: Site) -> None:
    (line,) = peer_checks.lines(site)
    assert line.status == "skip"
    assert not identity_file(site).exists(), "a check makes no key"


def test_approved_list_is_shown_with_its_size_and_code(site: Site) -> None:
    roster = approve(site)
    lines = found(site)
    assert {line.status for line in lines.values()} == {"ok"}
    shown = lines["list of hospitals"]
    assert shown.detail == f"3 hospitals; code {roster.code}"
    assert roster.code not in shown.says, "the page that may be mailed shows no numbers"
    assert node_status(site)["masked_rounds"] == [f"approved: 3 hospitals; code {roster.code}"]


def test_site_that_requires_masks_without_a_list_is_warned(site: Site) -> None:
    lines = found(requiring(site))
    assert {name: code(line) for name, line in lines.items() if line.status == "warn"} == {
        "list of hospitals": "W_SECAGG_NO_LIST",
        "key of the gateway": "W_SECAGG_NO_KEY",
    }
    assert node_status(requiring(site))["masked_rounds"][0].startswith("W_SECAGG_NO_LIST")


def test_revoked_list_counts_as_none(site: Site) -> None:
    PeerApprovals(site).revoke(approve(site).digest, by="a test")
    assert [line.status for line in peer_checks.lines(site)] == ["skip"]
    assert code(found(requiring(site))["list of hospitals"]) == "W_SECAGG_NO_LIST"


def test_missing_open_and_damaged_keys(site: Site) -> None:
    approve(site)
    key = identity_file(site)
    key.chmod(0o640)
    assert code(found(site)["key of the gateway"]) == "W_SECAGG_KEY_OPEN"
    assert any("W_SECAGG_KEY_OPEN" in text for text in node_status(site)["masked_rounds"])
    key.write_bytes(b"short")
    line = found(site)["key of the gateway"]
    assert (line.status, code(line)) == ("fail", "E_SECAGG_IDENTITY")
    key.unlink()
    assert code(found(site)["key of the gateway"]) == "W_SECAGG_NO_KEY"
    Identity.kept(key)  # a new one, which is not on the list
    line = found(site)["list of hospitals"]
    assert (line.status, code(line)) == ("fail", "E_SECAGG_MEMBER")


def test_list_that_is_too_small_for_the_site(site: Site) -> None:
    approve(site, others=1)
    line = found(site)["list of hospitals"]
    assert (line.status, code(line)) == ("fail", "E_SECAGG_ROSTER_SMALL")


def test_keys_of_a_round_outside_memory_are_a_warning(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    approve(site)
    monkeypatch.setattr(store, "MEMORY", tmp_path / "not there")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(store.tempfile, "tempdir", None)
    line = found(site)["keys of a round"]
    assert (line.status, code(line)) == ("warn", "W_SECAGG_NO_MEMORY")


def test_folder_of_the_keys_that_others_can_read_fails(site: Site) -> None:
    approve(site)
    folder = witness_folder(site.folder)
    folder.mkdir(mode=0o700)
    folder.chmod(0o755)
    line = found(site)["keys of a round"]
    assert (line.status, code(line)) == ("fail", "E_SECAGG_LOST")
