"""Fetch the series that match the filters of site.toml, de-identify them, and resume interrupted pulls.

SITE_DIR/pacs/SERIES/IMAGE.dcm           complete series only; input of the reader
SITE_DIR/pull/partial/SERIES/IMAGE.dcm   images of incomplete series
SITE_DIR/pull/journal.sqlite             list of completed series
SITE_DIR/pull/lock                       one pull at a time

The PACS determines which series exist and which patients they belong to, but nothing is deleted here. A series that
grew gets its new images. A series that was deleted in the PACS is kept: archives are cleared, and a cohort must not
shrink because of that. A series that the PACS now assigns to another patient (merged or corrected) is fetched again
under that patient's pseudonym. If its images still name the other patient it is refused, because the site cannot know
which is right. A series of another issuer, or without a usable PatientID, belongs to no patient of the site. What was
fetched of such a series is deleted: it could be another patient's.
"""

import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, cast

from models.refusal import Reason, Refusal
from pipeline.imaging import reasons as imaging_reasons
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.pacs import reasons
from pipeline.pacs.deidentify import check_patient, image_file, strip
from pipeline.pacs.pacs import Pacs, open_pacs
from pipeline.pacs.pull_log import Entry, Journal
from pipeline.pacs.queries import RemoteSeries, StudyQuery
from pipeline.pacs.series_store import SeriesStore, pulled_folder, unlisted_series
from pipeline.site import reasons as site_reasons
from pipeline.site.folder import Site
from pipeline.site.pacs_settings import Limits, PacsTable, named_file
from pipeline.site.withdrawn import Withdrawn
from pipeline.system.codes import BY_CODE
from pipeline.system.findings import Finding
from pipeline.system.locks import alone

_ENDS_THE_PULL = {
    *(reasons.PACS_AUTH, reasons.PACS_UNTRUSTED, reasons.PACS_PROXY, reasons.PACS_SERVICE),
    *(reasons.PACS_RECEIVER, reasons.PACS_NO_DELIVERY, reasons.DISK),
}
_OTHER_PATIENT = {
    *(reasons.PATIENT_DIFFERS, site_reasons.PATIENT_ID_UNDECODED),
    *(site_reasons.ISSUER, site_reasons.NO_PATIENT_ID),
}
_BAD_IMAGE = {
    imaging_reasons.NOT_DICOM,
    imaging_reasons.PARSE,
    imaging_reasons.TRANSFER_SYNTAX,
}  # all other refusals of `strip` concern the whole series


