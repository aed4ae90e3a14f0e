"""Ingest of a laboratory file that was cut: the patients of the last ingest keep their labels."""

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from models.refusal import Refusal
from pipeline.cohort.ingest import Assessment, ingest, withdraw
from pipeline.cohort.record_counts import count_records, fewer_records
from pipeline.cohort.store import Cohort, FindingRow, PatientRow
from pipeline.phantom.feeds import FILES, TIME_ZONE, LaboratoryFormat, laboratory_table, write_feed
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.phantom.records import PcrRow
from pipeline.records.join import Records
from pipeline.records.labels import Label
from pipeline.records.laboratory import PcrResult, read_pcr
from pipeline.records.outcomes import Outcome
from pipeline.site.folder import Site
from tests.helpers.own import CLEAN, SETTINGS, Own, quietly

DIALECT = HOSPITALS[0].laboratory
PATIENTS = CLEAN[:3]
AT = datetime(2020, 4, 1, 8)
HEADER = b"BHS|^~\\&|LIS\r"


def laboratory_of(own: Own, make_site: Callable[[Path, Path], Site], form: LaboratoryFormat) -> tuple[Site, Path]:
    """The hospital's site with the laboratory's results in another format, and their file."""
    own.add(*PATIENTS)
    words = {True: DIALECT.positive, False: DIALECT.negative, None: DIALECT.indeterminate}
    table = own.site.settings.laboratory
    assert table is not None
    results = [each for each in read_pcr(table)[0] if each.patient_id in CLEAN]
    write_feed(
        own.folder,
        [PcrRow(each.patient_id, each.collected, words[each.positive][0]) for each in results],
        DIALECT,
        form,
    )
    settings = own.folder / "site.toml"
    text = re.sub(
        r"\[laboratory\]\n.*?\n(?=\[)", laboratory_table(DIALECT, form) + "\n", settings.read_text(), flags=re.S
    )
    settings.write_text(text.replace("[site]\n", f'[site]\ntime_zone = "{TIME_ZONE}"\n', 1))
    return make_site(own.folder.parent / form, own.folder), own.folder / FILES[form]


def stored(site: Site) -> tuple[list[PatientRow], list[FindingRow]]:
    with Cohort(site) as cohort:
        return cohort.patients(), cohort.findings()


def in_batch(content: bytes, messages: int | None = None) -> bytes:
    return HEADER + content + b"BTS|%d\r" % (content.count(b"MSH|") if messages is None else messages)


