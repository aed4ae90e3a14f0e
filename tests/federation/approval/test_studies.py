"""Approval of studies by a digest of their settings. Every setting that affects training or queries changes it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from configs import AND, SIZES, preset_files, usual_studies
from federation.approval.presets import names_by_digest, names_of, presets, sized
from federation.approval.studies import FREE_KEYS, StudyApprovals, as_study, canonical, study_digest
from federation.approval.study_review import weakenings
from federation.ledger.chain import ledger_file, read_lines
from federation.protocol.study_config import Study
from models.network import build_network
from models.refusal import Refusal
from pipeline.site.folder import GatewayTable, Site
from pipeline.training.privacy_budget import epsilon_of, step_costs
from pipeline.training.train_settings import TrainSettings

FULL: dict[str, Any] = {
    "study": {"name": "trial", "rounds": 20, "sites": 3, "quorum": 2},
    "network": {"norm": "group"},
    "privacy": {"noise_multiplier": 1.5, "sample_rate": 0.1},
    "stopping": {"patience_rounds": 3},
    "strategy": {"name": "FedProx", "options": {"proximal_mu": 0.01}},
}
STUDY = Study.model_validate(FULL).model_dump(mode="json")
TEXT = json.dumps(STUDY)


def code(function: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as refused:
        function()
    return refused.value.code


def settings() -> Iterator[tuple[str, str]]:
    for table, content in STUDY.items():
        yield from ((table, key) for key in content)


@pytest.mark.parametrize(("table", "key"), settings())
def test_every_setting_except_free_ones_changes_the_digest(table: str, key: str) -> None:
    changed = json.loads(TEXT)
    changed[table][key] = "something else"
    is_free = table == "stopping" or (table == "study" and key in FREE_KEYS)
    assert (study_digest(json.dumps(changed)) == study_digest(TEXT)) == is_free


def test_unknown_setting_changes_the_digest() -> None:
    changed = {**STUDY, "more": {"trap": 1}}
    assert study_digest(json.dumps(changed)) != study_digest(TEXT)


def test_order_and_whitespace_do_not_change_the_digest() -> None:
    turned = {table: dict(reversed(content.items())) for table, content in reversed(STUDY.items())}
    assert study_digest(json.dumps(turned, indent=3)) == study_digest(TEXT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"study": 3}',
        "{" * 40_000,
        TEXT.replace('"rounds": 20', '"rounds": 20, "rounds": 21'),  # two parsers could read different studies
        TEXT.replace('"learning_rate": 0.05', '"learning_rate": NaN'),
        TEXT.replace('"learning_rate": 0.05', '"learning_rate": Infinity'),
        TEXT + " " * 70_000,
    ],
)
def test_invalid_study_has_no_digest(text: str) -> None:
    assert code(lambda: study_digest(text)) == "E_RUN_CONFIG"


def test_presets_are_recognised_by_digest() -> None:
    for name, study in presets().items():
        named = study.model_copy(update={"study": study.study.model_copy(update={"name": "other", "seed": 77})})
        assert name in names_of(study_digest(named.model_dump_json()))
    assert names_of(study_digest(TEXT)) == ()
    assert list(presets()) == list(preset_files())


def test_new_site_allows_only_the_default_presets(site: Site) -> None:
    approvals = StudyApprovals(site)
    verdicts = {
        name: approvals.verdict(study_digest(study.model_dump_json()), (name,)) for name, study in presets().items()
    }
    assert verdicts["study"] == verdicts["fedprox"] == verdicts["fedavg"] == "preset"
    assert verdicts["baselines"] == verdicts["demo"] == "unknown"
    assert approvals.verdict(study_digest(TEXT), ()) == "unknown"


def test_presets_that_differ_only_in_name_and_seed_share_a_digest() -> None:
    digests = {name: study_digest(study.model_dump_json()) for name, study in presets().items()}
    assert names_of(digests["fedavg"]) == names_of(digests["masked"]) == ("fedavg", "masked")
    assert names_of(digests["study"]) == ("study", "robust", "small-cpu")
    assert len(set(digests.values())) == len(digests) - 3


def digest_of(study: Study) -> str:
    return study_digest(study.model_dump_json())


# The digests under which hospitals approved these studies: a change of a preset is a new study, which they would have
# to approve again.
@pytest.mark.parametrize(
    ("size", "digest"),
    [
        ("small-cpu", "8f72045b36f4"),
        ("standard-gpu", "ab23f32437ee"),
        ("large-gpu", "0362ddd56914"),
    ],
)
def test_digest_of_a_size_is_stable(size: str, digest: str) -> None:
    assert digest_of(presets()[size]).startswith(digest)


def test_sizes_differ_from_the_default_study_in_their_grid_alone() -> None:
    default = presets()["study"]
    for size in SIZES:
        study = presets()[size]
        assert digest_of(study.model_copy(update={"preprocessing": default.preprocessing})) == digest_of(default)
    assert presets()["small-cpu"].preprocessing == default.preprocessing


def test_study_at_a_size_runs_where_both_names_are_listed(site: Site) -> None:
    approvals = StudyApprovals(site)
    for name in ("masked+standard-gpu", "private+large-gpu", "masked-groups+large-gpu"):
        digest = digest_of(sized()[name])
        assert name in names_of(digest)
        assert approvals.verdict(digest, names_of(digest)) == "preset"
    digest = digest_of(sized()["quick+standard-gpu"])
    assert names_of(digest) == ("quick+standard-gpu",)
    assert approvals.verdict(digest, names_of(digest)) == "unknown", "quick is not listed by default"


@pytest.mark.parametrize("listed", [("masked", "fedavg"), ("standard-gpu",), ("masked", "large-gpu"), ("study",), ()])
def test_study_at_a_size_needs_both_names(site: Site, listed: tuple[str, ...]) -> None:
    site.settings.gateway.studies = listed
    digest = digest_of(sized()["masked+standard-gpu"])
    assert StudyApprovals(site).verdict(digest, names_of(digest)) == "unknown"


@pytest.mark.parametrize("name", ["masked+standard-gpu", "+", "standard-gpu+", "small-cpu,large-gpu"])
def test_joined_name_cannot_be_listed(name: str) -> None:
    with pytest.raises(ValidationError, match="no study named"):
        GatewayTable(studies=(name,))


def test_revoked_study_at_a_size_does_not_run(site: Site) -> None:
    digest = digest_of(sized()["masked+standard-gpu"])
    StudyApprovals(site).revoke(digest, by="anna")
    assert StudyApprovals(site).verdict(digest, names_of(digest)) == "revoked"
    other = digest_of(presets()["standard-gpu"])
    assert StudyApprovals(site).verdict(other, names_of(other)) == "preset"


def test_size_with_another_grid_is_another_study(site: Site) -> None:
    """A server cannot have a grid of its own choice run under a size's name."""
    size = presets()["standard-gpu"]
    finer = size.model_copy(update={"preprocessing": size.preprocessing.model_copy(update={"shape": (97, 160, 160)})})
    assert names_of(digest_of(finer)) == ()
    assert StudyApprovals(site).verdict(digest_of(finer), names_of(digest_of(finer))) == "unknown"


