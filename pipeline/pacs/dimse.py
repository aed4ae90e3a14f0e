"""A PACS over the classic DICOM network services (DICOM PS3.4, annexes A to C): C-ECHO, -FIND, -GET, -MOVE, -STORE."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from threading import Thread
from typing import Self

from pydicom import Dataset, dcmread
from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.status import STATUS_PENDING, STATUS_SUCCESS, STATUS_WARNING, code_to_category

from models.refusal import Refusal
from pipeline.imaging.dicom_header import text
from pipeline.imaging.functional_groups import CT_CLASSES
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.pacs import reasons
from pipeline.pacs.association import FIND, GET, MOVE, NOT_AUTHORISED, OUT_OF_RESOURCES, Tls, associate, failure
from pipeline.pacs.divided_search import Study, TimeRejected, studies
from pipeline.pacs.queries import (
    TRUNCATED_AT,
    WHOLE_DAY,
    Days,
    Minutes,
    RemoteSeries,
    StudyQuery,
    is_within,
    time_range,
    valid_uid,
    whole_number,
)
from pipeline.pacs.receiver import Inbox, receiver
from pipeline.site.pacs_settings import DimseTable

_PATIENT_KEYS = ("PatientID", "IssuerOfPatientID", "PatientName")
_STUDY_KEYS = ("StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", *_PATIENT_KEYS)
_SERIES_KEYS = ("Modality", "BodyPartExamined", "NumberOfSeriesRelatedInstances", "SeriesDescription")
MAX_ANSWERS = 100_000  # to one C-FIND
_ROUND = 50  # a number of results that it divides can be the maximum of a PACS
IMAGES_A_REQUEST = 200  # some PACS reject long lists of UIDs
_NONE_SENT = 0xA702  # all images failed (PS3.4, tables C.4-2 and C.4-3)
LATE_SECONDS = 10.0  # a PACS with a send queue reports the end before the last images have arrived
_ECHO_TRIES = 4
_MAY_HIDE_A_REJECTION = {reasons.PACS_SILENT, reasons.PACS_CLOSED}


class DimsePacs:
    """A `Pacs` over DIMSE; each call opens its own associations and closes them."""

    def __init__(self, table: DimseTable, folder: Path) -> None:
        """`folder`: the base of relative paths in the table. Raises Refusal E_PACS_FILE."""
        self._table = table
        self._tls = Tls.load(table, folder)
        self._delivers = False  # whether the receiver has ever been reached

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left open between calls."""

    def echo(self) -> None:
        """Send a C-ECHO; check the services that a pull needs and, for C-MOVE, the receiver's address.

        Also raises Refusal E_PACS_SERVICE, E_PACS_RECEIVER.
        """
        for tries_left in reversed(range(_ECHO_TRIES)):
            try:
                return self._echo()
            except Refusal as refusal:
                # If a PACS rejects and closes at once, the reset connection may lose the rejection. Ask again to learn
                # the reason.
                if refusal.reason not in _MAY_HIDE_A_REJECTION or not tries_left:
                    raise

    def _echo(self) -> None:
        moves = self._table.retrieve == "c-move"
        with ExitStack() as stack:
            if moves:
                stack.enter_context(self._receiver(Inbox(set(), 0)))
            association = stack.enter_context(self._associate(Verification, FIND, MOVE if moves else GET))
            status = association.send_c_echo()
            if status.get("Status") != 0:
                raise failure(status)

    def find(self, query: StudyQuery) -> list[RemoteSeries]:
        """Send C-FIND at STUDY, then at SERIES level; drop results that do not match or have no valid UID.

        Also raises Refusal E_PACS_TRUNCATED.
        """
        found: dict[str, RemoteSeries] = {}
        with quiet_pydicom(), self._associate(FIND) as association:
            for study in _studies(association, query):
                found |= {series.series_uid: series for series in _series_of(association, study)}
                if query.is_met(found.values()):
                    break
        return list(found.values())

    def image_count(self, study_uid: str, series_uid: str) -> int | None:
        key = _key("SERIES", study_uid, series_uid, NumberOfSeriesRelatedInstances="")
        with quiet_pydicom(), self._associate(FIND) as association:
            ours = [each for each in _answers(association, key) if _uid(each, "SeriesInstanceUID") == series_uid]
        return whole_number(_text(ours[0], "NumberOfSeriesRelatedInstances")) if ours else None

    def images(self, series: RemoteSeries) -> set[str]:
        """Send C-FIND at IMAGE level; return only CT images, because nothing else can be fetched."""
        key = _key("IMAGE", series.study_uid, series.series_uid, SOPInstanceUID="", SOPClassUID="")
        with quiet_pydicom(), self._associate(FIND) as association:
            found = _answers(association, key)
        if TRUNCATED_AT <= len(found) < (series.images or 0):
            raise Refusal(reasons.PACS_TRUNCATED, results=len(found))
        images = [each for each in found if _text(each, "SOPClassUID") in ("", *CT_CLASSES)]
        return {_uid(image, "SOPInstanceUID") for image in images} - {""}

    def fetch(self, series: RemoteSeries, wanted: set[str] | None) -> Iterator[bytes]:
        """Fetch the series, or only the wanted images, with C-GET or C-MOVE.

        Also raises Refusal E_PACS_SERVICE, E_PACS_RECEIVER, E_PACS_NO_DELIVERY.
        """
        is_whole = wanted is None or len(wanted) == series.images
        if wanted is None and self._table.retrieve == "c-move":
            wanted = self.images(series)  # others can reach the receiver too: it accepts only this list
        if wanted == set():
            return
        if wanted is None or is_whole:
            yield from self._retrieve(_key("SERIES", series.study_uid, series.series_uid), wanted)
            return
        images = sorted(wanted)
        for start in range(0, len(images), IMAGES_A_REQUEST):
            part = images[start : start + IMAGES_A_REQUEST]
            key = _key("IMAGE", series.study_uid, series.series_uid, SOPInstanceUID=part)
            yield from self._retrieve(key, set(part))

    def store(self, files: Sequence[Path]) -> list[int]:
        """Send DICOM files with C-STORE; return the status of each (PS3.4, table B.2-1).

        Also raises Refusal E_PACS_SERVICE.
        """
        statuses = []
        for file in files:
            image = dcmread(file)
            with quiet_pydicom(), self._associate(image.SOPClassUID) as association:
                answer = association.send_c_store(image)
            if "Status" not in answer:
                raise failure(answer)
            statuses.append(int(answer.Status))
        return statuses

    def _retrieve(self, key: Dataset, images: set[str] | None) -> Iterator[bytes]:
        """Run one C-GET or C-MOVE: a thread reads its responses, while the caller takes images from the inbox."""
        inbox = Inbox(images, self._table.timeout_seconds)
        with ExitStack() as stack:
            if self._table.retrieve == "c-move":
                stack.enter_context(self._receiver(inbox))
                association = stack.enter_context(self._associate(MOVE))
                answers = association.send_c_move(key, self._table.calling_aet, MOVE)
            else:
                association = stack.enter_context(self._associate(GET, inbox=inbox))
                answers = association.send_c_get(key, GET)
            association.dimse_timeout = None  # the inbox has a timeout: C-MOVE sends over another association
            thread = Thread(target=self._follow, args=(answers, inbox), daemon=True)
            thread.start()
            try:
                yield from inbox
            except BaseException:
                inbox.close()
                association.abort()
                association.dimse.msg_queue.put((None, None))  # wake the thread that waits for a response
                raise
            finally:
                thread.join()

    def _follow(self, answers: Iterator[tuple[Dataset, Dataset | None]], inbox: Inbox) -> None:
        """Read the responses to C-GET or C-MOVE; the last one contains the outcome."""
        outcome: Refusal | None = failure(Dataset())
        try:
            for status, _ in answers:
                if "Status" not in status:
                    break
                if code_to_category(status.Status) == STATUS_PENDING:
                    inbox.show_life()
                else:
                    outcome = self._outcome(status, inbox)
        except Exception as error:  # invalid responses make pynetdicom raise many types of errors
            outcome = Refusal(reasons.PACS_ANSWER, private=type(error).__name__)
        inbox.end(outcome)

    def _outcome(self, status: Dataset, inbox: Inbox) -> Refusal | None:
        """Interpret the last response. Single failed images are left out, as `Pacs.fetch` allows."""
        table = self._table
        has_worked = code_to_category(status.Status) in (STATUS_SUCCESS, STATUS_WARNING) or status.Status == _NONE_SENT
        if table.retrieve == "c-move" and status.Status not in (NOT_AUTHORISED, *OUT_OF_RESOURCES):
            if has_worked and not status.get("NumberOfFailedSuboperations"):
                inbox.is_complete.wait(min(LATE_SECONDS, table.timeout_seconds / 2))
            self._delivers |= not inbox.is_untouched
            if not self._delivers:
                here = f"AE title {table.calling_aet}, host {table.receiver_host}, port {table.receiver_port}"
                return Refusal(reasons.PACS_NO_DELIVERY, private=f"{here}; C-MOVE ended with {status.Status:04X}H")
        return None if has_worked else failure(status)

    def _associate(self, *services: UID, inbox: Inbox | None = None) -> AbstractContextManager[Association]:
        return associate(self._table, self._tls, services, inbox)

    def _receiver(self, inbox: Inbox) -> AbstractContextManager[None]:
        table = self._table
        return receiver(
            inbox,
            (table.receiver_host, table.receiver_port),
            our_title=table.calling_aet,
            pacs_title=table.called_aet,
            tls=self._tls.server if self._tls else None,
            silence_seconds=table.timeout_seconds,
        )


