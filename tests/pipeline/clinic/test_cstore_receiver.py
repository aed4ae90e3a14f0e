"""Tests of the C-STORE receiver: each series that the PACS sends becomes exactly one complete job, despite faults."""

import errno
import logging
import os
import shutil
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.uid import UID, CTImageStorage, EnhancedSRStorage, ExplicitVRLittleEndian, JPEG2000Lossless, MRImageStorage
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dsutils import create_file_meta, encode_file_meta
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from federation.system.process import free_port
from models.refusal import Refusal
from pipeline.clinic.cstore_receiver import IDLE_SECONDS, PREAMBLE, Reception
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import Store
from pipeline.imaging.reasons import TRUNCATED
from pipeline.pacs.association import keep_answers
from pipeline.scoring.single_scan import read_one
from pipeline.site.tls import as_client
from tests.helpers.dicom_files import PATIENT_ID, SERIES_UID, body, mislabel, rewrite, write_series
from tests.helpers.enhanced import enhanced, legacy_converted, save_frames, single_frames
from tests.helpers.waiting import eventually
from tests.pipeline.clinic.test_store import answer_to
from tests.pipeline.pacs.authority import Authority
from tests.pipeline.pacs.fake_pacs import OUR_TITLE, PACS_TITLE, images

SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
QUIET_SECONDS = 1e-9


class Sender:
    """A fake association, as the receiver sees it."""

    def __init__(self) -> None:
        self.is_released = False
        self._is_alive = True

    def is_alive(self) -> bool:
        return self._is_alive

    def end(self, *, is_released: bool = True) -> None:
        self.is_released, self._is_alive = is_released, False


def settings(
    folder: Path, *, quiet_seconds: float = QUIET_SECONDS, port: int = 11112, tls: dict[str, Path] | None = None
) -> Clinic:
    folder.mkdir(exist_ok=True)
    (folder / "clinic.toml").write_text(
        f'[receiver]\nenabled = true\naet = "{OUR_TITLE}"\npacs_aet = "{PACS_TITLE}"\n'
        f"port = {port}\nquiet_seconds = {quiet_seconds}\n"
        + "".join(f'{key} = "{path}"\n' for key, path in (tls or {}).items())
    )
    return Clinic.open(folder)


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return settings(tmp_path / "clinic")


@pytest.fixture
def store(clinic: Clinic) -> Iterator[Store]:
    with clinic.store() as opened:
        yield opened


class Sent:
    """A C-STORE request in the form that pynetdicom passes to the handler; bytes are a data set that is damaged."""

    def __init__(self, image: Dataset | bytes, sender: Sender, sop_class: Any) -> None:
        self.request, self.assoc = SimpleNamespace(AffectedSOPClassUID=sop_class), sender
        if isinstance(image, bytes):
            self._content = image
            self.file_meta = create_file_meta(
                sop_class_uid=CTImageStorage, sop_instance_uid=UID("1.2"), transfer_syntax=ExplicitVRLittleEndian
            )
            return
        self.file_meta, file = image.file_meta, BytesIO()
        self.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        self.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        dcmwrite(file, image, enforce_file_format=True)
        self._content = file.getvalue()[len(PREAMBLE) + len(encode_file_meta(self.file_meta)) :]

    def encoded_dataset(self, include_meta: bool = True) -> bytes:
        assert not include_meta, "the file in one piece would be in memory twice"
        return self._content


def send(reception: Reception, sender: Sender, *sent: Dataset | bytes, sop_class: Any = CTImageStorage) -> list[int]:
    """Send C-STORE requests. Return the statuses."""
    return [reception.store(Sent(each, sender, sop_class)) for each in sent]  # type: ignore[arg-type]


def deliver(reception: Reception, *sent: Dataset) -> None:
    """Send images in one complete association."""
    sender = Sender()
    assert send(reception, sender, *sent) == [SUCCESS] * len(sent)
    sender.end()


