"""The digest of a site's policy, and the number of patients that a metric covers."""

from pathlib import Path

import pytest

from federation.gateway import policy
from federation.gateway.policy import policy_digest
from federation.protocol.metric_allowlist import FIGURES, Figure
from federation.protocol.patient_counts import Patients, count_patients
from pipeline.cohort.store import Cohort, PatientRow
from pipeline.site.folder import Site, init_site, site_settings


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init_site(tmp_path / "site", site_settings(None, name="north"))


def patient(number: int, split: str, pcr_positive: bool | None, severe: bool | None) -> PatientRow:
    return PatientRow(f"{number:016}", split, f"{number}.npy", None, None, pcr_positive, severe)  # type: ignore[arg-type]


def test_patients_are_counted_by_split_and_label(site: Site) -> None:
    rows = [
        patient(1, "train", True, None),
        patient(2, "train", None, None),
        patient(3, "validation", True, False),
        # Not counted for `severe`, because PCR-negative patients are not used for this label.
        patient(4, "validation", False, True),
        patient(5, "validation", True, True),
    ]
    with Cohort(site) as cohort:
        cohort.replace(rows, [], [])
    found = count_patients(site)
    assert found.of_split == {"train": 2, "validation": 3}
    assert found.behind(FIGURES["train"]["train_loss"]) == 1  # a loss covers patients with a label
    assert found.behind(Figure(0, 1, "validation", "severe")) == 2
    assert found.behind(Figure(0, 1, "validation", "pcr_positive", both=True)) == 3
    assert found.behind(Figure(0, 1, "test", "severe")) == 0


def test_auroc_needs_patients_of_both_classes() -> None:
    one_class = Patients(with_value={("test", "severe", True): 50})
    assert one_class.behind(FIGURES["evaluate.test"]["loss_severe"]) == 50
    assert one_class.behind(FIGURES["evaluate.test"]["auroc_severe"]) == 0


def test_site_without_cohort_has_no_patients(site: Site) -> None:
    assert count_patients(site) == Patients()


def test_every_setting_that_affects_decisions_changes_the_policy_digest(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = site.settings
    digests = [policy_digest(settings)]
    assert policy_digest(Site.open(site.folder).settings) == digests[0]
    for table, key, value in (
        (settings.site, "min_patients", 11),
        (settings.gateway, "own_app", False),
        (settings.gateway, "max_update", 1.5),
        (settings.gateway, "embedding_statistics", False),
        (settings.gateway, "histograms", True),
        (settings.privacy, "required", True),
    ):
        setattr(table, key, value)
        digests.append(policy_digest(settings))
    monkeypatch.setattr(policy, "FIGURES", {**FIGURES, "train": {}})
    digests.append(policy_digest(settings))
    assert len(set(digests)) == 8
    settings.site.name = "south"  # affects no decision
    assert policy_digest(settings) == digests[-1]
