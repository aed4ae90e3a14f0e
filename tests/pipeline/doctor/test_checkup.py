"""The whole check of a site: finds planted defects, continues after unreadable parts, and changes nothing."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from models.refusal import Refusal
from pipeline.cohort.ingest import Assessment
from pipeline.cohort.store import Cohort
from pipeline.doctor import environment
from pipeline.doctor.checkup import Checkup, check
from pipeline.doctor.page import render
from pipeline.preprocessing.preprocess_settings import Preprocessing, settings_digest
from pipeline.site.folder import Site
from tests.helpers.own import CLEAN, Own, quietly, truth_of

SETTINGS = Preprocessing()


def checked(site: Site, truth: Path | None = None) -> Checkup:
    return check(site, SETTINGS, quietly, truth=truth)


def status(of: Checkup) -> dict[str, str]:
    return {line.name: line.status for line in of.lines}


@pytest.fixture(scope="module")
def small_checkup(small_ingest: tuple[Site, Assessment], small_hospital: Path) -> Checkup:
    return checked(small_ingest[0], small_hospital / "truth.json")


def test_planted_defects_are_found_and_nothing_else(small_checkup: Checkup, small_hospital: Path) -> None:
    verdict = small_checkup.verdict
    assert verdict is not None
    assert verdict.planted == verdict.found == len(truth_of(small_hospital)["defects"])
    assert (verdict.missed, verdict.unexpected, verdict.precision, verdict.recall) == ([], [], 1.0, 1.0)


def test_verdict_lists_missed_and_unexpected_defects(
    small_ingest: tuple[Site, Assessment], small_hospital: Path, tmp_path: Path
) -> None:
    defects = truth_of(small_hospital)["defects"]
    changed = [{**each, "code": "E_OTHER"} if each["code"] == "E_TILT" else each for each in defects]
    (tmp_path / "truth.json").write_text(json.dumps({"defects": changed}))
    verdict = checked(small_ingest[0], tmp_path / "truth.json").verdict
    assert verdict is not None
    assert (verdict.missed, verdict.unexpected) == (["E_OTHER"], ["E_TILT"])
    assert verdict.precision == verdict.recall == pytest.approx(1 - 1 / len(defects))


def test_json_is_consistent_and_contains_no_identifiers(
    small_checkup: Checkup, small_ingest: tuple[Site, Assessment]
) -> None:
    content = small_checkup.to_json()
    text = json.dumps(content)
    assert content["waterfall"]["count"] == sum(part["count"] for part in content["waterfall"]["parts"])
    assert content["patients"] == len(small_ingest[1].patients)
    assert not any(patient.pseudonym in text for patient in small_ingest[1].patients)
    assert str(small_ingest[0].folder) not in text
    assert "see comment" not in text, "the unmapped word appears on the site's own screen only"
    assert any("see comment" in result.private for result in small_checkup.contract)
    assert {each["rule"] for each in content["windows"]} == {
        "positive_from_days",
        "positive_to_days",
        "negative_to_days",
    }
    now = [v for v in content["windows"] if (v["rule"], v["days"]) == ("positive_to_days", 2)]
    assert [(v["positive"], v["negative"]) for v in now] == [
        (content["pcr_positive"], content["patients"] - content["pcr_positive"])
    ]


def test_refused_single_scans_do_not_refuse_the_site(small_checkup: Checkup) -> None:
    assert not small_checkup.is_refused
    assert small_checkup.to_json()["refused"] is False


def test_check_does_not_change_the_cohort(own: Own) -> None:
    own.add(*CLEAN[:2])
    before = own.ingest().patients
    own.add(CLEAN[2])
    result = checked(own.site)
    assert result.assessment is not None and len(result.assessment.patients) == 3
    with Cohort(own.site) as cohort:
        assert cohort.patients() == sorted(before, key=lambda patient: patient.pseudonym)
    assert own.ingest().examined_now == 0, "ingest reuses the results of the check"


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lambda folder: (folder / "laboratory.csv").unlink(), "laboratory and outcomes"),
        (lambda folder: (folder / "outcomes.csv").write_text("id;day\n"), "laboratory and outcomes"),
        (lambda folder: shutil.rmtree(folder / "ct"), "scans"),
        (lambda folder: (shutil.rmtree(folder / "ct"), (folder / "ct").mkdir()), "scans"),
    ],
)
def test_unreadable_part_fails_its_line_and_the_rest_is_still_checked(
    own: Own,
    spoil: Callable[[Path], object],
    name: str,
) -> None:
    own.add(*CLEAN[:2])
    spoil(own.folder)
    result = checked(own.site)
    assert status(result)[name] == "fail"
    assert result.is_refused
    assert (result.assessment is None) == (name == "scans")
    if result.assessment is not None:
        assert result.assessment.waterfall.count == 2, "scans are checked even without laboratory results"
        assert result.assessment.patients == []
    assert str(own.folder) not in render(result, datetime(2026, 1, 1))


def test_site_without_fetched_scans_is_told_to_run_node_pull(
    own: Own,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (own.site.folder / "site.toml").read_text()
    pacs = '[pacs]\nprotocol = "dicomweb"\n[pacs.dicomweb]\nurl = "http://127.0.0.1:1/dicom-web"\n'
    (own.site.folder / "site.toml").write_text(text + pacs)
    monkeypatch.setattr("pipeline.doctor.connectivity.count_at_pacs", lambda site: (5, 0))
    result = checked(Site.open(own.site.folder))
    assert status(result)["scans"] == "skip"
    assert status(result)["laboratory"] == status(result)["PACS"] == "ok"
    assert status(result)["fetched"] == "warn"
    (scans,) = [line for line in result.lines if line.name == "scans"]
    assert "E_NOTHING_PULLED" in scans.says
    assert "fedthorax node pull" in scans.remedy
    assert not result.is_refused


def test_full_disk_is_reported_before_anything_is_written(
    own: Own,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own.add(CLEAN[0])
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    result = checked(own.site)
    assert status(result)["disk"] == "fail"
    assert result.assessment is None
    assert list((own.site.cohort_folder / "tensors").iterdir()) == []


def test_series_that_is_examined_again_is_counted_as_one_to_prepare(own: Own) -> None:
    """Of two known series, the examination of one failed for want of memory: the check itself examines it again."""
    own.add(*CLEAN[:2])
    own.ingest()
    with Cohort(own.site) as cohort:
        failed, _ = cohort.scans(settings_digest(SETTINGS)).values()
        cohort.add_scan(replace(failed, code="E_EXAMINE_MEMORY", says="no memory", tensor=None, measures=None))
    result = checked(own.site)
    (disk,) = [line for line in result.lines if line.name == "disk"]
    assert "1 series to prepare" in disk.detail
    assert result.assessment is not None
    assert result.assessment.examined_now == 1
    (disk,) = [line for line in checked(own.site).lines if line.name == "disk"]
    assert "0 series to prepare" in disk.detail


def test_concurrent_check_is_refused(own: Own) -> None:
    own.add(CLEAN[0])
    with Cohort(own.site) as cohort, cohort.alone(), pytest.raises(Refusal) as caught:
        checked(own.site)
    assert caught.value.code == "E_COHORT_BUSY"


def test_few_patients_are_a_warning_and_no_refusal(own: Own) -> None:
    own.add(CLEAN[0])
    result = checked(own.site)
    assert status(result)["size"] == "warn"
    assert not result.is_refused
