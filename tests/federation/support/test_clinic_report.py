"""The report on a clinic full of patients' data holds none of it, wherever and however it was planted."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from typer.testing import CliRunner

from federation.cli.main import app
from models.refusal import Refusal
from pipeline.clinic.database import FILE
from pipeline.clinic.reasons import CLINIC_BUSY, SCORING_DIED
from pipeline.clinic.records import Patient
from pipeline.clinic.settings import LOCK, init_clinic
from pipeline.clinic.store import Store, new_id
from pipeline.system.folder_format import FILE as STAMP
from pipeline.system.locks import alone
from tests.federation.support.planted import (
    BIRTH,
    FAMILY,
    FORMS,
    GIVEN,
    IDENTIFIER,
    NAME,
    SENTENCE,
    UID,
    assert_nothing_planted,
    assert_planted,
    traceback_of,
)

SETTINGS = f"""\
# {SENTENCE}
[server]
host = "{FAMILY}.{GIVEN}.example"
without_tls = true
session_hours = 44.01728395566
viewer_url = "https://{FAMILY}.example/{{study_uid}}"
[results]
send = "accepted"
by = "c-store"
organization = "{NAME}"
host = "{IDENTIFIER}.example"
called_aet = "{FAMILY.upper()}"
calling_aet = "{IDENTIFIER}"
user = "{NAME}"
password_file = "/srv/pacs/{NAME}"
timeout_seconds = {IDENTIFIER}
[pacs]
protocol = "dimse"
[pacs.dimse]
host = "{FAMILY}"
port = 104
called_aet = "{FAMILY} {GIVEN}"
[pacs.filters]
from_date = 1948-03-02
body_parts = ["{NAME}"]
accessions = "{UID}"
[receiver]
pacs_aet = "{BIRTH}"
"""


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """A clinic in a folder with a patient's name. Its settings, scans, file names and database hold planted data."""
    folder = tmp_path / NAME / "clinic"
    init_clinic(folder)
    (folder / "clinic.toml").write_text(SETTINGS)
    (folder / STAMP).write_text(json.dumps({"format": 1, "software": NAME}))
    _write_scan(folder / "scans" / NAME / f"{UID}.dcm")
    _write_scan(folder / "received" / IDENTIFIER / f"{FAMILY}.dcm")
    for name in (f"{NAME}.log", f"worker.log.{BIRTH}", f"service.log.{NAME}"):
        (folder / "logs" / name).write_text(SENTENCE)
    for name in ("answers", "models", "work"):
        (folder / name / UID).mkdir()
        (folder / name / UID / f"{NAME}.json").write_text(SENTENCE)
    for log in ("service.log", "service.log.1", "worker.log"):
        (folder / "logs" / log).write_text(traceback_of(SENTENCE))
    return folder


def _write_scan(path: Path) -> None:
    image = dcmread(str(get_testdata_file("CT_small.dcm")))
    image.PatientName, image.PatientID, image.PatientBirthDate = NAME, IDENTIFIER, BIRTH
    image.StudyInstanceUID, image.StationName, image.RetrieveAETitle = UID, FAMILY, FAMILY.upper()
    path.parent.mkdir(parents=True)
    image.save_as(path)


def _plant_in_every_column(folder: Path) -> None:
    """Write planted text to every column of every table, also where the program writes only states and codes."""
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in _rows(db, table):
                db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _rows(db: sqlite3.Connection, table: str) -> Iterator[list[Any]]:
    """Yield rows for a table; the duration of a score is a number that is an identifier."""
    columns = [(name, kind) for _, name, kind, *_ in db.execute(f"PRAGMA table_info({table})").fetchall()]
    score = json.dumps({"timing_seconds": {"total": int(IDENTIFIER), NAME: SENTENCE}, "patient": SENTENCE})
    fixed = {"score": score} | ({"role": "live"} if table == "answers" else {})
    for number, text in enumerate((NAME, IDENTIFIER, f"E_{FAMILY.upper()}", SENTENCE), 1):
        yield [fixed.get(name, number if kind == "INTEGER" else text) for name, kind in columns]


