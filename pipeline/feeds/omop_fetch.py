"""Fetches the events of the laboratory's patients from a PostgreSQL database in the OMOP common data model.

All queries are in one read-only transaction, so they see one state of the database. What is fetched: events with a
mapped or watched code of [outcomes.codes], death, and the last day with any record. The result replaces
SITE/omop/events.ndjson.

The tables and columns are those of the published definitions of CDM 5.3 and 5.4 for PostgreSQL. Their days must be
given, but a hospital may have views without this constraint: an event or a death without a day, or with the day
`infinity`, is fetched without a day, and its patient then has no outcome.
"""

import ssl
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

from models.refusal import Refusal
from pipeline.feeds import reasons
from pipeline.feeds.omop_values import VALUE_COLUMNS, happened
from pipeline.records.laboratory import read_pcr
from pipeline.records.outcomes.coded_sources import OmopOutcomes
from pipeline.records.outcomes.omop_histories import read_lines, write_lines
from pipeline.site.folder import Site
from pipeline.site.omop_settings import OmopTable
from pipeline.site.pacs_settings import read_secret
from pipeline.site.tls import as_client
from pipeline.site.withdrawn import Withdrawn
from pipeline.system.addresses import is_loopback
from pipeline.system.atomic_files import remove_unfinished, write_durably
from pipeline.system.locks import alone

if TYPE_CHECKING:
    from pg8000.native import Connection


class _Coded(NamedTuple):
    """A table with coded events: the column with their first day, and those with their codes."""

    table: str
    day: str
    concept: str
    source_concept: str
    source_value: str


class _Event(NamedTuple):
    """An event of a person with all of its codes."""

    person: int
    day: date | None
    codes: list[tuple[str, str]]
    is_certain: bool


def _coded_table(table: str, prefix: str, day: str) -> _Coded:
    return _Coded(table, day, f"{prefix}_concept_id", f"{prefix}_source_concept_id", f"{prefix}_source_value")


# A code is in the table of its standard concept's domain: many of the diagnoses Z00 to Z99 in ICD-10 are observations,
# and a ventilator is a device.
_EVENTS = (
    _coded_table("visit_occurrence", "visit", "visit_start_date"),
    _coded_table("visit_detail", "visit_detail", "visit_detail_start_date"),  # stays in a unit, such as intensive care
    _coded_table("procedure_occurrence", "procedure", "procedure_date"),
    _coded_table("condition_occurrence", "condition", "condition_start_date"),
    _coded_table("measurement", "measurement", "measurement_date"),
    _coded_table("observation", "observation", "observation_date"),
    _coded_table("device_exposure", "device", "device_exposure_start_date"),
)
_DISCHARGES = ("discharged_to", "discharge_to")  # the beginning of columns of visit_occurrence, in CDM 5.4 and 5.3
# Days on which a patient was seen.
_SEEN = {
    "visit_occurrence": "greatest(visit_start_date, visit_end_date)",
    "procedure_occurrence": "procedure_date",
    "condition_occurrence": "condition_start_date",
    "measurement": "measurement_date",
}
# White space that `str.strip` removes. Only ASCII: a database with another encoding than UTF-8 may not know the rest.
_SPACES = "\t\n\v\f\r\x1c\x1d\x1e\x1f "
_SOURCE, _DISCHARGE = "source", "discharge"  # code systems of texts
_DENIED = {"28000", "28P01", "42501", "3D000"}  # SQLSTATE: invalid login, missing privilege, no such database
_CANCELLED = {"57014", "57P01", "57P03"}  # a query took too long; the server shuts down or starts


