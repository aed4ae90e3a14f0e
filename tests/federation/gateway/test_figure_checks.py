"""Which metrics leave the site: the gateway checks each metric and each count against the site's own patients."""

import json
import math
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.gateway.figure_checks import check_figures
from federation.protocol.figure_rounding import rounded
from federation.protocol.metric_allowlist import EXAMPLES_OF, FIGURES, LABELS, Kind, tail
from federation.protocol.patient_counts import Patients, count_patients
from models.refusal import Refusal
from pipeline.cohort.dataset import Examples
from pipeline.cohort.store import Cohort, PatientRow, Scan
from pipeline.evaluation import discrimination
from pipeline.evaluation import figures as evaluation
from pipeline.evaluation.figures import Deployed
from pipeline.site.folder import Site, init_site, site_settings
from tests.helpers.scan_list import measures
from tests.pipeline.evaluation.people import WINDOW_HU, people

LEAST = 10
AGE_SEX = {"auroc_severe_age_sex_low": 0.4, "auroc_severe_age_sex_high": 0.6}
INTERVAL = {"auroc_severe@female_low": 0.4, "auroc_severe@female_high": 0.6}
SPLITS = ("train", "validation", "test")
CLASSES = [(split, label, value) for split in SPLITS for label in ("pcr_positive", "severe") for value in (False, True)]
ENOUGH = Patients(
    of_split=dict.fromkeys(SPLITS, 60),
    with_value=dict.fromkeys(CLASSES, 25),
    in_group={(*each, group): 12 for each in CLASSES for group in ("female", "siemens")},
)


def check(
    figures: dict[str, Any],
    patients: Patients = ENOUGH,
    kind: Kind = "evaluate.test",
    *,
    histograms: bool = True,
    embeddings: bool = True,
) -> dict[str, float]:
    told = {"num-examples": patients.of_split[EXAMPLES_OF[kind]], **figures}
    return check_figures(told, kind, patients, min_patients=LEAST, histograms=histograms, embeddings=embeddings)


def refused_for(*arguments: Any, **options: Any) -> str:
    with pytest.raises(Refusal) as refused:
        check(*arguments, **options)
    return refused.value.code


def having(**classes: dict[bool, int]) -> Patients:
    """These numbers of test patients for each class of the given labels; all else as in ENOUGH."""
    changed = {("test", label, value): count for label, counts in classes.items() for value, count in counts.items()}
    return replace(ENOUGH, with_value={**ENOUGH.with_value, **changed})


def test_valid_metrics_pass_in_the_order_of_the_allowlist() -> None:
    given = {"auroc_severe@female": 0.7, "auroc_severe": 0.8, "prevalence_severe": 0.5, "count_severe_1_19": 25}
    found = check(given)
    assert found == {**given, "num-examples": 60}
    table = [*FIGURES["evaluate.test"], "num-examples"]
    assert list(found) == sorted(found, key=table.index)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.1, 1.1, True, "0.5", None, [0.5]])
def test_metric_that_is_not_a_number_in_its_range_is_refused(value: object) -> None:
    assert refused_for({"auroc_severe": value}) == "E_REPLY_METRICS"
    assert refused_for({"count_severe_1_19": value}) == "E_REPLY_METRICS"


@pytest.mark.parametrize(
    ("name", "classes", "passes"),
    [
        ("loss_severe", {False: 4, True: 5}, False),
        ("loss_severe", {False: 0, True: 10}, False),
        ("auroc_severe", {False: 0, True: 40}, False),
        ("auroc_severe", {False: 9, True: 40}, False),
        ("auroc_severe", {False: 10, True: 10}, True),
        ("sens_at_rule_in_severe", {False: 8, True: 40}, False),
        ("spec_at_rule_in_severe", {False: 40, True: 7}, False),
        ("net_benefit_severe_10", {False: 40, True: 7}, False),
        ("sens_at_spec90_severe", {False: 40, True: 0}, False),
        ("prevalence_severe", {False: 40, True: 9}, False),
        ("prevalence_severe", {False: 10, True: 10}, True),
    ],
)
def test_metric_needs_enough_patients_with_its_label(name: str, classes: dict[bool, int], passes: bool) -> None:
    if passes:
        assert check({name: 0.5}, having(severe=classes))[name] == 0.5
    else:
        assert refused_for({name: 0.5}, having(severe=classes)) == "E_REPLY_PATIENTS"
    assert check({name.replace("severe", "pcr_positive"): 0.5}, having(severe=classes))


