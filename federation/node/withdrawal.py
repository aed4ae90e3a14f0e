"""Remove patients who withdraw from a site, and refuse their data from now on."""

from collections.abc import Iterable
from dataclasses import dataclass

from federation.ledger.chain import PASSED, Entry, Ledger, ledger_file
from pipeline.cohort import ingest
from pipeline.cohort.workers import FAILURES
from pipeline.feeds.erasure import Erased, erase_feeds
from pipeline.pacs.pull import delete_series
from pipeline.site.folder import Site
from pipeline.site.withdrawn import Withdrawn

LINE = "patient withdrawn"


@dataclass(frozen=True)
class Withdrawal:
    """What was done. `new`: patients who had not withdrawn before. `in_cohort`, `series`: patients and fetched series
    that were deleted. `erased`: what the feeds had sent.
    """

    new: int
    in_cohort: int
    series: int
    erased: Erased


def withdraw(site: Site, identifiers: Iterable[str]) -> Withdrawal:
    """Remove the patients with these identifiers; a line of the ledger for each says that one withdrew, not who.

    Repeating it is harmless. After an error or a kill some of it may be done, and it must be repeated; if the list of
    withdrawn patients was not written yet, the ledger then has a second line.
    Raises Refusal: E_SITE_KEY, E_LEDGER_WRITE, E_LEDGER_BROKEN, E_FETCH_RUNNING, E_FETCH_DISK, E_TABLE_FILE,
    E_PULL_RUNNING, E_DISK, E_COHORT_BUSY, E_COHORT_FILE; OSError.
    """
    pseudonyms = {site.pseudonym(identifier) for identifier in identifiers}
    withdrawn, ledger = Withdrawn(site), Ledger(ledger_file(site))
    new = {pseudonym for pseudonym in pseudonyms if pseudonym not in withdrawn}
    for _ in new:
        ledger.append(Entry("", None, "here", LINE, 0, "", "", "", PASSED))
    withdrawn.add(new)
    (site.logs / FAILURES).unlink(missing_ok=True)  # it may name files, and these the patient
    erased = erase_feeds(site)
    series = delete_series(site, pseudonyms)
    return Withdrawal(len(new), ingest.withdraw(site, pseudonyms), series, erased)
