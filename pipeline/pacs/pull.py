"""Fetches what the filters of site.toml let through, without names, and goes on where the last pull ended.

SITE_DIR/pacs/SERIES/IMAGE.dcm           whole series only; what the reader reads
SITE_DIR/pull/partial/SERIES/IMAGE.dcm   images of a series until all of them are here
SITE_DIR/pull/journal.sqlite             which series are done
SITE_DIR/pull/lock                       one pull at a time

The PACS is the master of what exists and of whose it is, but takes nothing back. A series that grew gets its new
images. A series that was deleted there stays here: archives are cleared, and a cohort must not shrink by that.
A series that the PACS now gives to another patient (merged, or corrected) is fetched anew under that patient's
pseudonym; if the images still name the other one it is refused, since nobody here can tell who is right.
"""

import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, cast

from models.refusal import Reason, Refusal
from pipeline.imaging import reasons as imaging_reasons
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.pacs import reasons
from pipeline.pacs.deidentify import check_patient, image_file, strip
from pipeline.pacs.pacs import Pacs, RemoteSeries, StudyQuery, open_pacs
from pipeline.pacs.pull_log import Entry, Journal
from pipeline.pacs.store import SeriesStore
from pipeline.site import reasons as site_reasons
from pipeline.site.folder import Site
from pipeline.site.pacs_settings import Limits, PacsTable, named_file
from pipeline.system.codes import BY_CODE
from pipeline.system.findings import Finding
from pipeline.system.locks import alone

_ENDS_THE_PULL = {
    *(reasons.PACS_AUTH, reasons.PACS_UNTRUSTED, reasons.PACS_PROXY, reasons.PACS_SERVICE),
    *(reasons.PACS_RECEIVER, reasons.PACS_NO_DELIVERY, reasons.DISK),
}
_BAD_IMAGE = {
    imaging_reasons.NOT_DICOM,
    imaging_reasons.PARSE,
    imaging_reasons.TRANSFER_SYNTAX,
}  # whatever `strip` refuses else: the series


@dataclass
class PullReport:
    """What a pull did. `series` = `fetched_now` + `already` + `failed`. `findings` are under pseudonyms."""

    studies: int = 0
    series: int = 0  # that the filters let through
    fetched_now: int = 0
    already: int = 0
    failed: int = 0
    images_now: int = 0
    other_modalities: Counter[str] = field(default_factory=Counter)  # series of these studies, left at the PACS
    other_body_parts: int = 0
    findings: list[Finding] = field(default_factory=list)
    megabytes: float = 0.0  # received
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """All of it, but of the findings their number by code alone."""
        codes = Counter(finding.reason.code for finding in self.findings)
        return {**vars(self), "other_modalities": dict(self.other_modalities), "findings": dict(codes)}


def pull(site: Site, progress: Callable[[int, int], None]) -> PullReport:
    """Bring the site's images up to date with its PACS; `progress(done, total)` is called after each series.

    What is wrong with one series is a finding. Raises Refusal where nothing can go on: E_NO_PACS, E_PULL_RUNNING,
    E_PACS_FILE, E_DISK, E_PACS_SILENT, E_PACS_AUTH, E_PACS_UNTRUSTED, E_PACS_PROXY, E_PACS_ANSWER. What was fetched
    until then stays.
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


def study_query(site: Site, table: PacsTable) -> StudyQuery:
    """What the filters of site.toml ask for.

    Raises Refusal E_PACS_FILE for a list of accession numbers that cannot be used.
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
        # No number, or one with a wildcard, would ask for everything.
        if not accessions or any(set(number) & set("*?\\") for number in accessions):
            raise Refusal(site_reasons.PACS_FILE, private=f"{path}: no accession numbers, or * or ? in them")
    parts = tuple(part.upper() for part in filters.body_parts)
    return StudyQuery(filters.modality, filters.from_date, filters.to_date, accessions, parts)


