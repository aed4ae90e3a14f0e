"""The PCR result that matches a scan, from the node's laboratory feed, by the site's own rules.

The clinic uses the node's settings: [laboratory] and [join] of site.toml. A feed is read again when one of its files or
the day has changed. Otherwise `open_feed` only compares the files' sizes and times.
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
from pipeline.records.laboratory.times import Clock
from pipeline.site import reasons as site_reasons
from pipeline.site.folder import Site, SiteTable
from pipeline.site.site_data import spoilt_patients

log = logging.getLogger("fedthorax.clinic")

LABORATORY = "laboratory"  # the source of the result
_reading = Lock()


@dataclass(frozen=True)
class _Content:
    """What a feed says.

    `results`: by patient. `spoilt`: patients with a row that was left out, so that no negative result is certain.
    """

    results: dict[str, list[PcrResult]]
    spoilt: frozenset[str]


# By site folder: the state of the feed when it was read, and its content.
_feeds: dict[Path, tuple[tuple[str, str, date], _Content | Refusal]] = {}


@dataclass(frozen=True)
class Feed:
    """The laboratory's feed as it is now. `issuer`, `rules`, `clock`: of the site."""

    content: _Content
    issuer: str
    rules: JoinRules
    clock: Clock = Clock(None)  # noqa: RUF009  immutable

    def day_of(self, scan: datetime) -> date | None:
        """Return the day of a scan at the site."""
        at = self.clock.of_scan(scan)
        return at.date() if at else None

    def find(self, patient_id: str, issuer: str, scan_day: date) -> Pcr | None:
        """Find the patient's PCR result for the day of the scan; None if there is no decisive result.

        It is the result by which the node would label the scan (`records.join`): a positive result in its window; else
        a negative one without a positive one nearby; else an indeterminate one in either window. `collected_on` is the
        day of the specimen; of several days, the one nearest to the scan.
        """
        if not patient_id:
            return None
        if self.issuer and issuer not in ("", self.issuer):
            _log_why_not(site_reasons.ISSUER.code)
            return None
        return _decide(patient_id, scan_day, self.content, self.rules)


def open_feed(site_folder: Path) -> Feed | None:
    """Return the site's feed; None if it has none, or one that cannot be read: then nothing is known about any patient.

    A feed that cannot be read does not prevent scoring: its code is logged.
    """
    try:
        site = Site.open(site_folder)
        if site.settings.laboratory is None:
            return None
        with _reading:  # reading a feed can take long: read it only once
            content = _content(site, date.today())
        table = site.settings.site
        return Feed(content, table.issuer, site.settings.join, Clock.of(table.time_zone))
    except Refusal as refusal:
        _log_why_not(refusal.code)
    except OSError:
        _log_why_not(records_reasons.TABLE_FILE.code)
    return None


def _log_why_not(code: str) -> None:
    log.warning("the PCR lookup in the laboratory's feed failed: %s", code)


def _content(site: Site, today: date) -> _Content:
    """Return what the feed says; read it again only if files, settings or the day have changed.

    Raises Refusal as `read_pcr` does, and OSError.
    """
    table = site.settings.laboratory
    assert table is not None
    files = fingerprint([(str(path), path) for source in table.sources for path in files_of(source)])
    key = (files, site.settings.model_dump_json(include={"site", "laboratory"}), today)
    kept = _feeds.get(site.folder)
    if kept is None or kept[0] != key:
        kept = _feeds[site.folder] = key, _read(table, site.settings.site, today)
    if isinstance(kept[1], Refusal):
        raise kept[1].with_traceback(None)
    return kept[1]


def _read(table: Laboratory, site: SiteTable, today: date) -> _Content | Refusal:
    """Read the feed, or return why it cannot be used: a broken feed takes as long to read, so that is cached too."""
    try:
        rows, findings = read_pcr(table, time_zone=site.time_zone, issuer=site.issuer, today=today)
    except Refusal as refusal:
        return refusal
    results: dict[str, list[PcrResult]] = defaultdict(list)
    for row in rows:
        results[row.patient_id].append(row)
    return _Content(dict(results), frozenset(spoilt_patients(findings)))


def _decide(patient_id: str, scan_day: date, feed: _Content, rules: JoinRules) -> Pcr | None:
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
    """Return the result with its specimen day that is nearest to the scan and inside a window."""
    means = {"positive": True, "negative": False, "indeterminate": None}[result]
    days = [(each.collected.date() - scan_day).days for each in results if each.positive is means]
    nearest = min((day for day in days if any(day in window for window in windows)), key=abs)
    return Pcr(result, scan_day + timedelta(days=nearest), source="laboratory", by=LABORATORY)
