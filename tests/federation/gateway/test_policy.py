"""The digest of a site's policy, and the number of patients that a metric covers."""

from pathlib import Path

import pytest

from federation.gateway import policy
from federation.gateway.policy import policy_digest
from federation.protocol.metric_allowlist import FIGURES, SPLITS, Figure
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
    assert found.with_value == {
        ("train", "pcr_positive", True): 1,
        ("validation", "pcr_positive", True): 2,
        ("validation", "pcr_positive", False): 1,
        ("validation", "severe", False): 1,
        ("validation", "severe", True): 1,
    }
    assert found.may_leave(Figure(0, 1, "validation", "severe"), min_patients=1)
    assert not found.may_leave(Figure(0, 1, "validation", "severe"), min_patients=2)
    assert not found.may_leave(Figure(0, 1, "test", "severe"), min_patients=1)


@pytest.mark.parametrize("few", [0, 1, 9])
@pytest.mark.parametrize("is_few", [False, True])
def test_no_figure_of_a_label_may_leave_if_one_class_is_small(few: int, is_few: bool) -> None:
    """Not even one over the other class, such as a sensitivity: the number of patients is known."""
    sizes = {is_few: few, not is_few: 50}
    groups = ("female", "siemens")
    patients = Patients(
        of_split=dict.fromkeys(("train", "validation", "test"), 70),
        with_value={(split, "severe", value): n for split in SPLITS["all"] for value, n in sizes.items()},
        in_group={("test", "severe", value, group): n for value, n in sizes.items() for group in groups},
    )
    for table in FIGURES.values():
        for name, figure in table.items():
            if figure.label:
                assert not patients.may_leave(figure, min_patients=10), name


@pytest.mark.parametrize(
    ("severe", "pcr_positive", "may_leave"),
    [((10, 10), (0, 0), True), ((10, 10), (9, 30), False), ((10, 10), (0, 30), False), ((0, 0), (0, 0), False)],
)
def test_training_loss_covers_the_classes_of_all_labels(
    severe: tuple[int, int], pcr_positive: tuple[int, int], may_leave: bool
) -> None:
    sizes = {"severe": severe, "pcr_positive": pcr_positive}
    found = Patients(with_value={("train", label, bool(k)): n[k] for label, n in sizes.items() for k in (0, 1)})
    assert found.may_leave(FIGURES["train"]["train_loss"], min_patients=10) == may_leave


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
