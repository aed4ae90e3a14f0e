"""Finds patients whose records have the identifier of their scans in another spelling.

Scans from a PACS are under pseudonyms already, so spellings are compared the other way round: of each identifier in the
records, other usual spellings are made, and their pseudonyms are compared with those of the scans.
"""

from collections.abc import Iterator

from models.refusal import Refusal
from pipeline.cohort.ingest import Material
from pipeline.site.folder import Site
from pipeline.site.site_data import identifiers_in_records


def other_spelling(site: Site, material: Material) -> set[str]:
    """Return the pseudonyms of the patients with scans whose identifier only the records spell in another way."""
    if material.records is None:
        return set()
    try:
        identifiers = set[str]().union(*identifiers_in_records(site).values())
    except Refusal:
        return set()
    with_scans = {series.patient_id for series in material.series} - {site.pseudonym(each) for each in identifiers}
    if not with_scans:
        return set()
    lengths = {len(each) for each in identifiers}
    longest = max(lengths, default=0) + 2
    return {
        pseudonym
        for each in identifiers
        for spelling in _spellings(each, longest)
        if (pseudonym := site.pseudonym(spelling)) in with_scans
    }


def _spellings(identifier: str, longest: int) -> Iterator[str]:
    """Yield other spellings: capital letters, without separators, without prefix, with and without leading zeros."""
    plain = "".join(letter for letter in identifier if letter.isalnum())
    tail = plain[len(plain.rstrip("0123456789")) :]
    for text in {identifier, identifier.upper(), identifier.lower(), plain, plain.upper(), plain.lower(), tail}:
        yield text
        if text.isdecimal() and (bare := text.lstrip("0")):
            yield from (bare.zfill(length) for length in range(len(bare), longest + 1))
