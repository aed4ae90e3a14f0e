"""Search the hospital's PACS for CT series, and fetch the series that a clinician chose.

Unlike `pipeline/pacs/pull.py` this does not de-identify: the answer goes back to the PACS under the same patient.
Images are written as received; only the scoring worker decodes them.

A requested series is a job in the store from the start, but no worker takes it before all of its images are in its
folder. A kill at any moment therefore loses nothing: series that are still incomplete are requested again, and only
their missing images.
"""

import hashlib
import logging
import shutil
import warnings
from collections.abc import Collection, Generator
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from threading import Event
from typing import Any, cast

from pydicom.uid import UID

from models.refusal import Refusal
from pipeline.clinic.reasons import INTERNAL
from pipeline.clinic.records import Job
from pipeline.clinic.store import Store, new_id
from pipeline.imaging.archive import MAX_BYTES, MAX_ENTRIES
from pipeline.imaging.dicom_header import read_header, tags, text
from pipeline.pacs import reasons
from pipeline.pacs.pacs import Pacs, connect
from pipeline.pacs.queries import RemoteSeries, StudyQuery
from pipeline.site.pacs_settings import PacsTable

log = logging.getLogger("fedthorax.clinic")

MOST_SERIES = 200  # in one search result
_MOST_DAYS = 31  # for a search by days only, which returns every CT of these days
_MOST_CHARACTERS = 64  # in an identifier (DICOM PS3.5, 6.2, LO)
_LOOK_SECONDS = 0.5
_PART = ".part"  # a hidden file: readers of the folder ignore it
_IDENTITY = tags("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


@dataclass(frozen=True)
class Listing:
    """CT series, newest study first. `is_complete`: False if the PACS has more than are listed."""

    series: tuple[RemoteSeries, ...]
    is_complete: bool

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of the API (v1). `study_date`: ISO 8601 or null. `images`: their number, or null."""
        return {"complete": self.is_complete, "series": [_to_json(each) for each in self.series]}


class PacsSource:
    """The PACS of `table`. `folder`: the base of relative paths in `table`. `clinic`: the clinic's folder."""

    def __init__(self, clinic: Path, table: PacsTable, folder: Path) -> None:
        hold_back_libraries()
        self._clinic, self._table, self._folder = clinic, table, folder

    def list_series(
        self, *, patient_id: str = "", accession: str = "", from_date: date | None = None, to_date: date | None = None
    ) -> Listing:
        """Find CT series that match all criteria; at least one is needed, and days alone at most a month apart.

        Raises Refusal E_PACS_CRITERIA, E_PACS_FILE, and those of `Pacs`.
        """
        query = _query(patient_id.strip(), accession.strip(), from_date, to_date)
        with connect(self._table, self._folder) as pacs:
            found = [series for series in pacs.find(query) if not query.misses(series)]
        found.sort(key=lambda series: (series.study_date, series.study_uid, series.series_uid), reverse=True)
        return Listing(tuple(found[:MOST_SERIES]), is_complete=len(found) <= MOST_SERIES)

    def ask(self, store: Store, study_uid: str, series_uid: str, *, by: str, at_most: int | None = None) -> Job:
        """Queue a series; `run` then fetches it. `at_most`: as in `Jobs.add`.

        Raises Refusal E_PACS_UID, E_QUEUE_FULL, E_CLINIC_FILE.
        """
        if not all(UID(uid).is_valid for uid in (study_uid, series_uid)):
            raise Refusal(reasons.PACS_UID)
        return store.jobs.add(
            new_id(),
            source="pacs",
            asked_by=by,
            study_uid=study_uid,
            series_uid=series_uid,
            at_most=at_most,
            is_whole=False,
        )

    def run(self, stop: Event) -> None:
        """Fetch the requested series, one after another, until `stop`, in its own thread."""
        with Store(self._clinic) as store:
            while not stop.wait(_LOOK_SECONDS):
                try:
                    self.fetch_all(store, stop)
                except Refusal as refusal:  # raised by the store: its disk may have space again later
                    log.warning("the queue of series to fetch cannot be read: %s", refusal.code)

    def fetch_all(self, store: Store, stop: Event) -> None:
        """Fetch all series that the store waits for. A series that cannot be fetched ends without score and files.

        Raises Refusal E_CLINIC_FILE.
        """
        for job in store.jobs.arriving():
            try:
                is_here = self._fetch(job, stop)
            except Exception as error:  # one series must not stop the next ones
                refusal = error if isinstance(error, Refusal) else Refusal(INTERNAL, private=type(error).__name__)
                log.warning("a series was not fetched from the PACS: %s", refusal.code)
                shutil.rmtree(job.folder, ignore_errors=True)
                store.jobs.refuse(job, refusal)
                continue
            if not is_here:
                return
            store.jobs.mark_arrived(job)

    def _fetch(self, job: Job, stop: Event) -> bool:
        """Fetch all images into the job's folder, with retries if the PACS does not respond; False if stopped."""
        limits = self._table.limits
        tries = 0
        while True:
            try:
                with connect(self._table, self._folder) as pacs:
                    return self._complete(pacs, job, stop)
            except OSError as error:
                raise Refusal(reasons.DISK, private=str(error), gigabytes=limits.keep_free_gb) from error
            except Refusal as refusal:
                if refusal.reason not in reasons.MAY_PASS or tries == limits.retries:
                    raise
            if stop.wait(limits.retry_seconds * 2**tries):
                return False
            tries += 1

    def _complete(self, pacs: Pacs, job: Job, stop: Event) -> bool:
        assert job.study_uid and job.series_uid
        job.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        count = pacs.image_count(job.study_uid, job.series_uid)
        series = RemoteSeries("", "", "", job.study_uid, job.series_uid, "CT", "", count)
        remote = {image_file(image): image for image in pacs.images(series)}
        if not remote:
            raise Refusal(reasons.PACS_NO_SERIES)
        if len(remote) > MAX_ENTRIES:
            raise Refusal(reasons.SERIES_SIZE, images=MAX_ENTRIES, gigabytes=MAX_BYTES >> 30)
        while missing := remote.keys() - _names(job.folder):
            wanted = None if len(missing) == len(remote) else {remote[name] for name in missing}
            if not self._receive(pacs, series, wanted, job.folder, stop):
                return False
            if remote.keys() - _names(job.folder) == missing:
                raise Refusal(reasons.PACS_INCOMPLETE)
        return True

    def _receive(
        self, pacs: Pacs, series: RemoteSeries, wanted: Collection[str] | None, folder: Path, stop: Event
    ) -> bool:
        """Write the images that the PACS sends; False if stopped."""
        total_bytes = 0
        contents = pacs.fetch(series, None if wanted is None else set(wanted))
        with closing(cast("Generator[bytes, None, None]", contents)):
            for content in contents:
                if stop.is_set():
                    return False
                total_bytes += len(content)
                if total_bytes > MAX_BYTES:
                    raise Refusal(reasons.SERIES_SIZE, images=MAX_ENTRIES, gigabytes=MAX_BYTES >> 30)
                self._keep(content, series, folder)
        return True

    def _keep(self, content: bytes, series: RemoteSeries, folder: Path) -> None:
        """Write one image under its hashed name. Raises Refusal E_DISK, E_NOT_DICOM, E_PARSE, E_PACS_ANSWER."""
        keep_free_gb = self._table.limits.keep_free_gb
        if shutil.disk_usage(folder).free < keep_free_gb * 1e9 + len(content):
            raise Refusal(reasons.DISK, gigabytes=keep_free_gb)
        temporary = folder / _PART
        temporary.write_bytes(content)
        header = read_header(temporary, _IDENTITY)
        theirs = text(header, "StudyInstanceUID"), text(header, "SeriesInstanceUID")
        if theirs != (series.study_uid, series.series_uid):
            raise Refusal(reasons.PACS_ANSWER, private="an image of another series")
        temporary.replace(folder / image_file(text(header, "SOPInstanceUID")))


def hold_back_libraries() -> None:
    """Silence, permanently, the libraries that quote patients' values and addresses in warnings and log lines.

    `quiet_pydicom` and the DICOMweb client do this temporarily; with several threads, one would end the other's
    silence.
    """
    warnings.filterwarnings("ignore", module="pydicom")
    for name in ("pydicom", "dicomweb_client", "retrying", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def image_file(image: str) -> str:
    """Return the file name of an image: a hash, because its SOP instance UID may reveal where and when it was made."""
    return f"{hashlib.sha256(image.encode()).hexdigest()[:32]}.dcm"


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.dcm")}


def _query(patient_id: str, accession: str, from_date: date | None, to_date: date | None) -> StudyQuery:
    """Build the query. Raises Refusal E_PACS_CRITERIA."""
    for identifier in (patient_id, accession):
        is_odd = not identifier.isprintable() or set(identifier) & set("*?\\")  # a wildcard would match everything
        if is_odd or len(identifier) > _MOST_CHARACTERS:
            raise Refusal(reasons.PACS_CRITERIA)
    if from_date and to_date and from_date > to_date:
        raise Refusal(reasons.PACS_CRITERIA)
    if not patient_id and not accession:
        to_date = to_date or date.today()
        if from_date is None or (to_date - from_date).days > _MOST_DAYS:
            raise Refusal(reasons.PACS_CRITERIA)
    accessions = (accession,) if accession else ()
    return StudyQuery("CT", from_date, to_date, accessions, patient_id=patient_id, at_most=MOST_SERIES + 1)


def _to_json(series: RemoteSeries) -> dict[str, Any]:
    try:
        day = datetime.strptime(series.study_date, "%Y%m%d").date().isoformat()
    except ValueError:
        day = None
    return {
        "patient_id": series.patient_id,
        "issuer": series.issuer,
        "patient_name": series.patient_name,
        "accession": series.accession,
        "study_uid": series.study_uid,
        "series_uid": series.series_uid,
        "study_date": day,
        "body_part": series.body_part,
        "description": series.description,
        "images": series.images,
    }