class _Pull:
    def __init__(self, site: Site, table: PacsTable, pacs: Pacs, journal: Journal) -> None:
        self._site, self._pacs, self._journal = site, pacs, journal
        self._limits = table.limits
        self._pace = _Pace(table.limits.megabytes_per_second)
        self._report = PullReport()

    def run(self, query: StudyQuery, progress: Callable[[int, int], None]) -> PullReport:
        start = time.monotonic()
        report = self._report
        self._pacs.echo()  # who cannot be reached at the start is not waited for
        found = self._find(query)
        wanted = [series for series in found if self._wants(series, query)]
        report.studies, report.series = len({series.study_uid for series in found}), len(wanted)
        progress(0, len(wanted))
        for done, series in enumerate(wanted, start=1):
            self._one(series, SeriesStore(self._site, series))
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
        """Whether to fetch it; what stays at the PACS is counted."""
        missed = query.misses(series)
        if missed == "modality":
            self._report.other_modalities[series.modality if series.modality.isalnum() else "?"] += 1
        elif missed == "body part":
            self._report.other_body_parts += 1
        return not missed

    def _one(self, series: RemoteSeries, store: SeriesStore) -> None:
        """Bring one series here, and say what is wrong with it."""
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
            if refusal.reason == reasons.PACS_SILENT:
                self._pacs.echo()  # silent altogether, or about this series alone?
            if refusal.reason == reasons.PATIENT_DIFFERS:
                store.clear()
            self._report.failed += 1
            self._note(refusal.reason, store, refusal.private)
        for code, count in Counter(self._journal.refused(store.key).values()).items():
            self._note(BY_CODE[code], store, f"{count} images")

    def _note(self, reason: Reason, store: SeriesStore, detail: str) -> None:
        self._report.findings.append(Finding(reason, store.pseudonym, detail, series=store.key[:12]))

    def _is_done(self, series: RemoteSeries, store: SeriesStore) -> bool:
        """Whether all is here, by the journal; what is damaged or belonged to another patient is forgotten."""
        entry = self._journal.entry(store.key)
        is_damaged = entry is not None and entry.images is not None and store.size() != entry.bytes
        if entry is not None and (is_damaged or entry.pseudonym != store.pseudonym):
            store.clear()
            self._journal.forget(store.key)
            entry = None
        if entry is None:
            self._journal.write(Entry(store.key, store.pseudonym, images=None, bytes=0))
            return False
        return entry.images is not None and entry.images == series.images

    def _complete(self, series: RemoteSeries, store: SeriesStore) -> None:
        """Fetch what is missing until nothing is, and put the series where it is read."""
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
        """Fetch what is missing; returns how many images the PACS has."""
        if not store.images():
            bad = self._receive(series, store, None)
            if not bad and len(store.images()) == series.images:
                return series.images  # for the list of images a PACS may take as long as for the images themselves
        remote = {image_file(self._site, image): image for image in self._pacs.images(series)}
        while missing := self._missing(remote, store):
            bad = self._receive(series, store, missing)
            left = self._missing(remote, store)
            if left and len(bad) >= len(left):  # what did not become a file was received, and is bad
                for image, reason in zip(left, bad, strict=False):
                    self._journal.refuse(store.key, image, reason.code)
            elif left == missing:
                raise Refusal(reasons.PACS_INCOMPLETE)
        return len(remote)

    def _missing(self, remote: dict[str, str], store: SeriesStore) -> dict[str, str]:
        """File name to SOP instance UID of the images that are neither here nor known to be bad."""
        known = store.images() | self._journal.refused(store.key).keys()
        return {name: image for name, image in remote.items() if name not in known}

    def _receive(self, series: RemoteSeries, store: SeriesStore, missing: dict[str, str] | None) -> list[Reason]:
        """Receive and keep the missing images, or all; returns what is wrong with those that cannot be kept.

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
    """How often and how long to wait for a PACS that fell silent."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._tries = limits, 0

    def wait(self, refusal: Refusal, *, afresh: bool = False) -> None:
        """Wait before another try; raises the refusal if none is left, or if it is not about silence."""
        self._tries = 0 if afresh else self._tries
        if refusal.reason != reasons.PACS_SILENT or self._tries == self._limits.retries:
            raise refusal
        time.sleep(self._limits.retry_seconds * 2**self._tries)
        self._tries += 1


class _Pace:
    """Keeps the transfer at or below a rate."""

    def __init__(self, megabytes_per_second: float) -> None:
        self._seconds_per_byte = 1e-6 / megabytes_per_second if megabytes_per_second else 0.0
        self._free_at = 0.0

    def wait(self, count: int) -> None:
        """Wait as long as `count` bytes take at that rate, counted from the end of the last wait."""
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + count * self._seconds_per_byte
        if self._free_at > now:
            time.sleep(self._free_at - now)
