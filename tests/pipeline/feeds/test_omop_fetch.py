"""Outcomes from an OMOP database: a real PostgreSQL with TLS and the tables of the CDM. All data are synthetic."""

import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pg8000.native
import pytest

from federation.system.process import LOOPBACK, free_port
from models.refusal import Refusal
from pipeline.doctor.connectivity import omop as omop_lines
from pipeline.doctor.environment import secret_files
from pipeline.feeds.omop_fetch import erase_omop, fetch_omop
from pipeline.records.outcomes import Outcome, read_outcomes
from pipeline.site.folder import Site, init_site
from pipeline.site.site_data import read_records
from pipeline.site.withdrawn import Withdrawn
from pipeline.system.locks import alone
from tests.helpers.postgres import start_postgres
from tests.pipeline.pacs.authority import Authority

pytestmark = pytest.mark.slow

SECRET = "a-secret-of-this-test"
TODAY = date(2020, 6, 1)
# CDM 5.3, with the columns that are used and some others; test_omop_cdm54.py has the whole tables of 5.4.
TABLES = """
CREATE SCHEMA cdm; CREATE SCHEMA vocab; CREATE SCHEMA bare;
CREATE TABLE vocab.concept (concept_id integer PRIMARY KEY, concept_name varchar(255), domain_id varchar(20),
    vocabulary_id varchar(20) NOT NULL, concept_code varchar(50) NOT NULL);
CREATE TABLE cdm.person (person_id integer PRIMARY KEY, year_of_birth integer, person_source_value varchar(50));
CREATE TABLE cdm.death (person_id integer NOT NULL, death_date date NOT NULL, death_datetime timestamp);
CREATE TABLE cdm.visit_occurrence (visit_occurrence_id integer PRIMARY KEY, person_id integer, visit_concept_id integer,
    visit_start_date date, visit_end_date date, visit_source_value varchar(50), visit_source_concept_id integer,
    discharge_to_concept_id integer, discharge_to_source_value varchar(50));
CREATE TABLE cdm.visit_detail (visit_detail_id integer PRIMARY KEY, person_id integer, visit_detail_concept_id integer,
    visit_detail_start_date date, visit_detail_source_value varchar(50), visit_detail_source_concept_id integer);
CREATE TABLE cdm.observation (observation_id integer PRIMARY KEY, person_id integer, observation_concept_id integer,
    observation_date date, observation_source_value varchar(50), observation_source_concept_id integer);
CREATE TABLE cdm.device_exposure (device_exposure_id integer PRIMARY KEY, person_id integer, device_concept_id integer,
    device_exposure_start_date date, device_source_value varchar(50), device_source_concept_id integer);
CREATE TABLE cdm.procedure_occurrence (procedure_occurrence_id integer PRIMARY KEY, person_id integer,
    procedure_concept_id integer, procedure_date date, procedure_source_value varchar(50),
    procedure_source_concept_id integer);
CREATE TABLE cdm.condition_occurrence (condition_occurrence_id integer PRIMARY KEY, person_id integer,
    condition_concept_id integer, condition_start_date date, condition_source_value varchar(50),
    condition_source_concept_id integer);
CREATE TABLE cdm.measurement (measurement_id integer PRIMARY KEY, person_id integer, measurement_concept_id integer,
    measurement_date date, measurement_source_value varchar(50), measurement_source_concept_id integer);
INSERT INTO vocab.concept VALUES
    (1, 'Intubation', 'Procedure', 'SNOMED', '112798008'), (2, '', 'Procedure', 'OPS', '8-701'),
    (3, '', 'Procedure', 'OPS', '8-714.0'), (4, '', 'Condition', 'ICD10', 'Z99.1'),
    (5, '', 'Measurement', 'LOINC', '20077-4'), (6, '', 'Procedure', 'CCAM', 'GLLD008'),
    (7, '', 'Procedure', 'OPS', '5-470'), (8, '', 'Visit', 'Visit', 'OMOP4822460');
CREATE USER reader PASSWORD 'reader-secret'; GRANT USAGE ON SCHEMA cdm, vocab, bare TO reader;
GRANT SELECT ON ALL TABLES IN SCHEMA cdm, vocab TO reader; CREATE USER stranger PASSWORD 'reader-secret';
INSERT INTO cdm.person SELECT p, 1950, lpad(p::text, 4, '0') FROM generate_series(1, 8) p;
INSERT INTO cdm.person VALUES (9, 1950, '0008'), (10, 1950, 'nobody'), (11, 1950, '0011');
INSERT INTO cdm.visit_occurrence SELECT p, p, 9201, '2020-04-01', '2020-05-10', 'ward', 0 FROM generate_series(1, 11) p;
INSERT INTO cdm.visit_occurrence VALUES (20, 4, 8, '2020-04-03', '2020-04-08', 'icu', 0);
INSERT INTO cdm.visit_occurrence VALUES (21, 6, 9201, '2020-05-20', '2020-05-26', 'ward', 0, 0, ' Verstorben');
INSERT INTO cdm.procedure_occurrence VALUES
    (1, 1, 1, '2020-04-05', '8-701', 2), (2, 1, 0, '2020-04-02', '8-701', 2), (3, 2, 0, '2019-04-02', '8-701', 2),
    (4, 3, 0, '2020-04-06', ' Beatmung invasiv', 0), (5, 5, 0, '2020-04-02', 'x', 3),
    (6, 6, 7, '2020-05-20', '5-470', 7),
    (7, 10, 1, '2020-04-02', '', 0), (8, 11, 6, '2020-04-09', 'GLLD008', 6);
INSERT INTO cdm.condition_occurrence VALUES (1, 7, 4, '2020-04-07', 'Z99.1', 0);
INSERT INTO cdm.measurement VALUES (1, 4, 5, '2020-04-04', 'PEEP', 0), (2, 6, 0, '2020-05-25', 'Na', 0);
INSERT INTO cdm.death VALUES (2, '2020-04-20', NULL);
"""
SITE = """
[site]
name = "synthetic"
[omop]
host = "127.0.0.1"
port = {port}
database = "postgres"
user = "reader"
password_file = "{folder}/password"
vocabulary_schema = "vocab"
ca_certificate = "{folder}/ca.crt"
[laboratory]
file = "laboratory.csv"
[outcomes]
format = "omop"
from_date = 2020-03-01
max_unmapped_percent = 40
[outcomes.codes]
intubated = ["ops|8-701", "sct|112798008", "ccam|GLLD*", "icd-10|Z99.1", "loinc|20077-4", "source|Beatmung invasiv"]
icu = ["visit|OMOP4822460"]
died = ["discharge|verstorben"]
watched = ["ops|8-71*"]
"""


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A folder with certificate and password, and the port of the database."""
    folder, port = tmp_path_factory.mktemp("omop"), free_port()
    authority = Authority.make(folder)
    (folder / "password").touch(mode=0o600)
    (folder / "password").write_text("reader-secret\n")
    with ExitStack() as started:
        start_postgres(started, port, user="owner", password=SECRET, tls=authority.sign("postgres"))
        with closing(pg8000.native.Connection("owner", LOOPBACK, "postgres", port, SECRET)) as database:
            for statement in TABLES.split(";"):
                if statement.strip():
                    database.run(statement)
        yield folder, port


def make_site(folder: Path, hospital: tuple[Path, int], *changes: tuple[str, str]) -> Site:
    text = SITE.format(folder=hospital[0], port=hospital[1])
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    site = init_site(folder / "site", text)
    rows = [f"{number:04},2020-04-01T08:00,positive" for number in (*range(1, 9), 11, 99)]
    (site.folder / "laboratory.csv").write_text("\n".join(["patient_id,collected,result", *rows]) + "\n")
    return site


def read(site: Site) -> tuple[dict[str, Outcome], list[tuple[str, str]]]:
    assert site.settings.outcomes is not None
    outcomes, findings = read_outcomes(site.settings.outcomes, needed=("intubated", "died"), today=TODAY)
    return outcomes, [(finding.reason.code, finding.patient_id) for finding in findings]


def test_events_of_all_tables_and_code_systems(tmp_path: Path, hospital: tuple[Path, int]) -> None:
    site = make_site(tmp_path, hospital)
    (line,) = omop_lines(site)
    assert line.status == "warn"
    assert fetch_omop(site) == 9
    outcomes, findings = read(site)
    end = date(2020, 5, 10)
    assert outcomes == {
        "0001": Outcome("0001", date(2020, 4, 2), None, end),
        "0002": Outcome("0002", None, date(2020, 4, 20), end),
        "0003": Outcome("0003", date(2020, 4, 6), None, end),
        "0004": Outcome("0004", date(2020, 4, 4), None, end, icu=date(2020, 4, 3)),
        "0006": Outcome("0006", None, date(2020, 5, 26), date(2020, 5, 26)),
        "0007": Outcome("0007", date(2020, 4, 7), None, end),
        "0011": Outcome("0011", date(2020, 4, 9), None, end),
    }
    assert sorted(findings) == [("E_IDENTIFIER_AMBIGUOUS", "0008"), ("W_OUTCOME_CODE", "0005")]
    text = site.omop_events.read_text()
    assert "nobody" not in text and "5-470" not in text
    assert stat.S_IMODE(site.omop_events.stat().st_mode) == 0o600
    assert stat.S_IMODE(site.omop_events.parent.stat().st_mode) == 0o700
    assert hospital[0] / "password" in secret_files(site)
    (line,) = omop_lines(site)
    assert line.status == "ok"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (('user = "reader"', 'user = "nobody"'), "E_OMOP_AUTH"),
        (('user = "reader"', 'user = "stranger"'), "E_OMOP_AUTH"),
        (('database = "postgres"', 'database = "other"'), "E_OMOP_AUTH"),
        (('vocabulary_schema = "vocab"', 'vocabulary_schema = "bare"'), "E_OMOP_SCHEMA"),
        (('vocabulary_schema = "vocab"', 'patient_id = "mrn"\nvocabulary_schema = "vocab"'), "E_OMOP_SCHEMA"),
        (('host = "127.0.0.1"', 'host = "localhost"'), "E_OMOP_UNTRUSTED"),
    ],
)
def test_unusable_database_is_refused(
    tmp_path: Path, hospital: tuple[Path, int], change: tuple[str, str], code: str
) -> None:
    site = make_site(tmp_path, hospital, change)
    with pytest.raises(Refusal) as caught:
        fetch_omop(site)
    assert (caught.value.code, SECRET in caught.value.private) == (code, False)
    assert not site.omop_events.exists()


def test_withdrawn_patient_is_not_asked_for(tmp_path: Path, hospital: tuple[Path, int]) -> None:
    site = make_site(tmp_path, hospital)
    fetch_omop(site)
    Withdrawn(site).add([site.pseudonym("0001"), site.pseudonym("0099")])
    assert erase_omop(site) == 1
    assert '"0001"' not in site.omop_events.read_text() and '"0002"' in site.omop_events.read_text()
    assert fetch_omop(site) == 8
    assert '"0001"' not in site.omop_events.read_text()


def test_patient_who_withdraws_while_a_fetch_begins_is_not_asked_for(
    tmp_path: Path, hospital: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The withdrawal ends just before the fetch takes the lock: nothing deletes what this fetch writes."""
    site = make_site(tmp_path, hospital)

    @contextmanager
    def late(*arguments: Any) -> Iterator[None]:
        monkeypatch.undo()
        Withdrawn(site).add([site.pseudonym("0001")])
        assert erase_omop(site) == 0
        with alone(*arguments):
            yield

    monkeypatch.setattr("pipeline.feeds.omop_fetch.alone", late)
    assert fetch_omop(site) == 8
    assert '"0001"' not in site.omop_events.read_text()


