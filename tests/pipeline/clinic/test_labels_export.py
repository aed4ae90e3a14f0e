"""Tests of labels for the site's own next study: off by default, only what the node needs, and readable by the node."""

import csv
import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from federation.cli.clinic import app as clinic_commands
from models.refusal import Refusal
from pipeline.clinic.labels_export import COLUMNS, export_labels
from pipeline.clinic.settings import Clinic, init_clinic
from pipeline.records.labels import Label
from pipeline.site.folder import init_site
from pipeline.site.site_data import read_records
from pipeline.site.withdrawn import Withdrawn
from tests.pipeline.clinic.later_hospital import LaterHospital

LABELS_SITE = '[site]\nname = "next-study"\n[labels]\nfile = "{file}"\n'


@pytest.fixture
def hospital(tmp_path: Path) -> LaterHospital:
    made = LaterHospital.make(tmp_path)
    made.know(("P1", 3, None, 60), ("P2", None, None, 60), ("P3", None, None, 5))
    return made


def exported(hospital: LaterHospital, file: Path) -> dict[str, dict[str, str]]:
    export_labels(hospital.clinic, file, by="test")
    with file.open(newline="") as stream:
        return {row["patient_id"]: row for row in csv.DictReader(stream)}


def test_node_reads_the_labels_as_it_would_make_them(hospital: LaterHospital, tmp_path: Path) -> None:
    hospital.decided(hospital.scored("P1", level={"severe": "low"}), "corrected", "clinical", severe="high")
    hospital.scored("P2", pcr="negative")
    hospital.scored("P3")
    rows = exported(hospital, tmp_path / "labels.csv")
    assert {patient: (row["pcr_positive"], row["severe"]) for patient, row in rows.items()} == {
        "P1": ("1", "1"),
        "P2": ("0", "0"),
        "P3": ("1", ""),
    }
    assert [rows["P1"][name] for name in COLUMNS[3:]] == ["corrected", "clinical", "high"]
    assert stat.S_IMODE((tmp_path / "labels.csv").stat().st_mode) == 0o600
    site = init_site(tmp_path / "next", LABELS_SITE.format(file=tmp_path / "labels.csv"))
    records, findings = read_records(site)
    assert findings == []
    assert records.labels == {
        site.pseudonym("P1"): Label(True, True),
        site.pseudonym("P2"): Label(False, False),
        site.pseudonym("P3"): Label(True, None),
    }


def test_file_holds_no_more_than_the_node_needs(hospital: LaterHospital, tmp_path: Path) -> None:
    answer = hospital.scored("P1", 0.4321)
    exported(hospital, tmp_path / "labels.csv")
    text = (tmp_path / "labels.csv").read_text()
    assert text.splitlines()[0] == ",".join(COLUMNS)
    forbidden = ("CANARY", "2021", "0.43", "63", answer.id, answer.study_uid, answer.accession, "Leser", "WARD")
    assert not any(each in text for each in forbidden)
    with hospital.clinic.store() as store:
        last = store.audit.records()[-1]
    assert (last.who, last.action) == ("test", "export_labels")
    assert last.output is not None and last.output["patients"] == 1
    assert "P1" not in json.dumps(last.to_json())


def test_scans_that_must_teach_nothing_are_left_out(hospital: LaterHospital, tmp_path: Path) -> None:
    hospital.decided(hospital.scored("P1"), "rejected", "wrong_scan")
    hospital.scored("P2", pcr="indeterminate")
    hospital.scored("P3", issuer="ELSEWHERE")
    hospital.scored("")
    hospital.scored("P4")
    hospital.scored("P5\r6")
    Withdrawn(hospital.site).add([hospital.site.pseudonym("P4")])
    done = export_labels(hospital.clinic, tmp_path / "labels.csv", by="test")
    assert (tmp_path / "labels.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert (done.patients, sum(done.left_out.values())) == (0, 6)


def test_scan_after_the_event_does_not_get_the_label_of_the_one_before(hospital: LaterHospital, tmp_path: Path) -> None:
    """The file has one label for each patient; with two different ones, neither would be right for both scans."""
    hospital.scored("P1")
    hospital.scored("P1", days=5)  # two days after the intubation
    hospital.scored("P2")
    hospital.scored("P2", days=1)
    assert exported(hospital, tmp_path / "labels.csv").keys() == {"P2"}


def test_pcr_of_another_day_is_no_label(hospital: LaterHospital, tmp_path: Path) -> None:
    answer = hospital.scored("P1", pcr=None)
    assert answer.acquired_at is not None
    with hospital.clinic.store() as store:
        day = answer.acquired_at.date().replace(day=28)
        store.answers.set_pcr(answer.id, "positive", day, "entered", "test")
    assert exported(hospital, tmp_path / "labels.csv") == {}


def test_export_is_off_by_default_and_refused_where_it_could_mislead(tmp_path: Path) -> None:
    def code(clinic: Clinic, file: Path = tmp_path / "labels.csv") -> str:
        with pytest.raises(Refusal) as refusal:
            export_labels(clinic, file, by="test")
        return refusal.value.code

    assert code(init_clinic(tmp_path / "new")) == "E_LABELS_OFF"
    (tmp_path / "a").mkdir()
    hospital = LaterHospital.make(tmp_path / "a")
    assert code(hospital.clinic) == "E_TABLE_FILE"  # outcomes cannot be read: nobody counts as not severe
    hospital.know(("P1", 3, None, 60))
    (tmp_path / "exists.csv").write_text("mine")
    assert code(hospital.clinic, tmp_path / "exists.csv") == "E_LABELS_FILE"
    assert (tmp_path / "exists.csv").read_text() == "mine"
    (tmp_path / "link.csv").symlink_to(tmp_path / "labels.csv")  # which does not exist
    assert code(hospital.clinic, tmp_path / "link.csv") == "E_LABELS_FILE"
    alone = Clinic.open(tmp_path / "new")
    alone.settings.labels.export = True
    assert code(alone) == "E_LABELS_NO_NODE"
    assert not (tmp_path / "labels.csv").exists()


def test_command_says_what_it_exported(hospital: LaterHospital, tmp_path: Path) -> None:
    hospital.scored("P1")
    file = tmp_path / "labels.csv"
    result = CliRunner().invoke(clinic_commands, ["export-labels", str(hospital.clinic.folder), str(file)])
    assert result.exit_code == 0, result.output
    assert "Labels of 1 patient, 1 with a known course" in result.output and "P1" not in result.output