def _key(level: str, study_uid: str, series_uid: str = "", **keys: str | list[str]) -> Dataset:
    """The identifier of a request below one study."""
    key = Dataset()
    key.QueryRetrieveLevel, key.StudyInstanceUID, key.SeriesInstanceUID = level, study_uid, series_uid
    for keyword, value in keys.items():
        setattr(key, keyword, value)
    return key


def _studies(association: Association, query: StudyQuery) -> list[Dataset]:
    """Return the matching studies, each once. Raises Refusal E_PACS_TRUNCATED."""
    found: dict[str, Dataset] = {}
    for accession in query.accessions or ("",):

        def search(days: Days, minutes: Minutes, accession: str = accession) -> _Results:
            return _Results(association, _study_key(query, accession, days, minutes))

        for study in studies((query.from_date, query.to_date), search, _study):
            if _matches(study, query):
                found[_uid(study, "StudyInstanceUID")] = study
    return list(found.values())


def _study(answer: Dataset) -> Study:
    return Study(_uid(answer, "StudyInstanceUID"), _text(answer, "StudyDate"), _text(answer, "StudyTime"))


class _Results:
    """The results of one C-FIND for studies. A PACS may reject what is too much (A700H), or leave it out silently.

    Only a round number of results makes it sure that some are left out: a PACS without a maximum may have many in a
    day, and may not find all of them by their time.
    """

    def __init__(self, association: Association, key: Dataset) -> None:
        self._association, self._key = association, key
        self.count = 0
        self.refusal: Refusal | None = None

    @property
    def is_cut(self) -> bool:
        return self.refusal is not None or self.count >= TRUNCATED_AT

    @property
    def is_surely_cut(self) -> bool:
        return self.refusal is not None or (self.is_cut and self.count % _ROUND == 0)

    def __iter__(self) -> Iterator[Dataset]:
        found, status = _ask(self._association, self._key)
        self.count = len(found)
        yield from found
        if code_to_category(status.Status) == STATUS_SUCCESS:
            return
        refusal = failure(status)
        if status.Status in OUT_OF_RESOURCES:
            self.refusal = refusal
        elif self._key.get("StudyTime") and refusal.reason is reasons.PACS_ANSWER:
            raise TimeRejected(refusal.private)
        else:
            raise refusal


