"""How texts and values of an OMOP database are compared, in a real PostgreSQL. All data are synthetic."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import date
from pathlib import Path
from typing import Any

import pg8000.native
import pytest

from federation.system.process import LOOPBACK, free_port
from pipeline.feeds.omop_fetch import fetch_omop
from pipeline.records.outcomes import Outcome
from tests.helpers.cdm54 import Cdm54
from tests.helpers.postgres import start_postgres
from tests.pipeline.feeds.test_omop_cdm54 import VISIT_END, make_site, procedure, read, visit

pytestmark = pytest.mark.slow

INTUBATION, VENTILATOR = 1, 5
DAY = date(2020, 4, 5)


def fill_spaces(cdm: Cdm54) -> None:
    """Codes and identifiers as a load from a file with CRLF, or a copy from a web page, can leave them."""
    for concept, code in ((INTUBATION, "112798008\r"), (3, "8-852.00")):
        add_concept(cdm, concept, "SNOMED\r" if concept == INTUBATION else "OPS", code)
    for person in range(1, 13):
        cdm.add("person", person_id=person, person_source_value=f"{person:04}" + ("\r\n" if person == 7 else ""))
        if person != 6:
            visit(cdm, person)
    for person, space in enumerate(("\r", "\t", "\u00a0", "\u2003", "\r\n"), start=1):
        procedure(cdm, person, DAY, procedure_source_value=f"{space}8-852.00{space}")
    visit(cdm, 6, discharged_to_source_value="79\r")
    procedure(cdm, 7, DAY, procedure_concept_id=INTUBATION)
    procedure(cdm, 8, DAY, procedure_source_value="9-999\r")
    for person in range(9, 13):  # so many usual ones that the codes fit
        procedure(cdm, person, DAY, procedure_source_concept_id=3, procedure_source_value="8-852.00")


def add_concept(cdm: Cdm54, concept: int, vocabulary: str, code: str) -> None:
    valid = {"valid_start_date": date(1970, 1, 1), "valid_end_date": date(2099, 12, 31)}
    cdm.add("concept", concept_id=concept, vocabulary_id=vocabulary, concept_code=code, **valid)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A folder with the password, and the port of the database."""
    folder, port = tmp_path_factory.mktemp("omop"), free_port()
    (folder / "password").touch(mode=0o600)
    (folder / "password").write_text("reader-secret\n")
    with ExitStack() as started:
        start_postgres(started, port, user="owner", password="owner-secret")
        with closing(pg8000.native.Connection("owner", LOOPBACK, "postgres", port, "owner-secret")) as connection:
            connection.run("CREATE USER reader PASSWORD 'reader-secret'")
            for schema, fill in SCHEMAS.items():
                fill(Cdm54(connection, schema))
                connection.run(f"GRANT USAGE ON SCHEMA {schema} TO reader")
                connection.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO reader")
        yield folder, port


# What an event's columns of values contain, and whether it counts; None: it is uncertain.
VALUES: list[tuple[str, dict[str, Any], bool | None]] = [
    ("observation", {}, True),
    ("observation", {"value_as_concept_id": 0, "value_as_string": " "}, True),
    ("observation", {"value_as_concept_id": 4188539, "value_as_string": "ja"}, True),
    ("observation", {"value_as_concept_id": 4188540, "value_as_string": "nein"}, False),
    ("observation", {"value_as_concept_id": 45884060}, None),  # a concept that is neither yes nor no
    ("observation", {"value_as_string": "nein"}, None),
    ("observation", {"value_as_concept_id": 0, "value_source_value": "?"}, None),
    ("measurement", {"value_as_number": 8.5, "value_source_value": "8,5"}, True),  # such as a pressure
    ("measurement", {"value_as_number": 0, "value_source_value": "0"}, None),
    ("measurement", {"value_as_number": "NaN"}, None),
    ("measurement", {"value_as_concept_id": 9191}, True),
    ("measurement", {"value_as_concept_id": 4181412, "value_as_number": 1}, True),
    ("measurement", {"value_as_concept_id": 9189, "value_source_value": "neg"}, False),
    ("measurement", {"value_as_concept_id": 45878245}, False),
]


def fill_values(cdm: Cdm54) -> None:
    """Patient 0001 has the first of VALUES, and so on; the last patient a procedure with the quantity 0."""
    add_concept(cdm, VENTILATOR, "SNOMED", "706172005")
    for person, (table, values, _) in enumerate(VALUES, start=1):
        cdm.add("person", person_id=person, person_source_value=f"{person:04}")
        visit(cdm, person)
        at = {f"{table}_concept_id": VENTILATOR, f"{table}_date": DAY}
        cdm.add(table, person_id=person, **at, **values)
    last = len(VALUES) + 1
    cdm.add("person", person_id=last, person_source_value=f"{last:04}")
    visit(cdm, last)
    procedure(cdm, last, DAY, procedure_concept_id=VENTILATOR, quantity=0)


SCHEMAS = {"spaces": fill_spaces, "valued": fill_values}


def test_white_space_around_codes_and_identifiers_means_nothing(tmp_path: Path, database: tuple[Path, int]) -> None:
    """Such a code must not be overlooked: its patient would count as one without event."""
    site = make_site(tmp_path, database, "spaces")
    assert fetch_omop(site) == 12
    outcomes, findings = read(site)
    # A source value without a concept is uncertain, whatever is around it.
    assert findings == [(f"{number:04}", "W_OUTCOME_CODE") for number in range(1, 6)]
    assert outcomes == {
        "0006": Outcome("0006", None, VISIT_END, VISIT_END),
        "0007": Outcome("0007", DAY, None, VISIT_END),
        "0008": Outcome("0008", None, None, VISIT_END),
        **{each: Outcome(each, DAY, None, VISIT_END) for each in ("0009", "0010", "0011", "0012")},
    }


def test_event_whose_value_says_no_is_none(tmp_path: Path, database: tuple[Path, int]) -> None:
    site = make_site(tmp_path, database, "valued")
    assert fetch_omop(site) == len(VALUES) + 1
    outcomes, findings = read(site)
    told = {f"{number:04}": counts for number, (_, _, counts) in enumerate(VALUES, start=1)}
    told[f"{len(VALUES) + 1:04}"] = True
    assert findings == [(patient, "W_OUTCOME_UNCERTAIN") for patient, counts in told.items() if counts is None]
    assert outcomes == {
        patient: Outcome(patient, DAY if counts else None, None, VISIT_END)
        for patient, counts in told.items()
        if counts is not None
    }