CUT: dict[str, tuple[LaboratoryFormat, Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "csv, within a row": ("csv", bytes, lambda content: content[: content.rindex(b",", 0, content.rindex(b",")) + 3]),
    "hl7, after a message": ("hl7", in_batch, lambda content: content[: content.rindex(b"MSH|")]),
    "hl7, within a message": ("hl7", bytes, lambda content: content[: content.rindex(b"OBX|") + 20]),
    "hl7, another count": (
        "hl7",
        in_batch,
        lambda content: in_batch(content[len(HEADER) : content.rindex(b"MSH|")], 99),
    ),
    "fhir, within a line": ("fhir", bytes, lambda content: content[: content.rindex(b"{") - 10]),
}


@pytest.mark.parametrize("case", CUT)
def test_labels_stay_if_the_file_was_cut(own: Own, make_site: Callable[[Path, Path], Site], case: str) -> None:
    form, whole, cut = CUT[case]
    site, file = laboratory_of(own, make_site, form)
    content = whole(file.read_bytes())
    file.write_bytes(content)
    ingest(site, SETTINGS, quietly)
    before = stored(site)
    assert {patient.pseudonym for patient in before[0]} == {site.pseudonym(each) for each in PATIENTS}

    file.write_bytes(cut(content))
    for _ in range(2):  # it is refused each time, and changes nothing
        with pytest.raises(Refusal) as caught:
            ingest(site, SETTINGS, quietly)
        assert caught.value.code == "E_FILE_CUT"
        assert stored(site) == before

    file.write_bytes(content)
    ingest(site, SETTINGS, quietly)
    assert stored(site) == before


# --- cut where it cannot be seen ---------------------------------------------------------------------------


def with_rows(own: Own, rows: int) -> Path:
    """Write a laboratory file with results of so many patients; the first ones have a scan."""
    patients = [*PATIENTS, *(f"X-{number}" for number in range(rows - len(PATIENTS)))]
    lines = [f"{patient},{AT:{DIALECT.date_format}},{DIALECT.positive[0]}" for patient in patients[:rows]]
    own.laboratory("\n".join([",".join(DIALECT.columns), *lines]).replace(",", DIALECT.separator) + "\n")
    return own.folder / "laboratory.csv"


def fewer(assessment: Assessment) -> list[tuple[str, str]]:
    return [(each.patient_id, each.says) for each in assessment.findings if each.reason.code == "W_FEWER_RECORDS"]


def test_file_that_was_cut_between_two_rows_is_flagged(own: Own) -> None:
    """The finding names the two counts and no patient. A later ingest compares with the last one."""
    own.add(*PATIENTS)
    file = with_rows(own, 20)
    assert fewer(own.ingest()) == []
    whole = file.read_text().splitlines(keepends=True)
    file.write_text("".join(whole[:11]))
    flagged = own.ingest()
    text = "the site has 10 PCR results, and had 20 at the last ingest"
    assert fewer(flagged) == [("", text)]
    assert flagged.to_json()["fewer_records"] == [text]
    assert text in (own.site.cohort_folder / "refusals.csv").read_text()
    assert fewer(own.ingest()) == []
    file.write_text("".join(whole))
    assert fewer(own.ingest()) == []


def test_ingest_that_is_refused_does_not_change_what_the_next_compares_with(own: Own) -> None:
    own.add(*PATIENTS)
    file = with_rows(own, 20)
    own.ingest()
    rows = file.read_text().splitlines(keepends=True)
    file.write_text("".join(rows[:11]) + rows[11][:5])
    with pytest.raises(Refusal, match="E_FILE_CUT"):
        own.ingest()
    file.write_text("".join(rows[:11]))
    assert len(fewer(own.ingest())) == 1


def test_withdrawal_keeps_the_counts(own: Own) -> None:
    own.add(*PATIENTS)
    with_rows(own, 20)
    own.ingest()
    before = counts_of(own.site)
    withdraw(own.site, [own.site.pseudonym(PATIENTS[0])])
    assert counts_of(own.site) == before
    assert before["PCR results"] == 20


def counts_of(site: Site) -> dict[str, int]:
    with Cohort(site) as cohort:
        return cohort.records()


@pytest.mark.parametrize(
    ("before", "now", "is_flagged"),
    [
        ({"PCR results": 20}, {"PCR results": 10}, True),
        ({"PCR results": 20}, {"PCR results": 15}, True),
        ({"PCR results": 20}, {"PCR results": 16}, False),  # four fewer
        ({"PCR results": 5}, {"PCR results": 0}, True),
        ({"PCR results": 1000}, {"PCR results": 900}, False),  # a tenth
        ({"PCR results": 1000}, {"PCR results": 899}, True),
        ({"PCR results": 20}, {"PCR results": 40}, False),
        ({}, {"PCR results": 10}, False),
        ({"labels": 20}, {"PCR results": 0, "outcomes": 0}, False),  # another kind of records than before
        ({"outcomes": 20}, {"PCR results": 20, "outcomes": 10}, True),
        ({"labels": 20}, {"labels": 10}, True),
    ],
)
def test_so_many_fewer_are_flagged(before: dict[str, int], now: dict[str, int], is_flagged: bool) -> None:
    assert bool(fewer_records(now, before)) is is_flagged


def test_results_labels_and_outcomes_are_counted_for_all_patients() -> None:
    results = [PcrResult("a", AT, True), PcrResult("a", AT, None)]
    outcome = Outcome("b", None, None, None)
    assert count_records(Records({"a": results}, {"b": outcome}, set())) == {"PCR results": 2, "outcomes": 1}
    assert count_records(Records({}, {}, set(), labels={"a": Label(True, None)})) == {"labels": 1}
