"""Compares how many results, outcomes and labels a site has with those of its last ingest.

A file that was cut between two rows looks whole: only that so many are gone can tell.
"""

from collections.abc import Mapping

from pipeline.cohort import reasons
from pipeline.records.join import Records
from pipeline.system.findings import Finding

FEWER_SHARE, FEWER_AT_LEAST = 0.9, 5  # a few are withdrawn or corrected at any time


def count_records(records: Records) -> dict[str, int]:
    """Return the numbers of all usable results and outcomes, or of labels, whether or not a scan needs them."""
    if records.labels is not None:
        return {"labels": len(records.labels)}
    return {"PCR results": sum(map(len, records.results.values())), "outcomes": len(records.outcomes)}


def fewer_records(now: Mapping[str, int], before: Mapping[str, int]) -> list[Finding]:
    """Return a finding for each kind of records of which there are clearly fewer than before."""
    found = []
    for kind, count in now.items():
        earlier = before.get(kind, 0)
        if count < FEWER_SHARE * earlier and earlier - count >= FEWER_AT_LEAST:
            says = reasons.FEWER_RECORDS.says.format(kind=kind, count=count, before=earlier)
            found.append(Finding(reasons.FEWER_RECORDS, says=says))
    return found