def calibrated(told: dict[str, float], patients: Patients) -> dict[str, float]:
    """What leaves of an answer to a calibration."""
    told = {**told, "num-examples": patients.of_split["validation"]}
    return check_figures(told, "evaluate.calibrate", patients, min_patients=10, histograms=False, embeddings=False)


VALIDATED = Patients(
    of_split={"validation": 50},
    with_value={("validation", "severe", True): 16, ("validation", "severe", False): 30},
)
SIZES = {"positives_severe": 15.0, "negatives_severe": 27.0}
TAIL = dict(zip(tail("rule_out", "severe"), (-1.18, -0.99, 0.0), strict=True))


def test_tail_leaves_with_the_sizes_of_its_classes() -> None:
    assert calibrated({**SIZES, **TAIL}, VALIDATED) == {**SIZES, **TAIL, "num-examples": 50}


@pytest.mark.parametrize(
    "told",
    [
        TAIL,
        {"positives_severe": 15.0, **TAIL},
        {**SIZES, **TAIL, "positives_severe": 18.0},
        {**SIZES, **TAIL, "negatives_severe": 30.0},
        {**SIZES, "rule_out_severe_00": -1.18},
        {**SIZES, **TAIL, "rule_in_severe_20": 1.18},
        {**SIZES, **TAIL, "rule_out_severe_00": 101.0},
        {**SIZES, **TAIL, "rule_out_severe": -1.0},
    ],
)
def test_incomplete_tail_or_invented_class_size_is_refused(told: dict[str, float]) -> None:
    with pytest.raises(Refusal, match="E_REPLY_METRICS"):
        calibrated(told, VALIDATED)


@pytest.mark.parametrize("positives", [0, 9])
def test_tail_of_a_small_class_is_refused(positives: int) -> None:
    with_value = {("validation", "severe", True): positives, ("validation", "severe", False): 40}
    with pytest.raises(Refusal, match="E_REPLY_PATIENTS"):
        calibrated({**SIZES, **TAIL}, replace(VALIDATED, with_value=with_value))


def test_subgroup_metric_needs_enough_patients_in_the_subgroup() -> None:
    assert check({"auroc_severe@siemens": 0.5, "auroc_severe@siemens_low": 0.4, "auroc_severe@siemens_high": 0.6})
    assert refused_for({"auroc_severe@ge": 0.5}) == "E_REPLY_PATIENTS"
    few = replace(ENOUGH, in_group={("test", "severe", False, "female"): 30, ("test", "severe", True, "male"): 30})
    assert refused_for({"auroc_severe@female": 0.5}, few) == "E_REPLY_PATIENTS"


@pytest.mark.parametrize(("female", "passes"), [(15, True), (16, False), (24, False), (25, True)])
def test_subgroup_metric_needs_enough_patients_beside_the_subgroup(female: int, passes: bool) -> None:
    """25 of each class are tested. Their figures less those of the women would reveal the other patients' classes."""
    groups = {("test", "severe", value, "female"): female for value in (False, True)}
    patients = replace(ENOUGH, in_group=groups)
    if passes:
        assert check({"auroc_severe@female": 0.5, **INTERVAL}, patients)
    else:
        assert refused_for({"auroc_severe@female": 0.5, **INTERVAL}, patients) == "E_REPLY_PATIENTS"


def test_baseline_metric_needs_enough_training_patients() -> None:
    untrained = {key: count for key, count in ENOUGH.with_value.items() if key[0] != "train"}
    assert refused_for({"auroc_severe_age_sex": 0.5}, replace(ENOUGH, with_value=untrained)) == "E_REPLY_PATIENTS"
    assert check({"auroc_severe_lesion_load": 0.5}, replace(ENOUGH, with_value=untrained))