def _study_key(query: StudyQuery, accession: str, days: Days, minutes: Minutes) -> Dataset:
    """Build the identifier of a request at STUDY level; days and minutes are inclusive."""
    key = Dataset()
    key.QueryRetrieveLevel = "STUDY"
    for keyword in _STUDY_KEYS:
        setattr(key, keyword, "")
    key.ModalitiesInStudy, key.AccessionNumber, key.PatientID = query.modality, accession, query.patient_id
    if any(days):
        start, end = (f"{day:%Y%m%d}" if day else "" for day in days)
        key.StudyDate = start if start == end else f"{start}-{end}"
    if minutes != WHOLE_DAY:
        key.StudyTime = time_range(minutes)
    return key


def _answers(association: Association, key: Dataset) -> list[Dataset]:
    """Return all responses to a C-FIND."""
    found, status = _ask(association, key)
    if code_to_category(status.Status) != STATUS_SUCCESS:
        raise failure(status)
    return found


def _ask(association: Association, key: Dataset) -> tuple[list[Dataset], Dataset]:
    """Return all responses to a C-FIND, and the status that ends them. Raises Refusal if the association breaks."""
    found: list[Dataset] = []
    for status, answer in association.send_c_find(key, FIND):
        if "Status" not in status:
            break
        if code_to_category(status.Status) != STATUS_PENDING:
            return found, status
        if answer is None or len(found) == MAX_ANSWERS:
            raise Refusal(reasons.PACS_ANSWER, private="C-FIND: unreadable response, or too many")
        found.append(answer)
    raise failure(Dataset())


