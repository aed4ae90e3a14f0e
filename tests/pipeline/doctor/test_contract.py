"""The data contract: each rule just inside and just outside its limit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.cohort.ingest import Assessment, Member
from pipeline.cohort.store import PatientRow
from pipeline.doctor import reasons
from pipeline.doctor.contract import Facts, Result, contract, numbers
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.records import reasons as records_reasons
from pipeline.records.join import Labels
from pipeline.site.folder import Site, init_site
from pipeline.system.codes import BY_CODE
from pipeline.system.findings import Finding
from tests.helpers.scan_list import DAY, series
from tests.pipeline.doctor.cohorts import assessed, member

SETTINGS = '[site]\nname = "ward"\n[laboratory]\nfile = "pcr.csv"\n[outcomes]\nfile = "outcomes.csv"\n'
POSITIVE, MILD, NEGATIVE = Labels(True, True), Labels(True, False), Labels(False, False)
Judge = Callable[..., dict[str, Result]]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init_site(tmp_path / "site", SETTINGS, key=b"k" * 32)


@pytest.fixture
def judge(site: Site, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """Results by code. The search for near duplicates is disabled: the scans are synthetic."""
    monkeypatch.setattr("pipeline.doctor.contract.near_duplicates", lambda tensors: iter(()))

    def run(members: Sequence[Member], stored: Sequence[PatientRow] = (), **more: object) -> dict[str, Result]:
        assessment = assessed(site, members, **more)  # type: ignore[arg-type]
        results = contract(Facts(site, Preprocessing(), assessment, Path(), stored))
        codes = [result.reason.code for result in results]
        assert len(codes) == len(set(codes)), "each rule gives one result"
        return {result.reason.code: result for result in results}

    return run


def ward(positive: int = 20, negative: int = 20, **measured: object) -> list[Member]:
    """Normal patients except for `measured`. Half of the positive patients are severe."""
    labels = [*([POSITIVE, MILD] * positive)[:positive], *[NEGATIVE] * negative]
    return [member(f"{i:016x}", each, **measured) for i, each in enumerate(labels)]  # type: ignore[arg-type]


def met(results: dict[str, Result]) -> set[str]:
    return {code for code, result in results.items() if result.is_met}


def test_normal_cohort_triggers_no_rule(judge: Judge) -> None:
    results = judge(ward(120, 60))
    assert met(results) == set()
    assert len(results) > 40, "rules that are not triggered are listed too"


@pytest.mark.parametrize(
    ("measured", "code"),
    [
        ({"pixel_mm": 4.01}, "W_COARSE"),
        ({"position": "HFP"}, "W_PRONE"),
        ({"position": "FFDL"}, "W_PRONE"),
        ({"position": "FFS"}, "W_FEET_FIRST"),
        ({"lungs_ml": 1999}, "W_SMALL_LUNGS"),
        ({"kernel": "", "sharpness": ""}, "W_KERNEL_UNKNOWN"),
        ({"manufacturer": "GE"}, "W_SCANNER_MIX"),
    ],
)
def test_rules_triggered_by_one_scan(judge: Judge, measured: dict[str, object], code: str) -> None:
    odd = member("odd", POSITIVE, **measured)  # type: ignore[arg-type]
    results = judge([*ward(120, 60), odd])
    assert met(results) - {"W_PRONE", "W_FEET_FIRST"} == {code} - {"W_PRONE", "W_FEET_FIRST"}
    assert (results[code].count, results[code].of) == (1, 181)


def test_mirroring_is_judged_over_all_scans_of_the_site(judge: Judge) -> None:
    right, left = ward(5, 4, heart_left=-0.1), ward(120, 60)
    assert "W_MIRRORED" not in met(judge([*right, *left]))
    assert "W_MIRRORED" not in met(judge(right)), "too few scans to judge"
    results = judge(ward(11, 0, heart_left=-0.1) + [member(f"l{i}", NEGATIVE) for i in range(9)])
    assert "W_MIRRORED" in met(results)
    assert results["W_MIRRORED"].count == 11


@pytest.mark.parametrize(("sharp", "is_met"), [(0, False), (4, False), (5, True), (40, True)])
def test_mixed_kernels_are_reported_from_a_minimum_share(judge: Judge, sharp: int, is_met: bool) -> None:
    mixed = [member(f"s{i}", POSITIVE, kernel="B70S", sharpness="sharp") for i in range(sharp)]
    results = judge([*ward(20, 20), *mixed])
    assert ("W_KERNEL_MIX" in met(results)) == is_met


def test_findings_are_counted_in_their_area_and_unit(judge: Judge) -> None:
    findings = [
        Finding(records_reasons.PCR_UNMAPPED_FLAGGED, "p", "CANARY^JANE"),
        Finding(records_reasons.PCR_DATE, "q", "2099"),
    ]
    nobody = member("odd", Labels(None, None, records_reasons.NO_PCR))
    results = judge([*ward(), nobody], refused={"E_TILT": 2, "E_MODALITY": 1}, findings=findings)
    assert (results["E_TILT"].count, results["E_TILT"].of, results["E_TILT"].area) == (2, 44, "geometry")
    assert (results["E_MODALITY"].count, results["E_MODALITY"].of, results["E_MODALITY"].unit) == (1, 44, "series")
    assert (results["E_NO_PCR"].count, results["E_NO_PCR"].of, results["E_NO_PCR"].unit) == (1, 41, "patients")
    assert (results["E_PCR_DATE"].area, results["E_PCR_DATE"].unit) == ("records", "times")
    assert results["W_PCR_UNMAPPED"].private == "'CANARY^JANE' 1 times"
    assert "CANARY" not in str([result.to_json() for result in results.values()])


def test_severity_of_rules(judge: Judge) -> None:
    results = judge(ward())
    assert {results[code].severity for code in ("E_TILT", "E_NO_PCR", "E_OTHER_SPLIT")} == {"refuses"}
    assert {results[code].severity for code in ("W_TURNED", "W_PREVALENCE", "W_NEAR_DUPLICATE")} == {"flags"}
    assert {results[code].severity for code in ("W_CONTRAST", "W_REPEATED", "W_SCANNER_MIX")} == {"informs"}


def test_results_are_sorted_by_severity_and_count(site: Site, judge: Judge) -> None:
    odd = [member(f"o{i}", POSITIVE, lungs_ml=1500) for i in range(3)]
    results = list(judge([*ward(120, 60), *odd], refused={"E_TILT": 1, "E_SPACING": 2}).values())
    assert [result.reason.code for result in results[:3]] == ["E_SPACING", "E_TILT", "W_SMALL_LUNGS"]
    assert not results[3].is_met


@pytest.mark.parametrize(("unlabelled", "is_met"), [(20, False), (21, True)])
def test_low_label_yield_is_reported(judge: Judge, unlabelled: int, is_met: bool) -> None:
    without = [member(f"w{i}", Labels(None, None, records_reasons.PCR_WINDOW)) for i in range(unlabelled)]
    results = judge([*ward(10, 10), *without])
    assert ("W_LABEL_YIELD" in met(results)) == is_met
    assert "W_IDENTIFIERS_DIFFER" not in met(results)


def test_identifiers_that_match_few_patients_are_reported(judge: Judge) -> None:
    without = [member(f"w{i}", Labels(None, None, records_reasons.NO_PCR)) for i in range(21)]
    assert met(judge([*ward(10, 10), *without])) >= {"W_LABEL_YIELD", "W_IDENTIFIERS_DIFFER"}


@pytest.mark.parametrize(("negative", "is_met"), [(3, False), (2, True), (0, True)])
def test_extreme_prevalence_is_reported(judge: Judge, negative: int, is_met: bool) -> None:
    results = judge(ward(57, negative))
    assert ("W_PREVALENCE" in met(results)) == is_met
    assert results["W_PREVALENCE"].count == negative


def test_single_severity_class_is_reported_like_a_single_pcr_class(judge: Judge) -> None:
    members = [member(f"m{i}", MILD) for i in range(40)] + [member(f"n{i}", NEGATIVE) for i in range(40)]
    results = judge(members)
    assert "W_PREVALENCE" in met(results)
    assert (results["W_PREVALENCE"].count, results["W_PREVALENCE"].of) == (0, 40)


def test_data_set_without_pcr_results_is_judged_by_severity_only(judge: Judge) -> None:
    labels = [Labels(None, True), Labels(None, False)] * 60
    results = judge([member(f"{i:016x}", each) for i, each in enumerate(labels)])
    assert met(results) == set()
    assert (results["W_PREVALENCE"].count, results["W_PREVALENCE"].of) == (60, 120)
    assert results["W_FEW_IN_SPLIT"].of == 4


def test_class_missing_in_a_split_is_reported(site: Site, judge: Judge) -> None:
    members = ward(120, 60)
    kept = [m for m in members if m.labels is not NEGATIVE or site.split(m.series.patient_id) != "test"]
    results = judge(kept)
    assert "W_FEW_IN_SPLIT" in met(results)
    assert (results["W_FEW_IN_SPLIT"].count, results["W_FEW_IN_SPLIT"].of) == (1, 8)
    assert results["W_FEW_IN_SPLIT"].private == "test, PCR no: 0"
    assert "W_FEW_IN_SPLIT" not in met(judge(members))


def test_patient_in_another_split_than_derived_from_the_key_is_reported(site: Site, judge: Judge) -> None:
    """This happens after a change of the pseudonym key: the stored cohort was split by the old key."""
    members = ward(120, 60)
    split = site.split(members[0].series.patient_id)
    other = "train" if split != "train" else "test"
    row = PatientRow(members[0].series.patient_id, other, "t.npy", None, None, True, None)
    results = judge(members, stored=[row])
    assert met(results) == {"E_OTHER_SPLIT"}
    assert results["E_OTHER_SPLIT"].count == 1
    assert met(judge(members, stored=[replace(row, split=split)])) == set()


def test_missing_age_or_sex_and_minors_are_reported(judge: Judge) -> None:
    odd = [member("a", POSITIVE, age=None), member("b", POSITIVE, sex=None), member("c", POSITIVE, age=17.9)]
    results = judge([*ward(120, 60), *odd])
    assert met(results) == {"W_AGE_MISSING", "W_SEX_MISSING", "W_NOT_ADULT"}
    assert all(results[code].count == 1 for code in met(results))


def test_missing_outcomes_are_reported_for_positive_patients_only(judge: Judge) -> None:
    lost = Labels(True, None, severe_reason=records_reasons.FOLLOWED_TOO_SHORT)
    unknown = Labels(True, None, severe_reason=records_reasons.NO_OUTCOME)
    negative = Labels(False, None, severe_reason=records_reasons.NO_OUTCOME)
    members = [*ward(120, 60), member("l", lost), member("u", unknown), member("n", negative)]
    results = judge(members)
    assert met(results) == {"W_FOLLOWED_TOO_SHORT", "W_NO_OUTCOME"}
    assert (results["W_NO_OUTCOME"].count, results["W_NO_OUTCOME"].of) == (1, 122)
    many = [member(f"u{i}", unknown) for i in range(121)]
    assert "W_OUTCOME_YIELD" in met(judge([*ward(120, 60), *many]))


def test_patients_scanned_on_several_days_are_counted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.doctor.contract.near_duplicates", lambda tensors: iter(()))
    assessment = assessed(site, ward())
    first = assessment.material.series[0]
    later = series(first.patient_id, "2", acquired=DAY.replace(day=9))
    again = series(first.patient_id, "3", acquired=DAY.replace(hour=20))
    for more, count in (([again], 0), ([later, again], 1)):
        material = replace(assessment.material, series=[*assessment.material.series, *more])
        results = contract(Facts(site, Preprocessing(), replace(assessment, material=material), Path(), []))
        (repeated,) = [result for result in results if result.reason == reasons.REPEATED]
        assert repeated.count == count


def test_near_duplicates_are_named_on_the_sites_own_screen(site: Site, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tensors = {m.series.patient_id: rng.normal(size=(2, 16, 24, 24)).astype(np.float16) for m in ward(3, 0)}
    members = ward(3, 0)
    tensors[members[2].series.patient_id] = tensors[members[0].series.patient_id]
    for m in members:
        tensor = tensors[m.series.patient_id]
        tensor[1] = 1
        np.save(tmp_path / str(m.scan.tensor), tensor)
    results = contract(Facts(site, Preprocessing(), assessed(site, members), tmp_path, []))
    (near,) = [result for result in results if result.reason == reasons.NEAR_DUPLICATE]
    assert (near.count, near.of, near.is_met) == (2, 3, True)
    assert near.private == f"{members[0].series.patient_id} and {members[2].series.patient_id} (1.0)"


def test_empty_cohort_triggers_no_rule(judge: Judge) -> None:
    assert met(judge([])) == set()


def test_small_hospital_triggers_the_rules_of_its_planted_defects(small_ingest: tuple[Site, Assessment]) -> None:
    site, assessment = small_ingest
    facts = Facts(site, Preprocessing(), assessment, site.cohort_folder / "tensors", [])
    results = {result.reason.code: result for result in contract(facts)}
    found = {finding.reason.code for finding in assessment.findings}
    beyond = {code for code, result in results.items() if result.is_met} - found
    assert beyond <= {"W_FEW_IN_SPLIT", "W_SMALL_LUNGS", "W_PREVALENCE"}, "expected for a small cohort"
    assert all(results[code].is_met for code in found)
    assert all(results[code].area for code in found)
    assert found <= BY_CODE.keys()


def test_numbers_are_quartiles_of_accepted_scans(site: Site) -> None:
    members = [member(f"{i}", POSITIVE, slice_mm=float(i), air_hu=None) for i in range(1, 6)]
    found = numbers(Facts(site, Preprocessing(), assessed(site, members), Path(), []))
    assert found["distance between slices, mm"] == {
        **{"scans": 5, "least": 1.0, "first quartile": 2.0, "median": 3.0, "third quartile": 4.0, "most": 5.0}
    }
    assert "air around the patient, HU" not in found
