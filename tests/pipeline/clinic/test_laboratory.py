"""Tests of the PCR result shown with an answer: read from the site's laboratory feed, by the site's rules."""

import logging
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.clinic import laboratory
from pipeline.clinic.labels_export import export_labels
from pipeline.clinic.laboratory import Feed, open_feed
from pipeline.clinic.records import Pcr
from pipeline.clinic.records import PcrResult as Result
from pipeline.clinic.worker import Worker
from pipeline.records.laboratory.times import Clock
from pipeline.site.folder import init_site
from tests.pipeline.clinic.later_hospital import LaterHospital

SCAN = date(2021, 3, 10)
SITE = """
[site]
name = "synthetic"
issuer = "{issuer}"
[laboratory]
file = "{file}"
[outcomes]
file = "outcomes.csv"
date_format = "%Y-%m-%d"
"""


class Hospital:
    """A site whose laboratory feed has these rows: (patient, days from the scan, result)."""

    def __init__(
        self, folder: Path, *rows: tuple[str, int, str], file: str = "laboratory.csv", issuer: str = ""
    ) -> None:
        self.folder = folder
        init_site(folder, SITE.format(file=file, issuer=issuer))
        self.write(*rows)

    def write(self, *rows: tuple[str, int, str]) -> None:
        lines = [f"{patient},{SCAN + timedelta(days=days)}T08:00,{result}" for patient, days, result in rows]
        (self.folder / "laboratory.csv").write_text("\n".join(["patient_id,collected,result", *lines]) + "\n")

    def find(self, patient: str = "0042", issuer: str = "") -> tuple[str, int] | None:
        """The result, and its day relative to the scan."""
        feed = open_feed(self.folder)
        pcr = feed.find(patient, issuer, SCAN) if feed else None
        if pcr is None:
            return None
        assert pcr.source == "laboratory" and pcr.collected_on is not None
        return pcr.result, (pcr.collected_on - SCAN).days


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([("0042", -3, "positive")], ("positive", -3)),
        ([("0042", -7, "detected"), ("0042", 1, "Detected"), ("0042", -2, "negative")], ("positive", 1)),
        ([("0042", 5, "negative"), ("0042", -1, "not detected")], ("negative", -1)),
        ([("0042", 0, "inconclusive")], ("indeterminate", 0)),
        ([("0042", -6, "inconclusive")], ("indeterminate", -6)),
        ([("0042", -8, "positive")], None),  # outside the positive window, but too near to be sure of a negative
        ([("0042", 1, "negative"), ("0042", 12, "positive")], None),
        ([("0042", -1, "negative"), ("0042", -1, "positive")], None),  # one specimen that is both negative and positive
        ([("0042", 8, "negative")], None),
        ([("42", -1, "positive")], None),  # leading zeros are significant
        ([], None),
    ],
)
def test_pcr_result_is_the_one_that_would_label_the_scan(
    tmp_path: Path, rows: list[tuple[str, int, str]], found: tuple[str, int] | None
) -> None:
    assert Hospital(tmp_path / "site", *rows).find() == found


def test_unreadable_row_rules_out_a_negative_result(tmp_path: Path) -> None:
    others = [(f"other-{number}", 0, "negative") for number in range(9)]
    hospital = Hospital(tmp_path / "site", ("0042", 0, "negative"), ("0042", 0, "see the letter"), *others)
    assert hospital.find() is None
    assert hospital.find("other-1") == ("negative", 0)


def test_time_windows_come_from_the_site_settings(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path / "site", ("0042", -9, "positive"))
    with (hospital.folder / "site.toml").open("a") as file:
        file.write("[join]\npositive_from_days = -10\n")
    assert hospital.find() == ("positive", -9)


def test_identifier_of_another_issuer_is_another_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hospital = Hospital(tmp_path / "site", ("0042", 0, "positive"), issuer="HOSPITAL")
    assert [hospital.find(issuer=issuer) for issuer in ("", "HOSPITAL")] == [("positive", 0)] * 2
    assert hospital.find(issuer="OTHER") is None
    assert "E_ISSUER" in caplog.text
    assert hospital.find("") is None