def _matches(study: Dataset, query: StudyQuery) -> bool:
    """Whether a study matches the query: a PACS ignores keys that it does not support."""
    day, modalities = _text(study, "StudyDate"), _text(study, "ModalitiesInStudy")
    return (
        (not query.accessions or _text(study, "AccessionNumber") in query.accessions)
        and (not query.patient_id or _text(study, "PatientID") == query.patient_id)
        and is_within(day, query.from_date, query.to_date)
        and (not query.modality or not modalities or query.modality in modalities.split("\\"))
    )


def _series_of(association: Association, study: Dataset) -> Iterator[RemoteSeries]:
    study_uid = _uid(study, "StudyInstanceUID")
    for answer in _answers(association, _key("SERIES", study_uid, **dict.fromkeys(_SERIES_KEYS, ""))):
        series_uid = _uid(answer, "SeriesInstanceUID")
        if series_uid and _text(answer, "StudyInstanceUID") in ("", study_uid):
            yield RemoteSeries(
                patient_id=_text(study, "PatientID"),
                issuer=_text(study, "IssuerOfPatientID"),
                accession=_text(study, "AccessionNumber"),
                study_uid=study_uid,
                series_uid=series_uid,
                modality=_text(answer, "Modality"),
                body_part=_text(answer, "BodyPartExamined"),
                images=whole_number(_text(answer, "NumberOfSeriesRelatedInstances")),
                patient_name=_text(study, "PatientName"),
                study_date=_text(study, "StudyDate"),
                description=_text(answer, "SeriesDescription"),
            )


def _text(answer: Dataset, keyword: str) -> str:
    """Return a value as text, '' if it is missing or unreadable."""
    try:
        return text(answer, keyword).strip()
    except Refusal:
        return ""


def _uid(answer: Dataset, keyword: str) -> str:
    """Return a UID, '' if there is no valid one."""
    return valid_uid(_text(answer, keyword))