def test_series_becomes_one_job_when_its_association_ends(clinic: Clinic, store: Store) -> None:
    reception, sender, sent = Reception(clinic), Sender(), images(5)
    assert send(reception, sender, *sent) == [SUCCESS] * 5
    reception.sweep(store)
    assert store.jobs.take() is None  # the association is open, so more images may come
    sender.end()
    reception.sweep(store)
    reception.sweep(store)
    job = store.jobs.take()
    assert job is not None and store.jobs.take() is None
    assert (job.source, job.asked_by, job.series_uid) == ("received", PACS_TITLE, SERIES_UID)
    assert job.patient is not None and (job.patient.id, job.patient.sex, job.patient.age_years) == (PATIENT_ID, "F", 63)
    here = sorted((dcmread(path) for path in job.folder.iterdir()), key=lambda image: image.ImagePositionPatient[2])
    assert here == sent
    assert not any(SERIES_UID in str(path) or PATIENT_ID in str(path) for path in clinic.folder.rglob("*"))


def test_padding_makes_no_second_series_and_missing_age_is_calculated(clinic: Clinic, store: Store) -> None:
    reception, sent = Reception(clinic), images(4)
    for index, image in enumerate(sent):
        image.PatientID, image.PatientAge, image.PatientBirthDate = (" 0042", "0042")[index % 2], "", "19571001"
    deliver(reception, *sent)
    reception.sweep(store)
    (job,) = store.jobs.newest()
    assert job.patient is not None and (job.patient.id, job.patient.age_years) == ("0042", 63)
    assert job.patient.key == store.keys.patient_key("0042")
    assert len(list(job.folder.iterdir())) == 4


def test_image_is_on_disk_before_success_is_returned(clinic: Clinic, store: Store) -> None:
    """If the process ends afterwards, the next process continues with the series."""
    sent = images(4)
    assert send(Reception(clinic), Sender(), *sent[:3]) == [SUCCESS] * 3
    (clinic.folder / "received" / ".0000.part").write_bytes(b"half an image, as a kill leaves it")
    again = Reception(clinic)
    assert not list((clinic.folder / "received").glob(".*"))
    deliver(again, sent[3])
    again.sweep(store)
    job = store.jobs.take()
    assert job is not None and len(list(job.folder.iterdir())) == 4


