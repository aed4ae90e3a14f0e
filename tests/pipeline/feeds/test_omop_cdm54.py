"""Outcomes from the tables of OMOP CDM 5.4 in a real PostgreSQL, for node and clinic. All data are synthetic."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pg8000.native
import pytest

from federation.system.process import LOOPBACK, free_port
from pipeline.clinic.labels_export import export_labels
from pipeline.clinic.later_outcomes import later_outcomes
from pipeline.clinic.local_audit import local_audit
from pipeline.feeds.omop_fetch import fetch_omop
from pipeline.records.outcomes import Outcome, read_outcomes
from pipeline.site.folder import Site, init_site
from tests.helpers.cdm54 import Cdm54
from tests.helpers.postgres import start_postgres
from tests.pipeline.clinic.later_hospital import LaterHospital

pytestmark = pytest.mark.slow

TODAY = date(2020, 7, 1)
VISIT_END = date(2020, 5, 10)
CONCEPTS = {
    1: ("SNOMED", "112798008"), 2: ("OPS", "8-701"), 3: ("OPS", "8-852.00"), 4: ("ICD10GM", "Z99.1"),
    5: ("SNOMED", "706172005"), 6: ("OPS", "8-714.0"), 7: ("Visit", "OMOP4822460"), 8: ("UB04 Pt dis status", "20"),
    9: ("SNOMED", "444932008"), 10: ("CCAM", "GLLD008"),
}  # fmt: skip
SITE = """
[site]
name = "synthetic"
issuer = "WARD"
time_zone = "Europe/Berlin"
[omop]
host = "127.0.0.1"
port = {port}
database = "postgres"
user = "reader"
password_file = "{folder}/password"
cdm_schema = "{schema}"
[laboratory]
file = "laboratory.csv"
"""
OUTCOMES = """[outcomes]
format = "omop"
from_date = 2020-03-01
max_unmapped_percent = 60
[outcomes.codes]
intubated = ["ops|8-701", "ops|8-852*", "sct|112798008", "sct|706172005", "icd-10-gm|Z99.1", "ccam|GLLD*"]
icu = ["visit|OMOP4822460"]
died = ["discharge|79", "ub04|20"]
watched = ["ops|8-71*"]
[outcomes.codes.systems]
ub04 = ["UB04 Pt dis status"]
"""


def fill(cdm: Cdm54) -> None:
    """Fill the tables: person 1 is patient 0001, and so on; each was in the hospital from April 1 to May 10, 2020."""
    for concept, (vocabulary, code) in CONCEPTS.items():
        valid = {"valid_start_date": date(1970, 1, 1), "valid_end_date": date(2099, 12, 31)}
        cdm.add("concept", concept_id=concept, vocabulary_id=vocabulary, concept_code=code, **valid)
    for person in range(1, 17):
        cdm.add("person", person_id=person, person_source_value=f"{person:04}")
        if person not in (10, 11, 12):
            visit(cdm, person)

    # 1: two visits; the first event is in the second, and the stay in intensive care in a detail of it.
    visit(cdm, 1, date(2020, 5, 20), date(2020, 6, 9))
    dated = {"visit_detail_start_date": date(2020, 5, 22), "visit_detail_end_date": date(2020, 5, 30)}
    cdm.add("visit_detail", person_id=1, visit_detail_concept_id=7, **dated)
    for day in (25, 23):
        procedure(cdm, 1, date(2020, 5, day), procedure_concept_id=1)
    # 2 to 5: extracorporeal oxygenation; a ventilator as a device; a diagnosis as an observation; a French procedure.
    procedure(cdm, 2, date(2020, 4, 6), procedure_source_concept_id=3, procedure_source_value="8-852.00")
    cdm.add("device_exposure", person_id=3, device_concept_id=5, device_exposure_start_date=date(2020, 4, 7))
    observed = {"observation_concept_id": 9, "observation_source_concept_id": 4, "observation_source_value": "Z99.1"}
    cdm.add("observation", person_id=4, observation_date=date(2020, 4, 8), **observed)
    procedure(cdm, 5, date(2020, 4, 9), procedure_source_concept_id=10)
    # 6, 7: no concept for a code of the table, and for a code of the hospital's own. 8: in a watched range.
    procedure(cdm, 6, date(2020, 4, 10), procedure_source_value=" 8-701 ")
    procedure(cdm, 7, date(2020, 4, 10), procedure_source_value="VENT-7")
    procedure(cdm, 8, date(2020, 4, 10), procedure_source_concept_id=6, procedure_source_value="8-714.0")
    # 9: a death whose time is unknown. 13: the time is in UTC, the day is that of the hospital. 14: two deaths.
    cdm.add("death", person_id=9, death_date=date(2020, 4, 30))
    cdm.add("death", person_id=13, death_date=date(2020, 5, 1), death_datetime=datetime(2020, 4, 30, 22, 30))
    for day in (1, 2):
        cdm.add("death", person_id=14, death_date=date(2020, 5, day))
    # 10 to 12: a discharge by source value, by concept; a stay that goes on.
    visit(cdm, 10, discharged_to_source_value="79", discharged_to_concept_id=0)
    visit(cdm, 11, discharged_to_concept_id=8)
    visit(cdm, 12, end=date(2099, 12, 31))
    # 15: an earlier illness.
    procedure(cdm, 15, date(2019, 4, 9), procedure_concept_id=1)


def visit(cdm: Cdm54, person: int, start: date = date(2020, 4, 1), end: date = VISIT_END, **values: Any) -> None:
    values = {"visit_concept_id": 9201, "visit_start_date": start, "visit_end_date": end, **values}
    cdm.add("visit_occurrence", person_id=person, **values)


def procedure(cdm: Cdm54, person: int, at: date, **codes: Any) -> None:
    cdm.add("procedure_occurrence", person_id=person, procedure_date=at, **codes)


# Views without the constraints of the tables: an event and a death without a day.
VIEWS = """
CREATE SCHEMA views;
{copies};
CREATE VIEW views.death AS SELECT person_id, CAST(NULL AS date) AS death_date FROM cdm.death WHERE person_id = 9
    UNION SELECT 13, CAST('infinity' AS date);