def test_unknown_patients_and_a_table_of_source_values_alone(tmp_path: Path, hospital: tuple[Path, int]) -> None:
    site = make_site(tmp_path, hospital, ('["visit|OMOP4822460"]', "[]"), ('watched = ["ops|8-71*"]', ""))
    with pytest.raises(Refusal, match="E_NOTHING_FETCHED"):
        read_records(site)
    (site.folder / "laboratory.csv").write_text("patient_id,collected,result\n99,2020-04-01T08:00,positive\n")
    path = site.folder / "site.toml"
    path.write_text(re.sub("intubated = .*", 'intubated = ["source|Beatmung invasiv"]\n', path.read_text()))
    site = Site.open(site.folder)
    assert fetch_omop(site) == 0
    (site.folder / "laboratory.csv").write_text("patient_id,collected,result\n0003,2020-04-01T08:00,positive\n")
    assert fetch_omop(site) == 1
    records, findings = read_records(site)
    assert (len(records.results), len(records.outcomes), findings) == (1, 1, [])
    assert records.outcomes[site.pseudonym("0003")].intubated == date(2020, 4, 6)


def test_silent_database_and_readable_password_are_refused(tmp_path: Path, hospital: tuple[Path, int]) -> None:
    site = make_site(tmp_path, hospital, (f"port = {hospital[1]}", f"port = {free_port()}"))
    with pytest.raises(Refusal, match="E_OMOP_SILENT"):
        fetch_omop(site)
    (line,) = omop_lines(site)
    assert line.status == "fail"
    (tmp_path / "password").write_text("reader-secret")
    (tmp_path / "password").chmod(0o644)
    with pytest.raises(Refusal, match="E_PACS_FILE"):
        fetch_omop(make_site(tmp_path / "2", hospital, (f"{hospital[0]}/password", f"{tmp_path}/password")))


def test_sql_in_settings_is_refused_or_bound_as_a_value(tmp_path: Path, hospital: tuple[Path, int]) -> None:
    """Names are checked by the settings; codes never become a part of a query."""
    with pytest.raises(Refusal, match="E_SETTINGS"):
        make_site(tmp_path / "1", hospital, ('schema = "vocab"', 'schema = "v; DROP TABLE cdm.person"'))
    code = "x'; DROP TABLE cdm.person; --"
    site = make_site(tmp_path / "2", hospital, ("ccam|GLLD*", f"ccam|{code}"), ("Beatmung invasiv", code))
    assert fetch_omop(site) == 9
    assert fetch_omop(site) == 9


@pytest.mark.parametrize(
    "change", [("[omop]\nhost", "[ignored]\nhost"), ('format = "omop"', 'format = "omop"\nfile = "x"')]
)
def test_contradictory_settings_are_refused(
    tmp_path: Path, hospital: tuple[Path, int], change: tuple[str, str]
) -> None:
    with pytest.raises(Refusal, match="E_SETTINGS"):
        make_site(tmp_path, hospital, change)