def test_usual_studies_show_no_hospitals_own_model() -> None:
    """Each mean is masked; `baselines`, which needs single models, is allowed on request only."""
    usual = [presets()[name] for name in usual_studies()]
    assert not any(study.could_mask and not study.study.synthetic for study in usual)
    assert not any(study.single_models for study in usual)


def test_site_without_listed_studies_allows_none(site: Site) -> None:
    site.settings.gateway.studies = ()
    digest = study_digest(presets()["study"].model_dump_json())
    assert StudyApprovals(site).verdict(digest, names_of(digest)) == "unknown"


def test_decisions_persist_and_are_recorded_in_the_ledger(site: Site) -> None:
    approvals = StudyApprovals(site)
    digest = approvals.approve(TEXT, by="anna", note="read")
    assert digest == study_digest(TEXT)
    assert StudyApprovals(site).verdict(digest, ()) == "approved"
    approvals.revoke(digest, by="ben")
    assert StudyApprovals(site).verdict(digest, ()) == "revoked"
    assert [(line.direction, line.kind, line.app) for line in read_lines(ledger_file(site))] == [
        ("here", "study approval", digest),
        ("here", "study revocation", digest),
    ]


def test_revoked_preset_does_not_run_even_if_listed_in_site_toml(site: Site) -> None:
    digest = study_digest(presets()["study"].model_dump_json())
    StudyApprovals(site).revoke(digest, by="anna")
    assert StudyApprovals(site).verdict(digest, ("study",)) == "revoked"


def test_requested_study_is_kept_for_review(site: Site) -> None:
    approvals = StudyApprovals(site)
    digest = approvals.keep(TEXT)
    kept = approvals.content(digest)
    assert kept is not None
    assert study_digest(as_study(kept)) == digest
    assert Study.model_validate_json(as_study(kept)).network.norm == "group"