CREATE VIEW views.procedure_occurrence AS SELECT person_id, procedure_concept_id, procedure_source_concept_id,
    procedure_source_value, CASE WHEN person_id <> 2 THEN CAST(procedure_date AS timestamp) END AS procedure_date
    FROM cdm.procedure_occurrence
"""
COPIED = (
    "person", "visit_occurrence", "visit_detail", "condition_occurrence", "measurement", "observation",
    "device_exposure", "concept",
)  # fmt: skip


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A folder with the password, and the port of the database. Its user reads days and times in other ways than we."""
    folder, port = tmp_path_factory.mktemp("omop"), free_port()
    (folder / "password").touch(mode=0o600)
    (folder / "password").write_text("reader-secret\n")
    copies = ";".join(f"CREATE VIEW views.{name} AS SELECT * FROM cdm.{name}" for name in COPIED)
    with ExitStack() as started:
        start_postgres(started, port, user="owner", password="owner-secret")
        with closing(pg8000.native.Connection("owner", LOOPBACK, "postgres", port, "owner-secret")) as connection:
            fill(Cdm54(connection, "cdm"))
            for statement in (
                *VIEWS.format(copies=copies).split(";"),
                "CREATE USER reader PASSWORD 'reader-secret'",
                "GRANT USAGE ON SCHEMA cdm, views TO reader",
                "GRANT SELECT ON ALL TABLES IN SCHEMA cdm, views TO reader",
                "ALTER ROLE reader SET DateStyle = 'German, DMY'",
                "ALTER ROLE reader SET TimeZone = 'America/Los_Angeles'",
            ):
                connection.run(statement)
        yield folder, port


def make_site(folder: Path, database: tuple[Path, int], schema: str = "cdm") -> Site:
    settings = SITE.format(folder=database[0], port=database[1], schema=schema) + OUTCOMES
    site = init_site(folder / "site", settings)
    with_results(site)
    return site