@dataclass
class PullReport:
    """Result of a pull. `series` = `fetched_now` + `already` + `failed`. `findings` use pseudonyms."""

    studies: int = 0
    series: int = 0  # that match the filters
    fetched_now: int = 0
    already: int = 0
    failed: int = 0
    images_now: int = 0
    other_modalities: Counter[str] = field(default_factory=Counter)  # series of these studies that were not fetched
    other_body_parts: int = 0
    findings: list[Finding] = field(default_factory=list)
    megabytes: float = 0.0  # received
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return all fields; the findings only as numbers by code."""
        codes = Counter(finding.reason.code for finding in self.findings)
        return {**vars(self), "other_modalities": dict(self.other_modalities), "findings": dict(codes)}


def pull(site: Site, progress: Callable[[int, int], None]) -> PullReport:
    """Synchronise the site's images with its PACS; `progress(done, total)` is called after each series.

    A problem of one series is a finding. Raises Refusal if the pull cannot continue: E_NO_PACS, E_PULL_RUNNING,
    E_PACS_FILE, E_DISK, E_PACS_SILENT, E_PACS_AUTH, E_PACS_UNTRUSTED, E_PACS_PROXY, E_PACS_ANSWER, E_PACS_TRUNCATED.
    Images fetched before are kept.
    """
    table = site.settings.pacs
    if table is None:
        raise Refusal(reasons.NO_PACS)
    query = study_query(site, table)
    state = site.folder / "pull"
    try:
        (state / "partial").mkdir(parents=True, exist_ok=True)
        site.ct_folder.mkdir(parents=True, exist_ok=True)
        with (
            alone(state / "lock", reasons.PULL_RUNNING),
            quiet_pydicom(),
            Journal(state / "journal.sqlite") as journal,
            open_pacs(site) as pacs,
        ):
            return _Pull(site, table, pacs, journal).run(query, progress)
    except (OSError, sqlite3.Error) as error:
        raise Refusal(reasons.DISK, private=str(error), gigabytes=table.limits.keep_free_gb) from error


def delete_series(site: Site, pseudonyms: Collection[str]) -> int:
    """Delete the fetched series of some patients; return their number. Raises Refusal: E_PULL_RUNNING, E_DISK.

    What was fetched is deleted also if site.toml has no [pacs] any more.
    """
    state = site.folder / "pull"
    if not state.is_dir() and not pulled_folder(site).is_dir():
        return 0
    limits = site.settings.pacs.limits if site.settings.pacs else Limits()
    try:
        state.mkdir(exist_ok=True)
        with alone(state / "lock", reasons.PULL_RUNNING), Journal(state / "journal.sqlite") as journal:
            keys = {*journal.of_patients(pseudonyms), *unlisted_series(site, journal, pseudonyms)}
            for key in keys:
                SeriesStore(site, key, "").clear()
                journal.forget(key)
            journal.compact()
    except (OSError, sqlite3.Error) as error:
        raise Refusal(reasons.DISK, private=str(error), gigabytes=limits.keep_free_gb) from error
    return len(keys)


def study_query(site: Site, table: PacsTable) -> StudyQuery:
    """Build the query from the filters of site.toml.

    Raises Refusal E_PACS_FILE if the list of accession numbers cannot be used.
    """
    filters = table.filters
    accessions: tuple[str, ...] = ()
    if filters.accessions is not None:
        path = named_file(site.folder / site.settings.site.source / filters.accessions)
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError:
            raise Refusal(site_reasons.PACS_FILE, private=f"{path}: not UTF-8") from None
        accessions = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
        # An empty list or a wildcard would match everything.
        if not accessions or any(set(number) & set("*?\\") for number in accessions):
            raise Refusal(site_reasons.PACS_FILE, private=f"{path}: no accession numbers, or * or ? in them")
    parts = tuple(part.upper() for part in filters.body_parts)
    return StudyQuery(filters.modality, filters.from_date, filters.to_date, accessions, parts)


class _Pull:
    def __init__(self, site: Site, table: PacsTable, pacs: Pacs, journal: Journal) -> None:
        self._site, self._pacs, self._journal = site, pacs, journal
        self._limits, self._withdrawn = table.limits, Withdrawn(site)
        self._pace = _Pace(table.limits.megabytes_per_second)
        self._report = PullReport()

    def run(self, query: StudyQuery, progress: Callable[[int, int], None]) -> PullReport:
        start = time.monotonic()
        report = self._report
        self._pacs.echo()  # no retries if the PACS cannot be reached at the start
        found = self._find(query)
        wanted = [series for series in found if self._wants(series, query)]
        report.studies, report.series = len({series.study_uid for series in found}), len(wanted)
        progress(0, len(wanted))
        for done, series in enumerate(wanted, start=1):
            self._one(series, SeriesStore.of(self._site, series))
            progress(done, len(wanted))
        report.seconds = time.monotonic() - start
        return report

    def _find(self, query: StudyQuery) -> list[RemoteSeries]:
        patience = _Patience(self._limits)
        while True:
            try:
                return self._pacs.find(query)
            except Refusal as refusal:
                patience.wait(refusal)

    def _wants(self, series: RemoteSeries, query: StudyQuery) -> bool:
        """Whether to fetch a series; count those that are not fetched."""
        missed = query.misses(series)
        if missed == "modality":
            self._report.other_modalities[series.modality if series.modality.isalnum() else "?"] += 1
        elif missed == "body part":
            self._report.other_body_parts += 1
        return not missed

    def _one(self, series: RemoteSeries, store: SeriesStore) -> None:
        """Fetch one series, and report its problems as findings."""
        if store.pseudonym in self._withdrawn:
            self._delete(store)
            self._report.failed += 1
            self._report.findings.append(Finding(site_reasons.WITHDRAWN))
            return
        try:
            check_patient(series.patient_id, series.issuer, self._site)
            if self._is_done(series, store):
                self._report.already += 1
            else:
                self._complete(series, store)
                self._report.fetched_now += 1
        except Refusal as refusal:
            if refusal.reason in _ENDS_THE_PULL:
                raise
            if refusal.reason in reasons.MAY_PASS:
                self._pacs.echo()  # raises if the PACS does not respond at all
            if refusal.reason in _OTHER_PATIENT:
                self._delete(store)
            self._report.failed += 1
            self._note(refusal.reason, store, refusal.private)
        for code, count in Counter(self._journal.refused(store.key).values()).items():
            self._note(BY_CODE[code], store, f"{count} images")

    def _delete(self, store: SeriesStore) -> None:
        store.clear()
        self._journal.forget(store.key)

    def _note(self, reason: Reason, store: SeriesStore, detail: str) -> None:
        self._report.findings.append(Finding(reason, store.pseudonym, detail, series=store.key[:12]))

    def _is_done(self, series: RemoteSeries, store: SeriesStore) -> bool:
        """Whether the series is complete, by the journal; drop damaged data and data of another patient."""
        entry = self._journal.entry(store.key)
        is_damaged = entry is not None and entry.images is not None and store.size() != entry.bytes
        if entry is not None and (is_damaged or entry.pseudonym != store.pseudonym):
            self._delete(store)
            entry = None
        if entry is None:
            self._journal.write(Entry(store.key, store.pseudonym, images=None, bytes=0))
            return False
        return entry.images is not None and entry.images == series.images

    def _complete(self, series: RemoteSeries, store: SeriesStore) -> None:
        """Fetch all missing images, then move the series to the reader's folder."""
        store.begin()
        patience = _Patience(self._limits)
        while True:
            here = store.images()
            try:
                images = self._fetch(series, store)
                break
            except Refusal as refusal:
                patience.wait(refusal, afresh=store.images() != here)
        store.finish()
        self._journal.write(Entry(store.key, store.pseudonym, images, store.size()))

    def _fetch(self, series: RemoteSeries, store: SeriesStore) -> int:
        """Fetch missing images; return the number of images in the PACS."""
        if not store.images():
            bad = self._receive(series, store, None)
            if not bad and len(store.images()) == series.images:
                return series.images  # listing the images may take as long as fetching them
        remote = {image_file(self._site, image): image for image in self._pacs.images(series)}
        while missing := self._missing(remote, store):
            bad = self._receive(series, store, missing)
            left = self._missing(remote, store)
            if left and len(bad) >= len(left):  # all images without a file were received, and are bad
                for image, reason in zip(left, bad, strict=False):
                    self._journal.refuse(store.key, image, reason.code)
            elif left == missing:
                raise Refusal(reasons.PACS_INCOMPLETE)
        return len(remote)

    def _missing(self, remote: dict[str, str], store: SeriesStore) -> dict[str, str]:
        """Return file name to SOP instance UID of images that are neither stored nor known to be bad."""
        known = store.images() | self._journal.refused(store.key).keys()
        return {name: image for name, image in remote.items() if name not in known}

    def _receive(self, series: RemoteSeries, store: SeriesStore, missing: dict[str, str] | None) -> list[Reason]:
        """Receive and store the missing images, or all; return the reasons of those that cannot be stored.

        Raises Refusal: E_DISK, those of `Pacs`, and those of `strip` that concern the whole series.
        """
        bad: list[Reason] = []
        parts = self._pacs.fetch(series, None if missing is None else set(missing.values()))
        with closing(cast("Generator[bytes, None, None]", parts)):
            for part in parts:
                self._report.megabytes += len(part) / 1e6
                self._pace.wait(len(part))
                self._check_disk()
                try:
                    name, content = strip(part, self._site, patient_id=series.patient_id)
                except Refusal as refusal:
                    if refusal.reason not in _BAD_IMAGE:
                        raise
                    bad.append(refusal.reason)
                    continue
                if missing is None or name in missing:
                    store.write(name, content)
                    self._report.images_now += 1
        return bad

    def _check_disk(self) -> None:
        if shutil.disk_usage(self._site.folder).free < self._limits.keep_free_gb * 1e9:
            raise Refusal(reasons.DISK, gigabytes=self._limits.keep_free_gb)


class _Patience:
    """Retries with growing pauses for a PACS that does not respond."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._tries = limits, 0

    def wait(self, refusal: Refusal, *, afresh: bool = False) -> None:
        """Wait before a retry; raise the refusal if no retry is left, or if it is of another kind."""
        self._tries = 0 if afresh else self._tries
        if refusal.reason not in reasons.MAY_PASS or self._tries == self._limits.retries:
            raise refusal
        time.sleep(self._limits.retry_seconds * 2**self._tries)
        self._tries += 1


class _Pace:
    """Limits the transfer rate."""

    def __init__(self, megabytes_per_second: float) -> None:
        self._seconds_per_byte = 1e-6 / megabytes_per_second if megabytes_per_second else 0.0
        self._free_at = 0.0

    def wait(self, count: int) -> None:
        """Wait for the time that `count` bytes take at this rate, from the end of the last wait."""
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + count * self._seconds_per_byte
        if self._free_at > now:
            time.sleep(self._free_at - now)
