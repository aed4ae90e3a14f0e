"""The automatic mode: a DICOM receiver (C-STORE) that queues every series that the PACS sends.

CLINIC/received/SERIES/IMAGE.dcm   received images under hashed names, on the disk before the PACS gets "success"

C-STORE does not signal the end of a series. A series counts as complete when no image has come for `quiet_seconds` and
all associations that sent it have ended. After a broken association the receiver waits much longer, because the PACS
sends the series again. If images are still missing, scoring detects it: it refuses gaps between slices and cut lungs.

The job's name is derived from the images of the series. A kill at any moment therefore loses nothing and queues nothing
twice. The images are kept one hour longer: if more images of the series arrive, the complete series is queued again.
Images that are sent again are queued if their files differ, or if the series got no score before.
Each axial series is a scan of its own. Images that scoring ignores (localizers, reformats, everything that is not CT)
are accepted with the status "success", so that the PACS does not send them again, and are not queued.
"""

import errno
import hashlib
import logging
import os
import shutil
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dsutils import encode_file_meta
from pynetdicom.events import Event as StoreEvent

from models.refusal import Refusal
from pipeline.clinic.header_patient import patient_of
from pipeline.clinic.pacs_source import hold_back_libraries, image_file
from pipeline.clinic.reasons import NO_SUCH_JOB
from pipeline.clinic.records import Job, Patient
from pipeline.clinic.settings import Clinic, ReceiverTable
from pipeline.clinic.store import Store
from pipeline.imaging import reasons
from pipeline.imaging.ct_slice import inspect_file
from pipeline.imaging.dates_and_ages import AGE
from pipeline.imaging.dicom_header import identifier, read_header, tags, text
from pipeline.imaging.functional_groups import CT_CLASSES
from pipeline.pacs.receiver import OUT_OF_RESOURCES, SUCCESS, receiver
from pipeline.scoring.single_scan import BESIDES_THE_SCAN
from pipeline.site.tls import as_server
from pipeline.system.atomic_files import sync_folder

log = logging.getLogger("fedthorax.clinic")

CANNOT_UNDERSTAND = 0xC000  # PS3.4, table B.2-1
IDLE_SECONDS = 60.0
_BROKEN_OFF_FACTOR = 30  # times `quiet_seconds`
_KEEP_SECONDS = 3600.0
_RESERVE_BYTES = 2**30  # disk space reserved for the scans that are being scored
_LOOK_SECONDS = 0.5
PREAMBLE = bytes(128) + b"DICM"
_SERIES = tags("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID")
_IMAGE = tags("SOPInstanceUID")
_PATIENT = tags("PatientName", "PatientSex", *AGE)


@dataclass
class _Arrival:
    """State of a received series.

    `at`: when its last image arrived, on the receiver's clock. `sha256`: of its files, by name, as far as known.
    """

    at: float
    sha256: dict[str, str] = field(default_factory=dict)
    associations: set[Association] = field(default_factory=set)
    last: Association | None = None
    is_queued: bool = False

    def is_over(self, now: float, quiet_seconds: float) -> bool:
        """Whether no more images are expected."""
        if any(association.is_alive() for association in self.associations):
            return False
        broke_off = self.last is not None and not self.last.is_released
        return now - self.at >= quiet_seconds * (_BROKEN_OFF_FACTOR if broke_off else 1)