@pytest.mark.parametrize(
    ("time_zone", "at", "day"),
    [
        ("America/Los_Angeles", datetime(2021, 3, 10, 1, 30, tzinfo=UTC), date(2021, 3, 9)),
        ("Europe/Paris", datetime(2021, 3, 10, 23, 30, tzinfo=UTC), date(2021, 3, 11)),
        ("Europe/Paris", datetime(2021, 3, 10, 23, 30), date(2021, 3, 10)),
        ("", datetime(2021, 3, 10, 23, 30), date(2021, 3, 10)),
        ("", datetime(2021, 3, 10, 23, 30, tzinfo=UTC), date(2021, 3, 10)),
    ],
)
def test_day_of_a_scan_is_the_one_at_the_site(tmp_path: Path, time_zone: str, at: datetime, day: date | None) -> None:
    feed = open_feed(Hospital(tmp_path / "site").folder)
    assert feed is not None
    assert replace(feed, clock=Clock.of(time_zone)).day_of(at) == day


def test_feed_is_read_again_only_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, read = [], laboratory.read_pcr
    monkeypatch.setattr(laboratory, "read_pcr", lambda *a, **o: reads.append(1) or read(*a, **o))
    hospital = Hospital(tmp_path / "site", ("0042", 0, "negative"))
    assert [hospital.find(), hospital.find("other"), hospital.find()] == [("negative", 0), None, ("negative", 0)]
    assert len(reads) == 1
    hospital.write(("0042", 0, "negative"), ("0042", 1, "positive"))
    assert hospital.find() == ("positive", 1)
    assert len(reads) == 2


def test_missing_or_broken_feed_gives_no_result_and_logs_its_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = Hospital(tmp_path / "missing", file="nowhere.csv")
    broken = Hospital(tmp_path / "broken", ("0042", 0, "CANARY"))
    with caplog.at_level(logging.DEBUG):
        assert open_feed(missing.folder) is None
        assert open_feed(broken.folder) is None and open_feed(broken.folder) is None
        assert open_feed(tmp_path / "no-site") is None
    codes = [record.args[0] for record in caplog.records if record.name == "fedthorax.clinic" and record.args]
    assert codes == ["E_TABLE_FILE", "E_PCR_UNMAPPED", "E_PCR_UNMAPPED", "E_NO_SITE"]
    assert not any(word in caplog.text for word in ("CANARY", "0042", str(tmp_path)))


def test_site_with_its_own_labels_has_no_laboratory(tmp_path: Path) -> None:
    init_site(tmp_path / "site", '[site]\nname = "synthetic"\n[labels]\nfile = "labels.csv"\n')
    assert open_feed(tmp_path / "site") is None


# --- looked up again --------------------------------------------------------------------------------------

NEGATIVE, POSITIVE = ("2021-03-04", "not detected"), ("2021-03-05", "detected")


class Ward:
    """A clinic with a node, and one answer without a PCR result. `look` plays a worker's lookup."""

    def __init__(self, folder: Path) -> None:
        self.hospital = LaterHospital.make(folder)
        self.answer = self.hospital.scored("P1", pcr=None)
        self.report()

    def report(self, *specimens: tuple[str, str]) -> None:
        """Write the laboratory's file: day and result of each specimen of the patient."""
        lines = [f"P1,{day}T08:00,{result}" for day, result in specimens]
        file = self.hospital.site.folder / "laboratory.csv"
        file.write_text("\n".join(["patient_id,collected,result", *lines]) + "\n")

    def look(self) -> str | None:
        """Return the answer's result after the worker has looked it up."""
        with self.hospital.clinic.store() as store:
            Worker(self.hospital.clinic, store).look_for_pcr()
            pcr = store.answers.get(self.answer.id).pcr
        return pcr and pcr.result

    def enter(self, result: Result) -> None:
        with self.hospital.clinic.store() as store:
            store.answers.set_pcr(self.answer.id, result, None, "entered", "night desk")

    def recorded(self) -> list[tuple[str, str | None]]:
        """Return who changed the result to what, from the audit records."""
        with self.hospital.clinic.store() as store:
            records = [each for each in store.audit.records() if each.action == "pcr"]
        return [(each.who, (each.output or {})["result"]) for each in records]