def test_baseline_metric_needs_enough_patients_of_both_sexes() -> None:
    """25 of each class are tested. The AUROC of age and sex would tell the classes' shares of the smaller sex."""
    both = {("test", "severe", value, "female"): 15 for value in (False, True)}
    assert check({"auroc_severe_age_sex": 0.5, **AGE_SEX}, replace(ENOUGH, in_group=both))
    few = both | {("test", "severe", True, "female"): 16}
    assert refused_for({"auroc_severe_age_sex": 0.5, **AGE_SEX}, replace(ENOUGH, in_group=few)) == "E_REPLY_PATIENTS"


def test_audit_metric_needs_enough_patients_in_its_splits() -> None:
    """The metric of acquisition tags covers all splits. The metric of blanked lungs excludes the training split."""
    of_train = {key: (30 if key[0] == "train" else 2) for key in ENOUGH.with_value}
    few = replace(ENOUGH, with_value=of_train)
    assert check({"auroc_severe_tags": 0.5}, few)
    assert refused_for({"auroc_severe_outside": 0.5}, few) == "E_REPLY_PATIENTS"


def test_histogram_counts_leave_only_if_the_site_allows_them() -> None:
    assert refused_for({"count_severe_1_19": 25}, histograms=False) == "E_REPLY_METRICS"
    assert check({"auroc_severe": 0.5}, histograms=False)


def test_feature_distances_leave_only_if_the_site_allows_them() -> None:
    told = {"distance_mean": 0.1, "distance_sd": 0.2}
    assert check(told, kind="evaluate.calibrate")
    assert refused_for(told, kind="evaluate.calibrate", embeddings=False) == "E_REPLY_METRICS"
    assert check({"slope_severe": 1.0}, kind="evaluate.calibrate", embeddings=False)
    few = replace(ENOUGH, of_split={**ENOUGH.of_split, "validation": 9})
    assert refused_for({"num-examples": 9, **told}, few, kind="evaluate.calibrate") == "E_REPLY_EXAMPLES"


def test_small_count_is_refused() -> None:
    assert refused_for({"count_severe_1_19": 9}) == "E_REPLY_PATIENTS"
    assert refused_for({"count_severe_1_19": 0}) == "E_REPLY_PATIENTS"
    assert refused_for({"count_severe_1_19": 12.0}) == "E_REPLY_METRICS"


def test_counts_may_not_exceed_the_number_of_patients_in_the_class() -> None:
    """Otherwise an app could send any number as a count."""
    assert check({"count_severe_1_03": 12, "count_severe_1_19": 13, "count_severe_0_19": 25})
    assert refused_for({"count_severe_1_03": 13, "count_severe_1_19": 13}) == "E_REPLY_PATIENTS"
    assert refused_for({"count_severe_0_07": 99999}) == "E_REPLY_PATIENTS"


def test_metrics_of_another_kind_are_refused() -> None:
    assert refused_for({"slope_severe": 1.0}) == "E_REPLY_METRICS"
    assert refused_for({"auroc_severe": 0.5}, kind="evaluate.assign") == "E_REPLY_METRICS"
    assert check({"slope_severe": 1.0}, kind="evaluate.calibrate")
    assert check({"assigned_31": 1.0}, kind="evaluate.assign")
    assert check({}, kind="evaluate.embed") == {"num-examples": 60}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init_site(tmp_path / "site", site_settings(None, name="north"))


def test_subgroups_are_counted_from_the_cohort(site: Site) -> None:
    """Groups use the age and sex of the patient, and the manufacturer of the scan that was accepted for the patient."""
    people = [(49.0, "F", True, True), (71.0, "M", True, False), (None, None, False, True), (55.0, "F", True, True)]
    with Cohort(site) as cohort:
        for number, manufacturer in enumerate(("SIEMENS", "SYNTHETIC", "GE")):
            cohort.add_scan(
                Scan(f"f{number}", "s", None, None, "", "d", f"{number}.npy", measures(manufacturer=manufacturer))
            )
        cohort.add_scan(Scan("refused", "s", "E_NO_LUNGS", "no", "", None, None, None))
        cohort.replace(
            [PatientRow(f"{k:016}", "test", f"{k}.npy", *person) for k, person in enumerate(people)],
            [],
            ["f0", "f1", "f2", "refused"],
        )
    found = count_patients(site)
    assert found.of_split == {"test": 4}

    def of(label: str, value: bool) -> dict[str, int]:
        return {key[3]: count for key, count in found.in_group.items() if key[:3] == ("test", label, value)}

    assert of("severe", True) == {"under_50": 1, "50_to_69": 1, "female": 2, "siemens": 1}
    assert of("severe", False) == {"from_70": 1, "male": 1, "other_scanner": 1}
    assert of("pcr_positive", False) == {"ge": 1}


