"""Remove patients who withdraw from a site, and refuse their data from now on."""

from collections.abc import Iterable
from dataclasses import dataclass

from federation.ledger.chain import PASSED, Entry, Ledger, ledger_file
from pipeline.cohort import ingest
from pipeline.pacs.pull import delete_series
from pipeline.site.folder import Site
from pipeline.site.withdrawn import Withdrawn

LINE = "patient withdrawn"


@dataclass(frozen=True)
class Withdrawal:
    """What was done. `new`: patients who had not withdrawn before. `in_cohort`, `series`: patients and fetched series
    that were deleted.
    """

    new: int
    in_cohort: int
    series: int


def withdraw(site: Site, identifiers: Iterable[str]) -> Withdrawal:
    """Remove the patients with these identifiers; a line of the ledger for each says that one withdrew, not who.

    Repeating it is harmless. After an error some of it may be done, and it must be repeated.
    Raises Refusal: E_SITE_KEY, E_LEDGER_WRITE, E_LEDGER_BROKEN, E_PULL_RUNNING, E_DISK, E_COHORT_BUSY, E_COHORT_FILE;
    OSError.
    """
    pseudonyms = {site.pseudonym(identifier) for identifier in identifiers}
    withdrawn, ledger = Withdrawn(site), Ledger(ledger_file(site))
    new = {pseudonym for pseudonym in pseudonyms if pseudonym not in withdrawn}
    for _ in new:
        ledger.append(Entry("", None, "here", LINE, 0, "", "", "", PASSED))
    withdrawn.add(new)
    return Withdrawal(len(new), series=delete_series(site, pseudonyms), in_cohort=ingest.withdraw(site, pseudonyms))