def fetch_omop(site: Site) -> int:
    """Fetch the events of all patients with a laboratory result; return how many patients the database knows.

    Raises Refusal: E_NO_OMOP, E_FETCH_RUNNING, E_FETCH_DISK, E_PACS_FILE, E_OMOP_SILENT, E_OMOP_AUTH, E_OMOP_UNTRUSTED,
    E_OMOP_SCHEMA, and those of `read_pcr`.
    """
    table, settings = site.settings.omop, site.settings
    if table is None or not isinstance(settings.outcomes, OmopOutcomes) or settings.laboratory is None:
        raise Refusal(reasons.NO_OMOP)
    results, _ = read_pcr(settings.laboratory, time_zone=settings.site.time_zone, issuer=settings.site.issuer)
    with alone(site.logs / "fetch.lock", reasons.FETCH_RUNNING):
        withdrawn = Withdrawn(site)  # under the lock: who withdraws later is deleted from what is fetched here
        patients = sorted({result.patient_id for result in results if not withdrawn.names(result.patient_id)})
        with _coded(), closing(_connect(site, table)) as database:
            records = list(_Database(database, table, settings.outcomes).histories(patients))
        try:
            site.omop_events.parent.mkdir(mode=0o700, exist_ok=True)
            write_durably(site.omop_events, write_lines(records))
        except OSError as error:
            raise Refusal(reasons.FETCH_DISK, private=str(error)) from error
    return len({record["patient"] for record in records})


def erase_omop(site: Site) -> int:
    """Delete what was fetched about withdrawn patients; return how many of them were known. Repeat it after a kill.

    Raises Refusal: E_FETCH_RUNNING, E_FETCH_DISK, E_TABLE_FILE.
    """
    folder, withdrawn = site.omop_events.parent, Withdrawn(site)
    if not folder.is_dir():
        return 0
    try:
        site.logs.mkdir(exist_ok=True)
        with alone(site.logs / "fetch.lock", reasons.FETCH_RUNNING):
            remove_unfinished(folder)
            records = read_lines(site.omop_events) if site.omop_events.is_file() else []
            gone = {record["patient"] for record in records if withdrawn.names(record["patient"])}
            if gone:
                left = (record for record in records if record["patient"] not in gone)
                write_durably(site.omop_events, write_lines(left))
    except OSError as error:
        raise Refusal(reasons.FETCH_DISK, private=str(error)) from error
    return len(gone)


def check_omop(site: Site) -> None:
    """Connect, and read one row of each table. Raises Refusal as `fetch_omop`."""
    table = site.settings.omop
    if table is None:
        raise Refusal(reasons.NO_OMOP)
    with _coded(), closing(_connect(site, table)) as database:
        for name in ("person", "death", *(each.table for each in _EVENTS)):
            database.run(f"SELECT 1 FROM {table.cdm_schema}.{name} LIMIT 1")  # noqa: S608
        database.run(f"SELECT 1 FROM {table.vocabulary_schema or table.cdm_schema}.concept LIMIT 1")  # noqa: S608