@pytest.mark.parametrize("moment", ["before the job", "after the job"])
def test_kill_while_queuing_neither_loses_nor_duplicates_a_series(
    clinic: Clinic, store: Store, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reception, add = Reception(clinic), store.jobs.add
    deliver(reception, *images(3))

    def killed(*arguments: Any, **options: Any) -> None:
        if moment == "after the job":
            add(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store.jobs, "add", killed)
        reception.sweep(store)
    Reception(clinic).sweep(store)
    (job,) = store.jobs.newest()
    assert len(list(job.folder.iterdir())) == 3


def test_aborted_association_waits_for_the_remaining_images(tmp_path: Path) -> None:
    clinic, sent, now = settings(tmp_path / "clinic", quiet_seconds=10), images(6), [1000.0]
    with clinic.store() as store:
        reception, broken, whole = Reception(clinic, clock=lambda: now[0]), Sender(), Sender()
        send(reception, broken, *sent[:3])
        broken.end(is_released=False)
        now[0] += 100
        reception.sweep(store)
        assert store.jobs.newest() == []
        send(reception, whole, *sent)  # the PACS sends the whole series again
        whole.end()
        now[0] += 9
        reception.sweep(store)
        assert store.jobs.newest() == []
        now[0] += 2
        reception.sweep(store)
        (job,) = store.jobs.newest()
        assert len(list(job.folder.iterdir())) == 6


def test_partial_series_is_queued_after_a_long_wait(tmp_path: Path) -> None:
    clinic, now = settings(tmp_path / "clinic", quiet_seconds=10), [1000.0]
    with clinic.store() as store:
        reception, broken = Reception(clinic, clock=lambda: now[0]), Sender()
        send(reception, broken, *images(3))
        broken.end(is_released=False)
        now[0] += 301
        reception.sweep(store)
        assert len(store.jobs.newest()) == 1


def test_series_with_new_images_is_queued_again_with_all_images(clinic: Clinic, store: Store) -> None:
    reception, sent = Reception(clinic), images(5)
    deliver(reception, *sent[:3])
    reception.sweep(store)
    first = store.jobs.take()
    deliver(reception, *sent[3:])
    reception.sweep(store)
    second = store.jobs.take()
    assert first is not None and second is not None
    assert [len(list(job.folder.iterdir())) for job in (first, second)] == [3, 5]


def test_images_sent_again_do_not_create_a_new_job(clinic: Clinic, store: Store) -> None:
    sent = images(3)
    for reception in (Reception(clinic), Reception(clinic)):
        for _ in range(2):
            deliver(reception, *sent)
            reception.sweep(store)
    assert len(store.jobs.newest()) == 1


@pytest.mark.parametrize("is_after_an_hour", [False, True])
def test_changed_images_sent_again_are_queued_although_their_uids_are_the_same(
    clinic: Clinic, store: Store, is_after_an_hour: bool
) -> None:
    now, sent = [1000.0], images(3)
    reception = Reception(clinic, clock=lambda: now[0])
    for name in ("WRONG^NAME", "RIGHT^NAME", "RIGHT^NAME"):
        for image in sent:
            image.PatientName = name
        deliver(reception, *sent)
        now[0] += 1
        reception.sweep(store)
        now[0] += 4000 * is_after_an_hour
        reception.sweep(store)
    assert [job.patient and job.patient.name for job in store.jobs.newest()] == ["RIGHT^NAME", "WRONG^NAME"]


def test_series_without_a_score_is_queued_each_time_that_it_is_sent_again(clinic: Clinic, store: Store) -> None:
    """Its refusal says so, and neither a restart nor a kill may queue it once more."""
    sent = images(3)
    for times in (1, 2, 3):
        deliver(Reception(clinic), *sent)
        for _ in range(2):
            Reception(clinic).sweep(store)
        assert len(store.jobs.newest()) == times
        job = store.jobs.take()
        assert job is not None and store.jobs.take() is None and len(list(job.folder.iterdir())) == 3
        store.jobs.refuse(job, Refusal(TRUNCATED))
        time.sleep(0.05)  # times of files are some milliseconds late
        Reception(clinic).sweep(store)
    assert [job.state for job in store.jobs.newest()] == ["no_score"] * 3


def test_series_that_was_answered_is_not_queued_again(clinic: Clinic, store: Store) -> None:
    sent = images(3)
    deliver(Reception(clinic), *sent)
    Reception(clinic).sweep(store)
    job = store.jobs.take()
    assert job is not None
    store.answers.add(job, answer_to(store, job))
    deliver(Reception(clinic), *sent)
    Reception(clinic).sweep(store)
    assert [job.state for job in store.jobs.newest()] == ["answered"]


def test_images_of_different_series_or_patients_are_never_mixed(clinic: Clinic, store: Store) -> None:
    reception = Reception(clinic)
    others = [{"SeriesInstanceUID": "1.2.3"}, {"PatientID": "CANARY-0043"}, {"IssuerOfPatientID": "OTHER"}]
    deliver(reception, *images(2), *(image for other in others for image in images(2, **other)))
    reception.sweep(store)
    jobs = store.jobs.newest()
    assert len(jobs) == 4
    assert {len(list(job.folder.iterdir())) for job in jobs} == {2}


def test_identity_that_cannot_be_decoded_counts_as_none(clinic: Clinic, store: Store) -> None:
    reception, sender = Reception(clinic), Sender()
    for number, patient_id in enumerate(("Ä1", "Ö1")):
        whose = {"PatientID": patient_id, "PatientName": "Müll^A", "SeriesInstanceUID": f"1.2.{number}"}
        for image in images(2, SpecificCharacterSet="ISO_IR 100", **whose):
            content = Sent(image, sender, CTImageStorage).encoded_dataset(include_meta=False)
            assert send(reception, sender, mislabel(content)) == [SUCCESS]
    sender.end()
    reception.sweep(store)
    patients = [job.patient for job in store.jobs.newest()]
    assert [patient and (patient.id, patient.key, patient.name, patient.sex) for patient in patients] == [
        ("", "", "", "F")
    ] * 2


DAMAGE = {
    "sex": ("PatientSex", "FD", b"F "),
    "name": ("PatientName", "US", b"DOE^J"),
    "age": ("PatientAge", "US", b"063"),
    "time": ("TimezoneOffsetFromUTC", "FD", b"+0100 "),
}


def damaged(image: Dataset, *elements: tuple[str, str, bytes]) -> bytes:
    """Encode an image without its file meta information, with elements of other VRs and lengths."""
    content = Sent(image, Sender(), CTImageStorage).encoded_dataset(include_meta=False)
    for element in elements:
        content = rewrite(content, *element)
    return content


@pytest.mark.parametrize("damage", DAMAGE)
def test_unreadable_patient_attribute_stops_no_series(clinic: Clinic, store: Store, damage: str) -> None:
    """Before a restart, after it, and when the images are removed."""
    now = [1000.0]
    reception, sender = Reception(clinic, clock=lambda: now[0]), Sender()
    for number in range(3):
        uid, age, offset = f"1.2.{number}", "063Y", "+0100"
        sent = images(2, SeriesInstanceUID=uid, PatientAge=age, TimezoneOffsetFromUTC=offset)
        send(reception, sender, *([damaged(each, DAMAGE[damage]) for each in sent] if number == 1 else sent))
    sender.end()
    now[0] += 1
    reception.sweep(store)
    jobs = {job.series_uid: job.patient for job in store.jobs.newest()}
    assert jobs.keys() == {"1.2.0", "1.2.1", "1.2.2"}
    patient = jobs["1.2.1"]
    assert patient is not None and patient.id == PATIENT_ID
    assert patient.sex == (None if damage == "sex" else "F")
    assert (patient.name == "") == (damage == "name")
    assert patient.age_years == (None if damage == "age" else 63)
    again = Reception(clinic, clock=lambda: now[0])
    deliver(again, *images(2, SeriesInstanceUID="1.2.3"))
    now[0] += 1
    again.sweep(store)
    assert store.jobs.newest()[0].series_uid == "1.2.3" and len(store.jobs.newest()) == 4
    now[0] += 4000
    again.sweep(store)
    assert list((clinic.folder / "received").iterdir()) == []


def test_series_damaged_on_disk_becomes_a_job_that_the_scorer_judges(clinic: Clinic, store: Store) -> None:
    """The worklist then shows why it has no score."""
    reception = Reception(clinic)
    deliver(reception, *images(2))
    for path in (clinic.folder / "received").glob("*/*.dcm"):
        path.write_bytes(b"\0" * 500)
    deliver(reception, *images(2, SeriesInstanceUID="1.2.3"))
    reception.sweep(store)
    assert {job.series_uid for job in store.jobs.newest()} == {None, "1.2.3"}
    (job,) = (job for job in store.jobs.newest() if job.series_uid is None)
    assert job.patient is None
    with pytest.raises(Refusal, match="E_NOT_DICOM"):
        read_one(job.folder)


def test_unreadable_patient_id_is_not_acknowledged(clinic: Clinic, store: Store) -> None:
    """The images of two patients could otherwise become one series."""
    reception, (image,) = Reception(clinic), images(1)
    assert send(reception, Sender(), damaged(image, ("PatientID", "FD", b"42"))) == [CANNOT_UNDERSTAND]
    assert list((clinic.folder / "received").iterdir()) == []


@pytest.mark.parametrize("is_restarted", [False, True])
def test_disk_error_of_one_series_does_not_stop_the_others(
    clinic: Clinic, store: Store, is_restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reception = Reception(clinic)
    for number in range(3):
        deliver(reception, *images(2, SeriesInstanceUID=f"1.2.{number}"))
    make_link, tried = Path.hardlink_to, set()

    def fail(self: Path, target: Path) -> None:
        tried.add(target.parent)
        if len(tried) == 1:
            raise OSError(errno.EIO, "Input/output error")
        make_link(self, target)

    reception = Reception(clinic) if is_restarted else reception
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(Path, "hardlink_to", fail)
        reception.sweep(store)
    assert len(store.jobs.newest()) == 2
    reception.sweep(store)
    assert len(store.jobs.newest()) == 3


def test_images_other_than_axial_ct_are_accepted_but_not_kept(clinic: Clinic, store: Store) -> None:
    reception, sender = Reception(clinic), Sender()
    scout = images(1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    reformat = images(1, ImageType=["DERIVED", "SECONDARY", "AXIAL", "MPR"])
    assert send(reception, sender, *scout, *reformat) == [SUCCESS, SUCCESS]
    for sop_class in (MRImageStorage, EnhancedSRStorage):
        assert send(reception, sender, b"never looked at", sop_class=sop_class) == [SUCCESS]
    sender.end()
    reception.sweep(store)
    assert store.jobs.newest() == []
    assert reception.counts["set_aside"] == 4
    assert list((clinic.folder / "received").iterdir()) == []


@pytest.mark.parametrize("make", [enhanced, legacy_converted])
def test_multi_frame_ct_becomes_a_job(clinic: Clinic, store: Store, tmp_path: Path, make: Any) -> None:
    image = make(single_frames(write_series(tmp_path / "single", body())))
    save_frames(image, tmp_path / "1.dcm")
    reception, sender = Reception(clinic), Sender()
    assert send(reception, sender, dcmread(tmp_path / "1.dcm"), sop_class=image.SOPClassUID) == [SUCCESS]
    sender.end()
    reception.sweep(store)
    (job,) = store.jobs.newest()
    assert job.patient is not None and job.patient.id == PATIENT_ID
    assert read_one(job.folder).volume.hu.shape == body().shape


def test_multi_frame_ct_that_cannot_be_scored_becomes_a_job_too(clinic: Clinic, store: Store, tmp_path: Path) -> None:
    """The worklist then shows why."""
    image = enhanced(single_frames(write_series(tmp_path / "single", body())))
    del image.PerFrameFunctionalGroupsSequence
    save_frames(image, tmp_path / "1.dcm")
    reception, sender = Reception(clinic), Sender()
    send(reception, sender, dcmread(tmp_path / "1.dcm"), sop_class=image.SOPClassUID)
    sender.end()
    reception.sweep(store)
    (job,) = store.jobs.newest()
    with pytest.raises(Refusal, match="E_MULTIFRAME"):
        read_one(job.folder)


def test_other_faulty_slices_are_kept_for_the_scorer_to_judge(clinic: Clinic, store: Store) -> None:
    reception = Reception(clinic)
    deliver(reception, *images(2), *images(3, RescaleSlope=0.0)[2:])
    reception.sweep(store)
    (job,) = store.jobs.newest()
    assert len(list(job.folder.iterdir())) == 3


def test_unreadable_image_is_not_acknowledged(clinic: Clinic, store: Store) -> None:
    reception, (anonymous,) = Reception(clinic), images(1, SeriesInstanceUID="")
    assert send(reception, Sender(), b"\0" * 500, anonymous) == [CANNOT_UNDERSTAND] * 2
    assert reception.counts["unreadable"] == 2
    assert list((clinic.folder / "received").iterdir()) == []


def test_full_disk_is_reported_to_the_sender_without_losing_images(
    clinic: Clinic, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reception, sender, sent = Reception(clinic), Sender(), images(3)
    assert send(reception, sender, sent[0]) == [SUCCESS]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
        assert send(reception, sender, sent[1]) == [OUT_OF_RESOURCES]
    with monkeypatch.context() as patch:

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "fsync", full)
        assert send(reception, sender, sent[1]) == [OUT_OF_RESOURCES]
    assert not list((clinic.folder / "received").glob(".*"))
    assert send(reception, sender, *sent[1:]) == [SUCCESS] * 2
    sender.end()
    reception.sweep(store)
    (job,) = store.jobs.newest()
    assert len(list(job.folder.iterdir())) == 3


def test_images_are_deleted_one_hour_after_queuing(clinic: Clinic, store: Store) -> None:
    now = [1000.0]
    reception = Reception(clinic, clock=lambda: now[0])
    deliver(reception, *images(3))
    now[0] += 1
    for passed, left in ((0, 1), (3500, 1), (200, 0)):
        now[0] += passed
        reception.sweep(store)
        assert len(list((clinic.folder / "received").iterdir())) == left
    (job,) = store.jobs.newest()
    assert len(list(job.folder.iterdir())) == 3


# --- over the network ---


@contextmanager
def running(clinic: Clinic, idle_seconds: float = IDLE_SECONDS) -> Iterator[Reception]:
    stop, reception = Event(), Reception(clinic, idle_seconds=idle_seconds)
    thread = Thread(target=reception.run, args=(stop,))
    thread.start()
    try:
        yield reception
    finally:
        stop.set()
        thread.join(timeout=60)


@contextmanager
def association(
    port: int, *, calling: str = PACS_TITLE, tls: ssl.SSLContext | None = None, tries: int = 600
) -> Iterator[Association]:
    sender = AE(ae_title=calling)
    sender.acse_timeout = sender.dimse_timeout = sender.connection_timeout = 60
    for each in (Verification, MRImageStorage, EnhancedSRStorage):
        sender.add_requested_context(each)
    for syntax in ("1.2.840.10008.1.2.1", JPEG2000Lossless):
        sender.add_requested_context(CTImageStorage, syntax)
    for _ in range(tries):  # the receiver's thread may not be listening yet
        opened = sender.associate("127.0.0.1", port, ae_title=OUR_TITLE, tls_args=(tls, "127.0.0.1") if tls else None)
        if opened.is_established or opened.is_rejected:
            break
        Event().wait(0.1)
    keep_answers(opened)
    yield opened
    if opened.is_established:
        opened.release()


def test_only_the_pacs_may_send_and_every_sop_class_is_accepted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    clinic = settings(tmp_path / "clinic", port=free_port(), quiet_seconds=0.1)
    port = clinic.settings.receiver.port
    sent = images(2, size=64, syntax=JPEG2000Lossless)
    (mr,) = images(1, SOPClassUID=MRImageStorage, Modality="MR")
    with caplog.at_level(logging.DEBUG), running(clinic), clinic.store() as store:
        with association(port) as opened:
            assert opened.send_c_echo().Status == SUCCESS
            assert [opened.send_c_store(image).Status for image in (*sent, mr)] == [SUCCESS] * 3
        with association(port, calling="STRANGER") as stranger:
            assert stranger.is_rejected
        job = eventually(store.jobs.take)
        assert job is not None
        here = [dcmread(path) for path in job.folder.iterdir()]
    assert {image.SOPInstanceUID: image.PixelData for image in here} == {
        image.SOPInstanceUID: image.PixelData for image in sent
    }
    assert "CANARY" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.slow
def test_idle_association_is_released_and_counts_as_complete(tmp_path: Path) -> None:
    # The wait would be 40 s if the association had been aborted.
    clinic = settings(tmp_path / "clinic", port=free_port(), quiet_seconds=1)
    with running(clinic, 10), clinic.store() as store, association(clinic.settings.receiver.port) as opened:
        assert [opened.send_c_store(image).Status for image in images(3)] == [SUCCESS] * 3
        job = eventually(store.jobs.take, seconds=38)
        assert job is not None
        assert not opened.is_established


def test_port_in_use_is_refused_at_start(tmp_path: Path) -> None:
    clinic = settings(tmp_path / "clinic", port=free_port())
    other = settings(tmp_path / "other", port=clinic.settings.receiver.port)
    with running(clinic):
        with association(clinic.settings.receiver.port) as opened:
            assert opened.is_established
        with pytest.raises(Refusal, match="E_PACS_RECEIVER"):
            Reception(other).run(Event())


# --- TLS ---


def receiver_files(authority: Authority) -> dict[str, Path]:
    certificate, key = authority.sign("receiver")
    return {"certificate": certificate, "key": key, "ca_certificate": authority.path}


def shows(authority: Authority, *identity: Path) -> ssl.SSLContext:
    """TLS context of the PACS: it trusts the authority, and presents a certificate if one is given."""
    certificate, key = identity or (None, None)
    return as_client(Path(), authority=authority.path, certificate=certificate, key=key)


def test_tls_accepts_a_certificate_of_the_configured_authority(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path)
    clinic = settings(tmp_path / "clinic", port=free_port(), quiet_seconds=0.1, tls=receiver_files(authority))
    port, sent = clinic.settings.receiver.port, images(2, size=64)
    with running(clinic) as reception, clinic.store() as store:
        with association(port, tls=shows(authority, *authority.sign("pacs"))) as opened:
            assert [opened.send_c_store(image).Status for image in sent] == [SUCCESS] * 2
        job = eventually(store.jobs.take)
        assert job is not None and len(list(job.folder.iterdir())) == 2
        with association(port, tls=shows(authority, *authority.sign("pacs")), calling="STRANGER") as stranger:
            assert stranger.is_rejected
        assert reception.counts["kept"] == 2


@pytest.mark.parametrize("sender", ["in the clear", "no certificate", "of another authority", "over"])
def test_tls_rejects_other_peers_and_logs_the_reason(
    tmp_path: Path, sender: str, caplog: pytest.LogCaptureFixture
) -> None:
    authority, other = Authority.make(tmp_path), Authority.make(tmp_path, "other")
    clinic = settings(tmp_path / "clinic", port=free_port(), tls=receiver_files(authority))
    tls, line = {
        "in the clear": (None, ""),
        "no certificate": (shows(authority), "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
        "of another authority": (shows(authority, *other.sign("pacs")), "CERTIFICATE_VERIFY_FAILED"),
        "over": (shows(authority, *authority.sign("pacs", is_over=True)), "CERTIFICATE_VERIFY_FAILED"),
    }[sender]
    with running(clinic) as reception:
        with association(clinic.settings.receiver.port, tls=shows(authority, *authority.sign("pacs"))) as known:
            assert known.is_established  # the receiver is listening
        with association(clinic.settings.receiver.port, tls=tls, tries=1) as opened:
            assert not opened.is_established and not opened.is_rejected
        eventually(lambda: "receiver was closed" in caplog.text)
        assert f"the DICOM receiver was closed because of a TLS error: {line}" in caplog.text
    assert reception.counts["kept"] == 0


@pytest.mark.parametrize("fault", ["missing", "no certificate", "key of another", "open to others"])
def test_unusable_tls_files_are_refused_at_start(tmp_path: Path, fault: str) -> None:
    authority = Authority.make(tmp_path)
    files = receiver_files(authority)
    if fault == "missing":
        files["certificate"].unlink()
    if fault == "no certificate":
        authority.path.write_text("nothing")
    if fault == "key of another":
        files["key"] = authority.sign("other")[1]
    if fault == "open to others":
        files["key"].chmod(0o644)
    with pytest.raises(Refusal, match="E_PACS_FILE"):
        Reception(settings(tmp_path / "clinic", tls=files))


@pytest.mark.parametrize("given", [("certificate",), ("certificate", "key"), ("ca_certificate",)])
def test_incomplete_set_of_tls_files_is_refused(tmp_path: Path, given: tuple[str, ...]) -> None:
    with pytest.raises(Refusal, match="belong together"):
        settings(tmp_path / "clinic", tls={key: Path(key) for key in given})
