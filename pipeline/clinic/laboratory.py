"""The PCR result that goes with a scan, from the laboratory's feed of the node, by the site's own rules.

The clinic reads what the node reads: [laboratory] and [join] of site.toml. A feed is read anew when a file of it has
changed, or the day has; in between a lookup costs a look at the files' sizes and times.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from threading import Lock

from models.refusal import Refusal
from pipeline.clinic.records import Pcr
from pipeline.clinic.records import PcrResult as Result
from pipeline.imaging.discovery import fingerprint
from pipeline.records import reasons as records_reasons
from pipeline.records.join import JoinRules, label_pcr
from pipeline.records.laboratory import Laboratory, PcrResult, read_pcr
from pipeline.records.laboratory.results import files_of
from pipeline.site import reasons as site_reasons
from pipeline.site.folder import Site, SiteTable
from pipeline.site.site_data import SPOILS_NEGATIVE

log = logging.getLogger("fedthorax.clinic")

LABORATORY = "laboratory"  # who tells the result
_reading = Lock()


@dataclass(frozen=True)
class _Feed:
    """`results`: by patient. `spoilt`: patients with a row that was left out, so that no negative is certain."""

    results: dict[str, list[PcrResult]]
    spoilt: frozenset[str]


# By site folder: what the feed was like when it was read, and what was read.
_feeds: dict[Path, tuple[tuple[str, str, date], _Feed | Refusal]] = {}


def find_pcr(patient_id: str, issuer: str, scan_day: date, site_folder: Path) -> Pcr | None:
    """Find the patient's PCR result for the day of the scan; None without a result that decides.

    It is the result by which the node would label the scan (`records.join`): a positive one in its window, else a
    negative one with no positive near, else an indeterminate one in either window. `collected_on`: the day of the
    specimen; of several, the nearest to the scan. A feed that cannot be read does not prevent scoring: its code is
    logged.
    """
    try:
        site = Site.open(site_folder)
        if site.settings.laboratory is None or not patient_id:
            return None
        ours = site.settings.site.issuer
        if ours and issuer not in ("", ours):
            raise Refusal(site_reasons.ISSUER)
        with _reading:  # a feed may take long to read: once is enough
            feed = _feed(site, date.today())
        return _decide(patient_id, scan_day, feed, site.settings.join)
    except Refusal as refusal:
        log.warning("no PCR result was looked up in the laboratory's feed: %s", refusal.code)
        return None
    except OSError:
        log.warning("no PCR result was looked up in the laboratory's feed: %s", records_reasons.TABLE_FILE.code)
        return None


def _feed(site: Site, today: date) -> _Feed:
    """The feed as it was read last, if neither files nor settings nor the day have changed; else read anew.

    Raises Refusal as `read_pcr` does, and OSError.
    """
    table = site.settings.laboratory
    assert table is not None
    files = fingerprint([(str(path), path) for path in files_of(table.file)])
    key = (files, site.settings.model_dump_json(include={"site", "laboratory"}), today)
    kept = _feeds.get(site.folder)
    if kept is None or kept[0] != key:
        kept = _feeds[site.folder] = key, _read(table, site.settings.site, today)
    if isinstance(kept[1], Refusal):
        raise kept[1].with_traceback(None)
    return kept[1]


def _read(table: Laboratory, site: SiteTable, today: date) -> _Feed | Refusal:
    """The feed, or why it cannot be used: that is kept too, for a broken feed takes as long to read as a good one."""
    try:
        rows, findings = read_pcr(table, time_zone=site.time_zone, issuer=site.issuer, today=today)
    except Refusal as refusal:
        return refusal
    results: dict[str, list[PcrResult]] = defaultdict(list)
    for row in rows:
        results[row.patient_id].append(row)
    return _Feed(dict(results), frozenset(f.patient_id for f in findings if f.reason in SPOILS_NEGATIVE))


def _decide(patient_id: str, scan_day: date, feed: _Feed, rules: JoinRules) -> Pcr | None:
    results = feed.results.get(patient_id, [])
    label = label_pcr(results, datetime.combine(scan_day, time()), rules)
    if label.positive:
        return _pcr("positive", results, scan_day, rules.positive_window)
    if label.positive is False and patient_id not in feed.spoilt:
        return _pcr("negative", results, scan_day, rules.negative_window)
    if label.reason is records_reasons.PCR_INDETERMINATE:
        return _pcr("indeterminate", results, scan_day, rules.positive_window, rules.negative_window)
    return None


def _pcr(result: Result, results: Sequence[PcrResult], scan_day: date, *windows: range) -> Pcr:
    """That result with the day nearest to the scan on which one counts."""
    means = {"positive": True, "negative": False, "indeterminate": None}[result]
    days = [(each.collected.date() - scan_day).days for each in results if each.positive is means]
    nearest = min((day for day in days if any(day in window for window in windows)), key=abs)
    return Pcr(result, scan_day + timedelta(days=nearest), source="laboratory", by=LABORATORY)