@pytest.fixture
def ward(tmp_path: Path) -> Ward:
    return Ward(tmp_path)


@pytest.mark.parametrize(
    ("first", "result"),
    [(NEGATIVE, "negative"), (("2021-03-04", "inconclusive"), "indeterminate")],
    ids=lambda x: x[-1],
)
def test_later_specimen_replaces_the_first_result(ward: Ward, first: tuple[str, str], result: str) -> None:
    ward.report(first)
    assert ward.look() == result
    ward.report(first, POSITIVE)
    assert ward.look() == "positive"
    with ward.hospital.clinic.store() as store:
        assert store.answers.get(ward.answer.id).pcr == Pcr("positive", date(2021, 3, 5), "laboratory", "laboratory")
    assert ward.recorded() == [("laboratory", result), ("laboratory", "positive")]


def test_label_of_the_next_study_follows_the_later_specimen(ward: Ward, tmp_path: Path) -> None:
    ward.hospital.know()
    for number, specimens in enumerate([(NEGATIVE,), (NEGATIVE, POSITIVE)]):
        ward.report(*specimens)
        ward.look()
        file = tmp_path / f"labels-{number}.csv"
        export_labels(ward.hospital.clinic, file, by="test")
        assert file.read_text().splitlines()[1].split(",")[:2] == ["P1", str(number)]


def test_positive_result_stays_and_is_written_once(ward: Ward) -> None:
    ward.report(POSITIVE)
    assert [ward.look(), ward.look()] == ["positive", "positive"]
    ward.report(POSITIVE, ("2021-03-06", "not detected"))  # by the node's rules the scan stays positive
    assert ward.look() == "positive"
    assert ward.recorded() == [("laboratory", "positive")]


@pytest.mark.parametrize("specimens", [(POSITIVE,), ()], ids=["positive", "none"])
def test_entered_result_stays_whatever_the_laboratory_says(ward: Ward, specimens: tuple[tuple[str, str], ...]) -> None:
    ward.report(NEGATIVE)
    ward.look()
    ward.enter("indeterminate")
    ward.report(*specimens)
    assert ward.look() == "indeterminate"
    assert ward.recorded() == [("laboratory", "negative"), ("night desk", "indeterminate")]


@pytest.mark.parametrize("was_known", [True, False], ids=["result", "no result"])
def test_result_entered_during_the_lookup_stays(ward: Ward, monkeypatch: pytest.MonkeyPatch, was_known: bool) -> None:
    if was_known:
        ward.report(NEGATIVE)
        ward.look()
    ward.report(NEGATIVE, POSITIVE)
    find = Feed.find

    def find_slowly(*arguments: object) -> Pcr | None:
        ward.enter("indeterminate")
        return find(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Feed, "find", find_slowly)
    assert ward.look() == "indeterminate"
    assert ward.recorded()[-1] == ("night desk", "indeterminate")


def test_withdrawn_result_is_taken_back(ward: Ward) -> None:
    ward.report(POSITIVE)
    assert ward.look() == "positive"
    ward.report()
    assert [ward.look(), ward.look()] == [None, None]
    assert ward.recorded() == [("laboratory", "positive"), ("laboratory", None)]


def test_feed_that_cannot_be_read_takes_nothing_back(ward: Ward) -> None:
    ward.report(POSITIVE)
    ward.look()
    (ward.hospital.site.folder / "laboratory.csv").unlink()
    assert ward.look() == "positive"
    ward.report(("2021-03-04", "CANARY"))
    assert ward.look() == "positive"
    assert ward.recorded() == [("laboratory", "positive")]