class Reception:
    """Receives what the PACS sends, and queues it. `counts`: number of images by outcome."""

    def __init__(
        self, clinic: Clinic, *, clock: Callable[[], float] = time.monotonic, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        """Raises Refusal E_PACS_FILE if certificate, key or authority cannot be used.

        `clock`: seconds since any fixed moment. `idle_seconds`: an association without data for this time is ended.
        """
        hold_back_libraries()
        self._clock, self._idle_seconds = clock, idle_seconds
        self._clinic, self._table = clinic, clinic.settings.receiver
        self._tls = _tls(self._table, clinic.folder)
        self._folder = clinic.folder / "received"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for part in self._folder.glob(".*.part"):
            part.unlink()
        self._lock = Lock()
        self._is_closed = Event()
        # Series from an earlier run may still grow: their quiet time starts now.
        self._arrivals = {path.name: _Arrival(self._clock()) for path in self._folder.iterdir()}
        self.counts: Counter[str] = Counter({"kept": 0, "set_aside": 0, "unreadable": 0, "no_room": 0})

    def run(self, stop: Event) -> None:
        """Receive and queue until `stop`, in its own thread. Raises Refusal E_PACS_RECEIVER, E_CLINIC_FILE."""
        table = self._table
        self._is_closed.clear()  # the service may run it again
        logged = 0
        with (
            self._clinic.store() as store,
            receiver(
                self,
                (table.host, table.port),
                our_title=table.aet,
                pacs_title=table.pacs_aet,
                tls=self._tls,
                silence_seconds=self._idle_seconds,
                others_too=True,
            ),
        ):
            while not stop.wait(_LOOK_SECONDS):
                try:
                    self.sweep(store)
                    if self.counts["set_aside"] != logged:
                        logged = self.counts["set_aside"]
                        log.info("%d of the images received since the start are not axial CT and were left out", logged)
                except (Refusal, OSError) as error:  # the disk may have space again later
                    code = error.code if isinstance(error, Refusal) else type(error).__name__
                    log.warning("received series cannot be queued: %s", code)

    def store(self, event: StoreEvent) -> int:
        """Return the status of a C-STORE request: success if the image is on the disk, or is ignored."""
        if self._is_closed.is_set():
            return OUT_OF_RESOURCES
        event.assoc.network_timeout_response = "A-RELEASE"  # an association that is left open is not broken
        request: Any = event.request
        if request.AffectedSOPClassUID not in CT_CLASSES:
            return self._count("set_aside", SUCCESS)
        part = self._folder / f".{os.urandom(16).hex()}.part"
        try:
            sha256 = self._write(event, part)
            series, image = _names(part)  # first: what names no series may be a damaged slice, and is not set aside
            try:
                inspect_file(part)
            except Refusal as refusal:
                if refusal.reason in BESIDES_THE_SCAN:
                    return self._count("set_aside", SUCCESS)
                # All other problems of a slice are reported when it is scored.
            self._keep(part, series, image_file(image), sha256, event.assoc)
            return self._count("kept", SUCCESS)
        except OSError as error:
            log.warning("a received image cannot be written: %s", errno.errorcode.get(error.errno or 0, "?"))
            return self._count("no_room", OUT_OF_RESOURCES)
        except Refusal as refusal:
            log.warning("a received image cannot be read: %s", refusal.code)
            return self._count("unreadable", CANNOT_UNDERSTAND)
        finally:
            part.unlink(missing_ok=True)

    def close(self) -> None:
        """Accept no more images."""
        self._is_closed.set()

    def sweep(self, store: Store) -> None:
        """Queue each series that counts as complete; remove those that were queued an hour ago.

        Raises Refusal E_CLINIC_FILE if nothing can be queued, and, after all other series, the OSError of one.
        """
        failed: OSError | None = None
        for key in list(self._arrivals):
            with self._lock:  # no image arrives in between
                try:
                    self._attend_to(key, store)
                except OSError as error:  # the next sweep tries this series again
                    failed = failed or error
        if failed:
            raise failed

    def _attend_to(self, key: str, store: Store) -> None:
        """Queue a series if it counts as complete; remove it an hour later. Raises Refusal E_CLINIC_FILE, OSError."""
        arrival, now = self._arrivals[key], self._clock()
        if arrival.is_queued:
            if now - arrival.at >= _KEEP_SECONDS:
                shutil.rmtree(self._folder / key)
                del self._arrivals[key]
        elif arrival.is_over(now, self._table.quiet_seconds):
            self._queue(key, store)
            arrival.is_queued = True
            arrival.associations.clear()

    def _count(self, fate: str, status: int) -> int:
        with self._lock:
            self.counts[fate] += 1
        return status

    def _write(self, event: StoreEvent, part: Path) -> str:
        """Write the file of an image (PS3.10), and return its SHA-256. Raises OSError."""
        # In one piece with its preamble, the image would be in memory twice.
        image = event.encoded_dataset(include_meta=False)
        if shutil.disk_usage(self._folder).free < _RESERVE_BYTES + len(image):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        digest = hashlib.sha256()
        with part.open("wb") as file:
            for content in (PREAMBLE, encode_file_meta(event.file_meta), image):
                file.write(content)
                digest.update(content)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def _keep(self, part: Path, key: str, name: str, sha256: str, association: Association) -> None:
        """Move an image into the folder of its series. Raises OSError."""
        folder = self._folder / key
        with self._lock:
            if not folder.exists():
                folder.mkdir(mode=0o700)
                sync_folder(self._folder)
            part.replace(folder / name)
            sync_folder(folder)
            arrival = self._arrivals.setdefault(key, _Arrival(0.0))
            arrival.at, arrival.last, arrival.is_queued = self._clock(), association, False
            arrival.associations.add(association)
            arrival.sha256[name] = sha256

    def _queue(self, key: str, store: Store) -> None:
        """Create a job for the images of a series, unless it exists. Raises Refusal E_CLINIC_FILE, OSError."""
        images = sorted((self._folder / key).glob("*.dcm"))
        known = self._arrivals[key].sha256
        known |= {path.name: _sha256(path) for path in images if path.name not in known}  # received before a restart
        job_id = _free_id(_digest(key, *(f"{path.name} {known[path.name]}" for path in images)), images, store)
        if not images or not job_id:
            return
        folder = self._clinic.scans / job_id
        shutil.rmtree(folder, ignore_errors=True)  # left by a kill
        folder.mkdir(mode=0o700)
        for path in images:
            (folder / path.name).hardlink_to(path)
        sync_folder(folder)
        study_uid, series_uid, patient = _identity(images[0])
        store.jobs.add(
            job_id,
            source="received",
            asked_by=self._table.pacs_aet,
            study_uid=study_uid,
            series_uid=series_uid,
            patient=patient,
        )


def _identity(image: Path) -> tuple[str | None, str | None, Patient | None]:
    """Return the UIDs of study and series, and the patient; None if the header cannot be read.

    A damaged header stops neither this series, which the PACS believes delivered, nor those after it. If the damage
    matters to the score, the worker refuses the scan, and the worklist shows why.
    """
    try:
        header = read_header(image, _SERIES + _PATIENT)
        return text(header, "StudyInstanceUID"), text(header, "SeriesInstanceUID"), patient_of(header)
    except Refusal as refusal:
        log.warning("the header of a received series cannot be read: %s", refusal.code)
        return None, None, None


def _names(part: Path) -> tuple[str, str]:
    """Return the name of an image's series here, and its SOPInstanceUID. Raises Refusal E_NOT_DICOM, E_PARSE."""
    header = read_header(part, _SERIES + _IMAGE)
    patient = [identifier(header, keyword) for keyword in ("PatientID", "IssuerOfPatientID")]
    study, series, image = (
        text(header, keyword) for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    if not (study and series and image):
        raise Refusal(reasons.PARSE)
    return _digest(*patient, study, series), image


def _tls(table: ReceiverTable, folder: Path) -> ssl.SSLContext | None:
    """Return the TLS context, None if the table configures no TLS. Raises Refusal E_PACS_FILE."""
    if not (table.certificate and table.key and table.ca_certificate):
        return None
    return as_server(folder, authority=table.ca_certificate, certificate=table.certificate, key=table.key)


def _free_id(job_id: str, images: Sequence[Path], store: Store) -> str:
    """Return the name of a new job for these images; "" if they have one that was answered, or is still to be scored.

    A series that got no score may be sent again, as its refusal says. The new name is derived from the earlier job.
    """
    arrived = max((path.stat().st_mtime for path in images), default=0.0)
    while (job := _job(job_id, store)) is not None:
        if job.state != "no_score" or job.ended_at is None or arrived <= job.ended_at.timestamp():
            return ""
        job_id = _digest(job_id, job.ended_at.isoformat())
    return job_id


def _job(job_id: str, store: Store) -> Job | None:
    try:
        return store.jobs.get(job_id)
    except Refusal as refusal:
        if refusal.reason is not NO_SUCH_JOB:
            raise
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(*parts: str) -> str:
    """Return 32 hex digits of the SHA-256 of the texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
