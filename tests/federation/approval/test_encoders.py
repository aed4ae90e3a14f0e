"""Decisions about frozen encoders: only approved ones may be used, and only by their names."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from federation.approval.encoders import EncoderApprovals, encoder_of
from federation.approval.study_review import weakenings
from federation.protocol.study_config import Study
from models.refusal import Refusal
from pipeline.cohort.store import Cohort
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import Site, init_site, site_settings
from tests.helpers.encoders import head_on, small_encoder


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init_site(tmp_path / "site", site_settings(None, name="hospital-a"))


def asking(name: object) -> str:
    return json.dumps({"network": {"encoder": name}})


def test_only_an_approved_encoder_may_be_used(site: Site, tmp_path: Path) -> None:
    name = small_encoder(tmp_path / "encoder", Preprocessing()).card.sha256
    approvals = EncoderApprovals(site)
    approvals.check("{}")
    with pytest.raises(Refusal, match="E_ENCODER_REFUSED"):
        approvals.check(asking(name))
    assert approvals.approve(tmp_path / "encoder", by="the hospital") == name
    with Cohort(site):
        approvals.check(asking(name))  # of no patient, no features are missing
    assert [path.name for path in approvals.approved()] == [name]
    approvals.revoke(name, by="the hospital")
    with pytest.raises(Refusal, match="E_ENCODER_REFUSED"):
        approvals.check(asking(name))
    assert approvals.approved() == [] and not (approvals.folder / name).exists()


@pytest.mark.parametrize(
    ("learnt_at", "privacy", "is_refused"),
    [
        (("hospital-a", "hospital-b"), {"noise_multiplier": 1.5}, True),
        (("hospital-a", "hospital-b"), None, False),
        (("hospital-b",), {"noise_multiplier": 1.5}, False),
        ((), {"noise_multiplier": 1.5}, False),
    ],
)
def test_private_study_is_refused_if_its_encoder_learnt_here(
    learnt_at: tuple[str, ...], privacy: object, is_refused: bool, site: Site, tmp_path: Path
) -> None:
    encoder = small_encoder(tmp_path / "encoder", Preprocessing(), learnt_at=learnt_at)
    approvals = EncoderApprovals(site)
    approvals.approve(tmp_path / "encoder", by="the hospital")
    study = json.dumps({"network": {"encoder": encoder.card.sha256}, "privacy": privacy})
    with Cohort(site):
        pass
    with pytest.raises(Refusal, match="E_ENCODER_LEARNT") if is_refused else nullcontext():
        approvals.check(study)


@pytest.mark.parametrize("name", ["../../keys", "A" * 64, "0" * 63, 7, None, ["0" * 64]])
def test_name_that_is_no_hash_is_refused(name: object) -> None:
    with pytest.raises(Refusal, match="E_RUN_CONFIG"):
        encoder_of(asking(name))


def test_review_says_what_an_encoder_can_do(tmp_path: Path) -> None:
    encoder = small_encoder(tmp_path / "encoder", Preprocessing())
    tables = {"study": {"name": "heads", "rounds": 5, "sites": 3, "quorum": 3}, "network": head_on(encoder)}
    with pytest.raises(ValueError, match="augment = false"):
        Study.model_validate(tables)
    found = weakenings(Study.model_validate({**tables, "training": {"augment": False}}))
    assert any("frozen encoder" in each and "approve-encoder" in each for each in found)
    assert not any("Augmentation is off" in each for each in found)


@pytest.mark.parametrize(
    ("network", "tables", "is_told"),
    [
        ({}, {}, True),
        ({"norm": "group"}, {"privacy": {"noise_multiplier": 1.5, "sample_rate": 0.1}}, False),
    ],
)
def test_review_says_that_the_updates_of_a_head_show_who_took_part(
    network: dict[str, object], tables: dict[str, object], is_told: bool, tmp_path: Path
) -> None:
    encoder = small_encoder(tmp_path / "encoder", Preprocessing())
    study = {"name": "heads", "rounds": 5, "sites": 3, "quorum": 3}
    content = {"study": study, "network": {**head_on(encoder), **network}, "training": {"augment": False}, **tables}
    found = weakenings(Study.model_validate(content))
    assert any("whether this hospital trained on it" in each for each in found) == is_told