def test_unknown_manufacturer_counts_as_other_scanner(site: Site) -> None:
    with Cohort(site) as cohort:
        cohort.add_scan(Scan("f", "s", None, None, "", "d", "0.npy", measures()))
        cohort.replace([PatientRow("0" * 16, "test", "0.npy", None, "SMITH", True, None)], [], ["f"])
    stored = json.loads(measures().to_json()) | {"manufacturer": "SMITH^JOHN"}
    with sqlite3.connect(site.cohort_folder / "cohort.sqlite") as database:
        database.execute("UPDATE scans SET measures = ?", (json.dumps(stored),))
    database.close()
    assert {key[3] for key in count_patients(site).in_group} == {"other_scanner"}


def planted(site: Site, folder: Path, patients: int, seed: int) -> None:
    """Store a cohort of synthetic patients in the site: each has a scan, some have no labels."""
    rng = np.random.default_rng(seed)
    rows = []
    with Cohort(site) as cohort:
        for number, example in enumerate(people(folder, patients, seed=seed).examples):
            name = f"{number}.npy"
            (cohort.tensors / name).write_bytes(example.tensor.read_bytes())
            cohort.add_scan(Scan(f"f{number}", "s", None, None, "", "d", name, example.measures))
            pcr, severe = (value if rng.random() < 0.8 else None for value in (example.pcr_positive, example.severe))
            split = str(rng.choice(SPLITS, p=[0.4, 0.2, 0.4]))
            rows.append(PatientRow(f"{number:016}", split, name, example.age_years, example.sex, pcr, severe))  # type: ignore[arg-type]
        cohort.replace(rows, [], [f"f{number}" for number in range(patients)])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 3, 6])
def test_gateway_accepts_all_metrics_that_the_app_computes(
    site: Site, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """App and gateway count the same patients. A site whose own metrics are refused would drop out of every study."""
    monkeypatch.setattr(discrimination, "BOOTSTRAPS", 20)
    planted(site, tmp_path, 20 + 25 * seed, seed)
    with Cohort.read(site) as cohort:
        train, validation, test = (Examples(cohort.examples(split)) for split in SPLITS)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    logits, others = (rng.normal(0, 1, each.targets.shape).astype(np.float32) for each in (test, validation))
    deployed = Deployed({}, {label: {"rule_out": -0.5, "rule_in": 0.5} for label in LABELS})
    told: dict[Kind, tuple[dict[str, float], int]] = {
        "evaluate.test": (
            evaluation.test_figures(
                logits, test, train, deployed, min_patients=LEAST, histograms=True, window_hu=WINDOW_HU
            ),
            len(test),
        ),
        "evaluate.calibrate": (
            evaluation.calibration_figures(others, validation.targets, min_patients=LEAST),
            len(validation),
        ),
    }
    counted = count_patients(site)
    for kind, (figures, examples) in told.items():
        if examples >= LEAST:
            coarse = rounded(figures, kind, counted)
            for given in (figures, coarse):  # our app rounds its metrics; another app might not round
                passed = check_figures(
                    {**given, "num-examples": examples},
                    kind,
                    counted,
                    min_patients=LEAST,
                    histograms=True,
                    embeddings=False,
                )
                assert passed == {**coarse, "num-examples": examples}
            assert set(coarse) == set(figures)
            assert all(figures[name] >= value for name, value in coarse.items() if name.endswith("_low"))
            assert all(figures[name] <= value for name, value in coarse.items() if name.endswith("_high"))
