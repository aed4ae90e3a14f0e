"""The played day notices a scan that was lost or answered twice."""

import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydicom import dcmread

from models.refusal import Refusal
from pipeline.clinic.records import Answer, Job
from pipeline.imaging.discovery import find_series
from pipeline.imaging.series_reader import read_series

if TYPE_CHECKING:
    from clinic_day import Played

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the benchmarks folder on `sys.path`: it is a folder of scripts, not a package."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2] / "benchmarks"), *sys.path])


def job(uid: str, **changes: object) -> Job:
    of = Job("job-" + uid, "answered", "received", "", NOW, Path(), Path(), ended_at=NOW, series_uid=uid, answer_id=uid)
    return replace(of, **changes)  # type: ignore[arg-type]


def answer(uid: str) -> Answer:
    return Answer(uid, "job-" + uid, NOW, "study-" + uid, uid, "", NOW, {}, "", "", "live", Path())


@pytest.fixture
def played() -> "Played":
    """One whole scan with an answer and a report, and one that was refused."""
    from clinic_day import Played
    from clinic_day_scans import Scan

    return Played(
        scans={"1": Scan(1, "whole", 8.0), "2": Scan(2, "no lungs", 9.0)},
        jobs=[job("1"), job("2", state="no_score", code="E_NO_LUNGS", answer_id=None)],
        answers=[answer("1")],
        reports=Counter({"study-1": 1}),
    )


def test_each_scan_ended_as_it_should(played: "Played") -> None:
    assert played.faults() == []
    played.jobs.append(job("1", id="again"))
    assert played.faults() == [], "a repeated scan that points to the same answer is no second answer"


@pytest.mark.parametrize("fault", ["lost", "refused", "doubled", "report lost", "report doubled", "answered", "two"])
def test_fault_is_found(played: "Played", fault: str) -> None:
    match fault:
        case "lost":
            played.jobs, played.answers = [], []
        case "refused":
            played.jobs[0] = job("1", state="no_score", code="E_DECODE", answer_id=None)
            played.answers = []
        case "doubled":
            played.answers.append(answer("1"))
        case "report lost":
            played.reports.clear()
        case "report doubled":
            played.reports["study-1"] = 2
        case "answered":
            played.answers.append(answer("2"))
        case "two":
            played.jobs.append(job("1", id="other", answer_id="other"))
    assert played.faults()


def test_each_kind_arrives_and_most_by_day() -> None:
    from clinic_day_scans import KINDS, plan

    scans = plan(100, seed=2)
    assert {scan.kind for scan in scans} == set(KINDS) and len(scans) == 100
    assert [scan.at_h for scan in scans] == sorted(scan.at_h for scan in scans)
    assert sum(7 <= scan.at_h < 19 for scan in scans) > 70


@pytest.mark.parametrize(
    ("kind", "code"), [("whole", ""), ("slices missing", "E_SLICE_GAP"), ("image cut short", "E_DECODE")]
)
def test_scan_is_valid_dicom_with_what_is_wrong_with_it(kind: str, code: str, tmp_path: Path) -> None:
    from clinic_day_scans import Scan, write

    files = write(Scan(3, kind, 8.0), tmp_path)  # type: ignore[arg-type]
    assert len({dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in files}) == len(files)
    for file in set(tmp_path.iterdir()) - set(files):
        file.unlink()  # of the slices that are missing
    found, findings = find_series(tmp_path)
    try:
        (series,) = found
        read_series(series)
    except Refusal as refusal:
        assert refusal.code == code
    else:
        assert code == "" and findings == []
