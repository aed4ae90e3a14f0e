"""Tests of the PCR result shown with an answer: read from the site's laboratory feed, by the site's rules."""

import logging
from datetime import date, timedelta
from pathlib import Path

import pytest

from pipeline.clinic import laboratory
from pipeline.clinic.laboratory import find_pcr
from pipeline.site.folder import init_site

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
        pcr = find_pcr(patient, issuer, SCAN, self.folder)
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
        assert missing.find() is None
        assert broken.find() is None and broken.find() is None
        assert find_pcr("0042", "", SCAN, tmp_path / "no-site") is None
    codes = [record.args[0] for record in caplog.records if record.name == "fedthorax.clinic" and record.args]
    assert codes == ["E_TABLE_FILE", "E_PCR_UNMAPPED", "E_PCR_UNMAPPED", "E_NO_SITE"]
    assert not any(word in caplog.text for word in ("CANARY", "0042", str(tmp_path)))


def test_site_with_its_own_labels_has_no_laboratory(tmp_path: Path) -> None:
    init_site(tmp_path / "site", '[site]\nname = "synthetic"\n[labels]\nfile = "labels.csv"\n')
    assert find_pcr("0042", "", SCAN, tmp_path / "site") is None