@pytest.mark.parametrize("aggregation", [{"secure": True}, {"secure": True, "groups": 3}])
def test_requested_study_with_masks_can_be_reviewed(site: Site, aggregation: dict[str, Any]) -> None:
    """The number of sites, which the digest does not cover, must fit what masks need."""
    table = {**FULL["study"], "sites": 9, "quorum": 9}
    asked = Study.model_validate({"study": table, "strategy": {"name": "FedAvg"}, "aggregation": aggregation})
    approvals = StudyApprovals(site)
    digest = approvals.keep(asked.model_dump_json())
    kept = approvals.content(digest)
    assert kept is not None
    found = Study.model_validate_json(as_study(kept))
    assert study_digest(found.model_dump_json()) == digest
    named = [line for line in weakenings(found) if "Sums of groups" in line and "3 groups of at least three" in line]
    assert len(named) == (1 if "groups" in aggregation else 0)


@pytest.mark.parametrize("spoil", [b"", b"{}", b'{"decisions": [{"sha256": "../x"}]}'])
def test_damaged_approvals_file_blocks_every_study(site: Site, spoil: bytes) -> None:
    approvals = StudyApprovals(site)
    digest = approvals.approve(TEXT, by="anna")
    (Path(site.folder) / "studies" / "approvals.json").write_bytes(spoil)
    assert code(lambda: approvals.verdict(digest, ("study",))) == "E_APPROVALS"


# --- plain language ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"training": {"augment": False}}, "Augmentation"),
        ({"training": {"batch_size": 4}}, "4 patients"),
        ({"training": {"learning_rate": 0.5}}, "learning rate"),
        ({"network": {"tabular_features": 16}}, "16 features"),
        ({"network": {"architecture": "densenet121", "widen_factor": 1.0}}, "not measured"),
        ({"network": {"pooling": "attention", "norm": "group"}}, "not measured"),
        ({"study": {**FULL["study"], "local_steps": 2}}, "2 training steps"),
        ({"study": {**FULL["study"], "rounds": 200}}, "200 rounds"),
        ({"evaluation": {"local_models": True}}, "Local models"),
        ({"evaluation": {"leave_one_out": True}}, "Leave one out"),
        ({"evaluation": {"fine_tune": True}}, "Fine tuning"),
        ({"preprocessing": {"shape": (96, 160, 160), "working_spacing_mm": 2.0}}, "Scans of 96 x 160 x 160 voxels"),
        ({}, "No differential privacy"),
    ],
)
def test_settings_that_weaken_privacy_are_listed(change: dict[str, Any], word: str) -> None:
    study = Study.model_validate({"study": FULL["study"], **change})
    assert any(word in line for line in weakenings(study))


@pytest.mark.parametrize("network", [{"architecture": "densenet121"}, {"architecture": "resnet10", "pooling": "mean"}])
def test_measured_network_is_not_listed(network: dict[str, str]) -> None:
    study = Study.model_validate({"study": FULL["study"], "network": network})
    assert not any("not measured" in line or "voxels" in line for line in weakenings(study))


def test_private_preset_has_no_weakenings() -> None:
    assert weakenings(presets()["private"]) == []


@pytest.mark.slow
def test_private_preset_follows_the_page_and_leaves_budget_for_a_second_run(site: Site) -> None:
    study, limits = presets()["private"], site.settings.privacy
    private = study.private_round
    assert private is not None
    costs = study.study.rounds * private.steps * step_costs(private.noise_multiplier, private.sample_rate)
    assert epsilon_of(costs, limits.max_delta) <= limits.max_epsilon / 2
    assert epsilon_of(2 * costs, limits.max_delta) <= limits.max_epsilon
    network = build_network(study.network, seed=1)
    assert sum(parameter.numel() for parameter in network.parameters()) < 100_000
    assert study.training.learning_rate < TrainSettings().learning_rate


def test_canonical_form_is_equal_for_study_model_output() -> None:
    assert canonical(Study.model_validate(FULL).model_dump_json()) == canonical(TEXT)


@pytest.mark.slow
def test_preset_digests_come_from_a_subprocess_and_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = names_by_digest(tmp_path)
    assert {name for names in found.values() for name in names if AND not in name} == set(preset_files())
    assert ["fedavg+large-gpu", "masked+large-gpu"] in found.values()
    assert found[study_digest(presets()["demo"].model_dump_json())] == ["demo"]
    monkeypatch.setattr("federation.approval.presets.subprocess.run", None)
    assert names_by_digest(tmp_path) == found


def test_study_that_begins_from_a_release_is_listed_as_weakening() -> None:
    tables = {"study": {**FULL["study"], "begin_from": "a" * 64}}
    assert any("approve-release" in line for line in weakenings(Study.model_validate(tables)))
    assert not any("approve-release" in line for line in weakenings(Study.model_validate(FULL)))