def with_results(site: Site) -> None:
    rows = [f"{number:04},2020-04-01T08:00,positive" for number in range(1, 17)]
    (site.folder / "laboratory.csv").write_text("\n".join(["patient_id,collected,result", *rows]) + "\n")


def read(site: Site) -> tuple[dict[str, Outcome], list[tuple[str, str]]]:
    assert site.settings.outcomes is not None
    outcomes, findings = read_outcomes(site.settings.outcomes, needed=("intubated", "died"), today=TODAY)
    return outcomes, sorted((finding.patient_id, finding.reason.code) for finding in findings)


def test_course_is_read_from_all_tables_and_what_is_uncertain_is_not_guessed(
    tmp_path: Path, database: tuple[Path, int]
) -> None:
    site = make_site(tmp_path, database)
    assert fetch_omop(site) == 16
    outcomes, findings = read(site)
    assert findings == [
        ("0006", "W_OUTCOME_CODE"),
        ("0008", "W_OUTCOME_CODE"),
        ("0012", "E_OUTCOME_DATE"),
        ("0014", "E_OUTCOME_CONFLICT"),
    ]
    none = {number: Outcome(number, None, None, VISIT_END) for number in ("0007", "0015", "0016")}
    intubated = {
        f"{number:04}": Outcome(f"{number:04}", date(2020, 4, number + 4), None, VISIT_END) for number in range(2, 6)
    }
    assert outcomes == {
        **none,
        **intubated,
        "0001": Outcome("0001", date(2020, 5, 23), None, date(2020, 6, 9), icu=date(2020, 5, 22)),
        "0009": Outcome("0009", None, date(2020, 4, 30), VISIT_END),
        "0010": Outcome("0010", None, VISIT_END, VISIT_END),
        "0011": Outcome("0011", None, VISIT_END, VISIT_END),
        "0013": Outcome("0013", None, date(2020, 5, 1), VISIT_END),
    }
    text = site.omop_events.read_text()
    assert "VENT-7" not in text and '"day": "2019' not in text


def test_event_or_death_without_a_day_leaves_its_patient_without_an_outcome(
    tmp_path: Path, database: tuple[Path, int]
) -> None:
    site = make_site(tmp_path, database, "views")
    assert fetch_omop(site) == 16
    outcomes, findings = read(site)
    assert {(patient, "E_DATE") for patient in ("0002", "0009", "0013")} <= set(findings)
    assert not {"0002", "0009", "0013"} & outcomes.keys()
    assert outcomes["0001"].intubated == date(2020, 5, 23)  # here the days are timestamps


def test_clinic_joins_its_answers_with_what_the_node_fetched(tmp_path: Path, database: tuple[Path, int]) -> None:
    settings = SITE.format(folder=database[0], port=database[1], schema="cdm").partition("[omop]")[2]
    settings = f"[omop]{settings.partition('[laboratory]')[0]}"
    hospital = LaterHospital.make(tmp_path, outcomes=settings + OUTCOMES)
    with_results(hospital.site)
    assert later_outcomes(hospital.clinic).refusal is not None  # nothing was fetched yet
    fetch_omop(hospital.site)
    assert later_outcomes(hospital.clinic).refusal is None
    days = (datetime(2020, 4, 3) - datetime(2021, 3, 4)).days
    known = {"0002": True, "0003": True, "0006": None, "0007": False, "0009": True, "0012": None, "0016": False}
    answers = {patient: hospital.scored(patient, 0.3, days=days) for patient in known}
    late = hospital.scored("0001", 0.3, days=days)  # intubated after more than 30 days
    later = later_outcomes(hospital.clinic)
    assert {patient: later.severe(answer) for patient, answer in answers.items()} == known
    assert later.severe(late) is False
    with hospital.clinic.store() as store:
        audit = local_audit(store, later)
    assert audit is not None
    severe = audit.calibration["severe"].whole
    assert (severe.patients, severe.events) == (6, 3)
    exported = export_labels(hospital.clinic, tmp_path / "labels.csv", by="test")
    assert (exported.patients, exported.severe_known) == (8, 6)
