"""Classifies test codes: the LOINC codes of SARS-CoV-2 nucleic acid tests, and what their results can decide.

The LOINC lists follow the value set of Covid-19 tests that WHO's DDCC guide adopts from the eHealth Network of the
European Union (LabTestTypeCovid19LoincValueSet, version 1.0.0). Tests on blood, on donors and by sequencing are not
included: a negative one does not show that the airways are free of the virus.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from pipeline.records.laboratory.settings import canonical

# "overall" decides, "gene" is one of several targets, "silent" does not state presence, "other" is another test.
Kind = Literal["overall", "gene", "silent", "other"]

LOINC_NAMES = {"ln", "loinc", "http://loinc.org", "https://loinc.org", "urn:oid:2.16.840.1.113883.6.1"}

# SARS-CoV-2 RNA [Presence], by specimen: any, respiratory (with and without probe), nasopharynx (with and without
# probe), nose, oropharyngeal wash, saliva.
OVERALL = frozenset(("94309-2", "94500-6", "95608-6", "94759-8", "94565-9", "95406-5", "96797-6", "94845-5"))
# [Presence] of one gene or region (N, RdRp, E, S, ORF1, M, Nsp2), of the whole subgenus, or of SARS and MERS together.
GENES = frozenset((
    "94316-7", "94307-6", "94308-4", "94310-0", "94533-7", "94756-4", "94757-2", "94760-6", "95409-9",
    "95425-5", "96448-6", "96958-4", "96986-5",
    "94314-2", "94534-5", "96091-4", "96120-1", "96123-5",
    "94315-9", "94758-0", "95823-1", "96121-9", "96122-7", "96763-8",
    "94640-0", "94641-8", "96765-3",
    "94559-2", "94639-2", "95824-9", "98131-6", "98132-4", "98493-0", "98494-8",
    "96957-6", "97098-8",
    "94502-2", "94647-5", "94532-9",
))  # fmt: skip
# Panels, which contain other results (103202-8 is an old code of 94531-1), cycle thresholds, viral loads.
SILENT = frozenset((
    "94306-8", "94531-1", "103202-8", "95826-4", "96897-4", "96094-8", "98080-5", "95422-2", "95380-2",
    "95941-1", "100345-8",
    "94745-7", "94746-5", "94510-5", "94311-8", "94312-6", "94313-4", "96898-2", "94511-3", "94644-2", "96899-0",
    "94645-9", "94646-7", "94642-6", "94643-4", "96900-6", "94509-7", "96764-6",
    "94819-0", "95521-1", "95522-9", "97104-4",
))  # fmt: skip


@dataclass(frozen=True)
class Code:
    """One name of a test: `system` is the code system, `text` is the name in words; each may be empty."""

    system: str
    code: str
    text: str = ""


def kind_of(test: Iterable[Code], declared: Collection[str]) -> Kind:
    """Classify a test by all of its names; `declared` holds the site's canonical codes and names.

    The site's declaration has priority: some laboratories report their overall result with the code of a gene.
    """
    names = list(test)
    if any(canonical(each) in declared for name in names for each in (name.code, name.text) if each):
        return "overall"
    loinc = {name.code for name in names if canonical(name.system) in LOINC_NAMES}
    kinds: tuple[tuple[Kind, frozenset[str]], ...] = (("gene", GENES), ("silent", SILENT), ("overall", OVERALL))
    return next((kind for kind, codes in kinds if loinc & codes), "other")


def names_of(test: Iterable[Code]) -> tuple[str, ...]:
    """Return the names that all versions of a result share: codes, or texts if there are no codes."""
    names = list(test)
    return tuple(sorted({name.code for name in names} - {""} or {name.text for name in names}))
