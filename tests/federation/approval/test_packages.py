"""A hospital's decisions about packages of networks: only approved, unchanged bytes pass, by plain names alone."""

import json
from pathlib import Path

import pytest

from federation.approval.packages import PackageApprovals, parts_of
from federation.approval.study_review import review_study
from federation.ledger.chain import ledger_file, read_lines
from federation.protocol.package_files import handed_over, plans_beside, plans_of
from federation.protocol.study_config import Study
from models.network_plan import Plan
from models.own_packages import Kind, Package, installed
from models.refusal import Refusal
from pipeline.site.folder import Site, init_site, site_settings
from tests.helpers.own_package import CODE, PARTS, write_package

PLAN = Plan.model_validate(
    {"features": 8, "tensors": [{"name": "first.weight", "shape": [8, 2, 3, 3, 3], "kind": "weight"}]}
)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init_site(tmp_path / "north", site_settings(None, name="north"))


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return installed("my-networks", [write_package(tmp_path / "packages")])


def study(package: Package, network: str = "tiny", **changes: object) -> str:
    table = {"architecture": f"{package.name}:{network}", "code": package.sha256, **changes}
    return json.dumps({"study": {"name": "trial"}, "network": table})


def code_of(site: Site, content: str) -> str:
    """The code with which a study is refused; "" if it is accepted."""
    try:
        PackageApprovals(site).check(content)
    except Refusal as refusal:
        return refusal.code
    return ""


def approve(site: Site, package: Package) -> None:
    PackageApprovals(site).approve(package, {"tiny": PLAN}, by="the hospital")


def test_package_needs_an_approval_and_loses_it_by_revocation(site: Site, package: Package) -> None:
    assert code_of(site, study(package)) == "E_NETWORK_REFUSED"
    approve(site, package)
    assert code_of(site, study(package)) == ""
    assert handed_over(site.folder, package.sha256).read_bytes() == package.content
    PackageApprovals(site).revoke(package.sha256, by="the hospital")
    assert code_of(site, study(package)) == "E_NETWORK_REFUSED"
    assert not handed_over(site.folder, package.sha256).exists()
    kinds = [line.kind for line in read_lines(ledger_file(site))]
    assert kinds == ["network approval", "network revocation"]


def test_study_of_the_release_needs_none(site: Site) -> None:
    assert code_of(site, '{"study": {}, "network": {"architecture": "resnet18"}}') == ""
    assert code_of(site, '{"study": {}}') == ""


def test_another_code_another_package_and_another_network_are_refused(
    site: Site, package: Package, tmp_path: Path
) -> None:
    approve(site, package)
    changed = installed("my-networks", [write_package(tmp_path / "changed", code=CODE + "\n# one more line\n")])
    assert code_of(site, study(changed)) == "E_NETWORK_REFUSED"
    assert code_of(site, study(package, "unknown")) == "E_NETWORK_REFUSED"
    assert code_of(site, study(package, architecture="other-networks:tiny")) == "E_NETWORK_REFUSED"


@pytest.mark.parametrize("content", [b"", b"{}", None], ids=["empty", "other", "deleted"])
def test_bytes_that_changed_after_the_approval_are_refused(site: Site, package: Package, content: bytes | None) -> None:
    approve(site, package)
    kept = site.folder / "networks" / f"{package.sha256}.json"
    kept.unlink()
    if content is not None:
        kept.write_bytes(content)
    assert code_of(site, study(package)) == "E_NETWORK_CHANGED"


@pytest.mark.parametrize(
    "table",
    [
        {"architecture": "../../keys:tiny", "code": "0" * 64},
        {"architecture": "my-networks:../tiny", "code": "0" * 64},
        {"architecture": "my-networks:tiny", "code": "../" + "0" * 61},
        {"architecture": "my-networks:tiny", "code": "0" * 64 + "\n"},
        {"architecture": "my-networks:tiny", "code": ["0" * 64]},
        {"architecture": "my-networks:tiny"},
        {"architecture": ["my-networks:tiny"], "code": ""},
        {"architecture": "resnet18", "code": "0" * 64},
        {"architecture": "my-networks:tiny\n", "code": "0" * 64},
        [],
    ],
    ids=str,
)
def test_names_with_path_tricks_are_refused_before_they_are_used(site: Site, table: object) -> None:
    assert code_of(site, json.dumps({"study": {}, "network": table})) == "E_RUN_CONFIG"


def test_parts_of_a_study_are_read() -> None:
    named = '{"study": {}, "network": {"architecture": "my-networks:tiny", "code": "' + "a" * 64 + '"}}'
    assert parts_of(named) == [("network", "my-networks:tiny", "a" * 64)]


def test_damaged_package_is_not_handed_over(site: Site, package: Package) -> None:
    approve(site, package)
    for path in (handed_over(site.folder, package.sha256), plans_beside(handed_over(site.folder, package.sha256))):
        path.unlink()
    PackageApprovals(site).hand_over()
    assert plans_of(plans_beside(handed_over(site.folder, package.sha256)).read_bytes()) == {"tiny": PLAN}
    (site.folder / "networks" / f"{package.sha256}.json").write_bytes(b"{}")
    handed_over(site.folder, package.sha256).unlink()
    PackageApprovals(site).hand_over()
    assert not handed_over(site.folder, package.sha256).exists()


@pytest.mark.parametrize("kind", ["loss", "transform"])
def test_loss_and_transform_need_the_approval_too_and_a_strategy_does_not(
    site: Site, tmp_path: Path, kind: Kind
) -> None:
    package = installed("my-parts", [write_package(tmp_path, "my-parts", networks=(), parts=PARTS)])
    name = {"loss": "focal", "transform": "dimmed"}[kind]

    def named(name: str, code: str = package.sha256) -> str:
        return json.dumps({"study": {}, "training": {kind: f"my-parts:{name}", f"{kind}_code": code}})

    assert code_of(site, named(name)) == "E_NETWORK_REFUSED"
    PackageApprovals(site).approve(package, {}, by="the hospital")
    assert code_of(site, named(name)) == ""
    assert code_of(site, named("half_way")) == "E_NETWORK_REFUSED", "a part of another kind"
    assert code_of(site, named(name, "1" * 64)) == "E_NETWORK_REFUSED"
    assert code_of(site, named("../" + name)) == code_of(site, named(name, "../" + "0" * 61)) == "E_RUN_CONFIG"
    PackageApprovals(site).revoke(package.sha256, by="the hospital")
    assert code_of(site, named(name)) == "E_NETWORK_REFUSED"
    strategy = {"name": "my-parts:half_way", "code": package.sha256}
    assert code_of(site, json.dumps({"study": {}, "strategy": strategy})) == ""


def test_review_says_what_each_part_does(package: Package) -> None:
    code = "0" * 64
    named = {"loss": "my-parts:focal", "loss_code": code, "transform": "my-parts:dimmed", "transform_code": code}
    trial = Study.model_validate(
        {
            "study": {"name": "trial", "rounds": 2, "sites": 2, "quorum": 2},
            "network": {"architecture": "my-networks:tiny", "code": package.sha256},
            "training": named,
            "strategy": {"name": "my-parts:half_way", "code": code},
        }
    )
    review = review_study(trial, code, ())
    said = [text for text in review.weakens if "is code of a package" in text]
    assert [text.split()[1] for text in said] == ["network", "loss", "transform", "strategy"]
    assert ["somebody must have read it" in text for text in said] == [True, True, True, False]
    assert ("training", "loss_code", code) in review.settings