def _connect(site: Site, table: OmopTable) -> "Connection":
    """Open a read-only transaction. Raises Refusal E_PACS_FILE, pg8000's exceptions, OSError."""
    import pg8000.native

    password = read_secret(site.folder / table.password_file)
    tls: ssl.SSLContext | None = None
    if table.ca_certificate or not is_loopback(table.host):
        tls = as_client(site.folder, authority=table.ca_certificate)
    connection = pg8000.native.Connection(
        table.user,
        host=table.host,
        database=table.database,
        port=table.port,
        password=password,
        ssl_context=tls or False,
        timeout=table.timeout_seconds + 10,
        application_name="fedthorax",
    )
    connection.run("START TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
    connection.run("SET LOCAL DateStyle = 'ISO'")  # a server, database or user can have another; pg8000 reads only this
    connection.run(f"SET LOCAL statement_timeout = {int(table.timeout_seconds * 1000)}")
    return connection


class _Database:
    """The queries. Names in them come from this module and from `OmopTable`, which checks them; values are bound."""

    def __init__(self, connection: "Connection", table: OmopTable, outcomes: OmopOutcomes) -> None:
        self._run, self._table, self._outcomes = connection.run, table, outcomes
        self._vocabulary = table.vocabulary_schema or table.cdm_schema

    def histories(self, patients: list[str]) -> Iterator[dict[str, Any]]:
        """Yield the records of `omop_histories`."""
        people, ambiguous = self._people(patients)
        yield from ({"patient": patient, "ambiguous": True} for patient in sorted(ambiguous))
        concepts = self._concepts()
        tables = [*((table, _SOURCE) for table in _EVENTS), (self._discharges(), _DISCHARGE)]
        for table, text_system in tables:
            for event in self._events(table, text_system, list(people), concepts):
                record = {"patient": people[event.person], "day": _text(event.day), "codes": event.codes}
                yield record if event.is_certain else {**record, "uncertain": True}
        for name, day in _SEEN.items():
            for person, at in self._last_days(name, day, list(people)):
                yield {"patient": people[person], "seen": _text(at)}
        query = f"""
            SELECT DISTINCT person_id, {_day("death_date")} AS day FROM {self._table.cdm_schema}.death
            WHERE person_id = ANY(CAST(:people AS bigint[])) ORDER BY person_id, day"""  # noqa: S608
        for person, at in self._run(query, people=list(people)):
            yield {"patient": people[person], "died": _text(at)}

    def _people(self, patients: list[str]) -> tuple[dict[int, str], set[str]]:
        """Return patients by person_id, and the patients with several persons."""
        column = _trimmed(f"CAST({self._table.patient_id} AS text)")
        query = f"""
            SELECT person_id, {column} FROM {self._table.cdm_schema}.person
            WHERE {column} = ANY(CAST(:patients AS text[])) ORDER BY person_id"""  # noqa: S608
        found = self._run(query, patients=patients, spaces=_SPACES)
        owners: dict[str, set[int]] = {}
        for person, patient in found:
            owners.setdefault(patient, set()).add(person)
        ambiguous = {patient for patient, persons in owners.items() if len(persons) > 1}
        return {person: patient for person, patient in found if patient not in ambiguous}, ambiguous

    def _concepts(self) -> dict[int, tuple[str, str]]:
        """Return the mapped and watched concepts: vocabulary and code by concept_id."""
        query = f"""
            SELECT DISTINCT c.concept_id, c.vocabulary_id, c.concept_code FROM {self._vocabulary}.concept c
            JOIN unnest(CAST(:systems AS text[]), CAST(:codes AS text[]), CAST(:beginnings AS boolean[]))
                AS wanted(system, code, is_beginning) ON lower({_trimmed("c.vocabulary_id")}) = wanted.system
            WHERE lower({_trimmed("c.concept_code")}) = wanted.code
                OR wanted.is_beginning AND starts_with(lower({_trimmed("c.concept_code")}), wanted.code)"""  # noqa: S608
        patterns = self._outcomes.codes.patterns()
        systems, codes, beginnings = ([each[place] for each in patterns] for place in range(3))
        found = self._run(query, systems=systems, codes=codes, beginnings=beginnings, spaces=_SPACES)
        return {concept: (vocabulary, code) for concept, vocabulary, code in found}

    def _discharges(self) -> _Coded:
        """Return where visits tell how they ended: the names of the columns differ between CDM 5.3 and 5.4."""
        found = self._columns("visit_occurrence", [f"{each}_concept_id" for each in _DISCHARGES])
        prefix = next((each for each in _DISCHARGES if f"{each}_concept_id" in found), _DISCHARGES[0])
        concept = f"{prefix}_concept_id"
        return _Coded("visit_occurrence", "visit_end_date", concept, concept, f"{prefix}_source_value")

    def _columns(self, table: str, names: Sequence[str]) -> set[str]:
        """Return which of these columns a table has: that depends on the version of the CDM."""
        query = f"""
            SELECT attname FROM pg_attribute
            WHERE attrelid = CAST('{self._table.cdm_schema}.{table}' AS regclass)
                AND attname = ANY(CAST(:names AS text[]))"""  # noqa: S608
        return {name for (name,) in self._run(query, names=list(names))}

    def _events(
        self, table: _Coded, text_system: str, people: list[int], concepts: dict[int, tuple[str, str]]
    ) -> Iterator[_Event]:
        """Yield each event with a mapped or watched code since `from_date`, unless its value says that it was none.

        Only `measurement` and `observation` have values. `text_system`: the code system of the source values. A source
        value that is a code of another system is fetched too: without its concept it is uncertain what it means
        (`EventCodes.meaning`).
        """
        rows = f"""
            FROM {self._table.cdm_schema}.{table.table} e, LATERAL (SELECT {_day("e." + table.day)} AS day) d
            WHERE e.person_id = ANY(CAST(:people AS bigint[]))
                AND coalesce(d.day, CAST(:since AS date)) >= CAST(:since AS date)"""
        text = f"CAST(e.{table.source_value} AS text)"
        given = {"people": people, "since": self._outcomes.from_date}
        # Python compares the texts, as it does later: SQL's functions would trim and lower them in other ways.
        texts = [each for (each,) in self._run(f"SELECT DISTINCT {text} {rows}", **given)]
        texts = [each for each in texts if each and self._outcomes.codes.meaning(((text_system, each),))]
        present = self._columns(table.table, VALUE_COLUMNS)
        values = ", ".join(f"e.{name}" if name in present else "NULL" for name in VALUE_COLUMNS)
        query = f"""
            SELECT e.person_id, d.day, e.{table.concept}, e.{table.source_concept}, {text}, {values} {rows} AND (
                e.{table.concept} = ANY(CAST(:concepts AS bigint[]))
                OR e.{table.source_concept} = ANY(CAST(:concepts AS bigint[]))
                OR {text} = ANY(CAST(:texts AS text[])))
            ORDER BY e.person_id, d.day, e.{table.concept}, e.{table.source_value}"""
        for person, at, standard, source, found, concept, number, *words in self._run(
            query, concepts=list(concepts), texts=texts, **given
        ):
            is_event = happened(concept, number, words)
            if is_event is False:
                continue
            codes = [concepts[each] for each in dict.fromkeys((standard, source)) if each in concepts]
            codes += [(text_system, found.strip())] if found and found.strip() else []
            yield _Event(person, at, codes, is_certain=is_event is not None)

    def _last_days(self, name: str, day: str, people: list[int]) -> Iterator[tuple[int, date]]:
        query = f"""
            SELECT person_id, max({_day(day)}) FROM {self._table.cdm_schema}.{name}
            WHERE person_id = ANY(CAST(:people AS bigint[])) GROUP BY person_id ORDER BY person_id"""  # noqa: S608
        yield from ((person, at) for person, at in self._run(query, people=people) if at is not None)


def _day(column: str) -> str:
    """Return SQL for a column's day, NULL for one that is infinite or that Python cannot represent."""
    day = f"CAST({column} AS date)"
    return f"CASE WHEN {day} BETWEEN DATE '0001-01-01' AND DATE '9999-12-31' THEN {day} END"


def _trimmed(column: str) -> str:
    """Return SQL for a text without the white space around it, which a load from a file with CRLF can leave."""
    return f"btrim({column}, CAST(:spaces AS text))"


def _text(day: date | None) -> str | None:
    return day.isoformat() if day else None


@contextmanager
def _coded() -> Iterator[None]:
    """Convert the driver's errors to refusals; their texts can quote values, so only the state is kept."""
    import pg8000.exceptions

    try:
        yield
    except pg8000.exceptions.DatabaseError as error:
        about = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
        state = str(about.get("C", ""))
        reason = reasons.OMOP_SILENT
        if state in _DENIED:
            reason = reasons.OMOP_AUTH
        elif state and state not in _CANCELLED:
            reason = reasons.OMOP_SCHEMA
        raise Refusal(reason, private=f"SQLSTATE {state}" if state else type(error).__name__) from None
    except ssl.SSLError as error:
        raise Refusal(reasons.OMOP_UNTRUSTED, private=str(error.reason or type(error).__name__)) from None
    except pg8000.exceptions.InterfaceError as error:
        is_tls = "ssl" in str(error).lower()
        raise Refusal(reasons.OMOP_UNTRUSTED if is_tls else reasons.OMOP_SILENT, private=type(error).__name__) from None
    except OSError as error:
        raise Refusal(reasons.OMOP_SILENT, private=type(error).__name__) from None
