"""Approval of the releases from which studies may begin at a site: decisions and copied files."""

from pathlib import Path

import pytest

from federation.approval.releases import ReleaseApprovals
from federation.approval.studies import begins_from
from federation.ledger.chain import ledger_file, read_lines
from federation.protocol.release_files import copy_release
from models.network import build_network
from models.network_settings import NetworkSettings
from models.refusal import Refusal
from models.release import load_release, save_release
from pipeline.site.folder import Site
from tests.helpers.descriptions import description

SMALL = NetworkSettings(architecture="resnet10", widen_factor=0.0625)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    save_release(tmp_path / "release", build_network(SMALL, seed=1), description(network=SMALL))
    return tmp_path / "release"


def test_study_may_begin_from_a_release_only_while_it_is_approved(site: Site, release: Path) -> None:
    approvals, sha256 = ReleaseApprovals(site), load_release(release).sha256
    assert not approvals.may_begin(sha256)
    assert approvals.approve(release, by="me", note="signed by the study's office") == sha256
    assert approvals.may_begin(sha256)
    assert load_release(approvals.folder / sha256).sha256 == sha256
    approvals.revoke(sha256, by="me")
    assert not approvals.may_begin(sha256)
    assert not (approvals.folder / sha256).exists()
    assert [decision.decided for decision in approvals.decisions()] == ["revoked"]


def test_decisions_are_recorded_in_the_ledger(site: Site, release: Path) -> None:
    sha256 = ReleaseApprovals(site).approve(release, by="me")
    ReleaseApprovals(site).revoke(sha256, by="me")
    kinds = [line.kind for line in read_lines(ledger_file(site))]
    assert kinds == ["release approval", "release revocation"]


def test_release_copied_without_a_decision_is_not_approved(site: Site, release: Path) -> None:
    sha256 = copy_release(release, ReleaseApprovals(site).folder)
    assert not ReleaseApprovals(site).may_begin(sha256)


def test_approved_release_with_missing_files_is_not_usable(site: Site, release: Path) -> None:
    approvals = ReleaseApprovals(site)
    sha256 = approvals.approve(release, by="me")
    (approvals.folder / sha256 / "model.json").unlink()
    assert not approvals.may_begin(sha256)


@pytest.mark.parametrize("name", ['"../north"', '"ABC"', "3", "null", '["a"]', '"' + "0" * 65 + '"'])
def test_invalid_release_name_is_refused(name: str) -> None:
    with pytest.raises(Refusal, match="E_RUN_CONFIG"):
        begins_from(f'{{"study": {{"begin_from": {name}}}}}')


def test_study_without_a_release_begins_from_its_seed() -> None:
    assert begins_from('{"study": {}}') == begins_from('{"study": {"begin_from": ""}}') == ""
    assert begins_from(f'{{"study": {{"begin_from": "{"a" * 64}"}}}}') == "a" * 64