def report_on(folder: Path, tmp_path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the report that the command writes, after a search in it and in what the command prints."""
    file = tmp_path / "report.json"
    file.unlink(missing_ok=True)
    result = CliRunner().invoke(app, ["clinic", "support-report", str(folder), str(file)])
    assert result.exit_code == 0, result.output
    assert "Read it before you send it" in result.output and NAME not in result.output
    written = file.read_bytes()
    assert_nothing_planted(json.loads(written))
    assert file.stat().st_mode & 0o777 == 0o600
    return written, json.loads(written)


def test_nothing_of_a_patient_is_in_the_report(clinic: Path, tmp_path: Path) -> None:
    _plant_in_every_column(clinic)
    assert_planted(clinic)
    written, report = report_on(clinic, tmp_path)
    assert str(tmp_path).encode() not in written
    assert report["last_version"] == report["service"]["worker"] == "other"
    assert report["scans"]["states"] == {"other": 4}
    assert report["scans"]["mean_seconds"]["total"] == "(large)"


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_a_log_is_in_the_report(form: str, clinic: Path, tmp_path: Path) -> None:
    for log in ("service.log", "service.log.1", "worker.log"):
        (clinic / "logs" / log).write_bytes(b"2026-11-29 12:00:00,000 E_DISK " + FORMS[form] + b"\n" + FORMS[form])
    _, report = report_on(clinic, tmp_path)
    assert set(report["logs"]) == {"service.log", "service.log.1", "worker.log"}
    assert report["logs"]["worker.log"]["codes"]["E_DISK"] == 1


@pytest.mark.parametrize(
    "text",
    [f'"{NAME}" = 1', f"[results]\nsend = '{NAME}'", f"no toml: {SENTENCE}", f"[results]\nport = '{IDENTIFIER}'"],
)
def test_report_on_wrong_settings_says_only_their_code(text: str, clinic: Path, tmp_path: Path) -> None:
    (clinic / "clinic.toml").write_text(text)
    _, report = report_on(clinic, tmp_path)
    assert report["settings"]["problem"] in ("E_SETTINGS_KEY", "E_SETTINGS_SYNTAX")
    assert report["databases"][FILE]["intact"]


def test_report_is_made_of_a_damaged_database(clinic: Path, tmp_path: Path) -> None:
    (clinic / FILE).write_bytes(SENTENCE.encode() * 99)
    _, report = report_on(clinic, tmp_path)
    assert report["databases"][FILE] == report["scans"] == {"problem": "DatabaseError"}
    (clinic / FILE).unlink()
    _, report = report_on(clinic, tmp_path)
    assert report["scans"] == {"problem": "OperationalError"} and not (clinic / FILE).exists()


def test_report_counts_what_helps(clinic: Path, tmp_path: Path) -> None:
    with Store(clinic) as store:
        for _ in range(2):
            store.jobs.add(new_id(), source="pacs", asked_by=NAME, study_uid=UID, patient=Patient(IDENTIFIER, NAME))
        job = store.jobs.take()
        assert job
        store.jobs.refuse(job, Refusal(SCORING_DIED, attempts=3), patient=Patient(IDENTIFIER, NAME))
        store.worker.set("no_model", "E_MODEL_FILE")
        with alone(clinic / LOCK, CLINIC_BUSY):  # as while the service runs
            _, report = report_on(clinic, tmp_path)
    assert report["scans"]["states"] == {"no_score": 1, "waiting": 1}
    assert report["scans"]["no_score"] == {"E_SCORING_DIED": 1}
    assert report["service"]["worker"] == "no_model" and report["service"]["running"]
    assert report["settings"]["results"]["send"] == "accepted"
    assert report["settings"]["results"]["called_aet"] == report["settings"]["pacs"]["filters"]["from_date"] == "(set)"
    assert report["settings"]["results"]["timeout_seconds"] == "(large)"
    log = report["logs"]["worker.log"]
    assert log["codes"] == {"E_PACS_SILENT": 1} and log["latest"] == ["E_PACS_SILENT"]
    assert log["exceptions"] == {"InvalidDicomError": 1, "ValueError": 1}
    assert log["places"] == {"pipeline/clinic/worker.py:100": 1}
    assert any("torch" in line for line in report["environment"])


def test_report_changes_nothing(clinic: Path, tmp_path: Path) -> None:
    def content() -> dict[str, bytes]:
        files = (path for path in clinic.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal")))
        return {str(path): path.read_bytes() for path in files}

    before = content()
    report_on(clinic, tmp_path)
    assert content() == before


def test_no_report_overwrites_a_file_or_is_made_of_no_clinic(clinic: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("mine")
    run = CliRunner().invoke
    there = run(app, ["clinic", "support-report", str(clinic), str(file)])
    assert isinstance(there.exception, Refusal) and there.exception.code == "E_ARCHIVE_EXISTS"
    assert file.read_text() == "mine"
    missing = run(app, ["clinic", "support-report", str(tmp_path / "nowhere"), str(tmp_path / "new.json")])
    assert isinstance(missing.exception, Refusal) and missing.exception.code == "E_NO_CLINIC"
