"""How texts and values of an OMOP database are compared, in a real PostgreSQL. All data are synthetic."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import date
from pathlib import Path

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


SCHEMAS = {"spaces": fill_spaces}


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
