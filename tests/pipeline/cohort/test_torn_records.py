"""Ingest of a laboratory file that was cut: the patients of the last ingest keep their labels."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from models.refusal import Refusal
from pipeline.cohort.ingest import ingest
from pipeline.cohort.store import Cohort, FindingRow, PatientRow
from pipeline.phantom.feeds import FILES, TIME_ZONE, LaboratoryFormat, laboratory_table, write_feed
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.phantom.records import PcrRow
from pipeline.records.laboratory import read_pcr
from pipeline.site.folder import Site
from tests.helpers.own import CLEAN, SETTINGS, Own, quietly

DIALECT = HOSPITALS[0].laboratory
PATIENTS = CLEAN[:3]
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
