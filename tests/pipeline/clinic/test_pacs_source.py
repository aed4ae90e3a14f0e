"""Tests of listing and fetching series from a fake PACS in this process. tests/e2e uses a real PACS."""

import logging
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import JPEG2000Lossless
from pynetdicom.events import Event as DicomEvent

from federation.system.process import free_port
from models.refusal import Refusal
from pipeline.clinic import pacs_source
from pipeline.clinic.pacs_source import PacsSource
from pipeline.clinic.records import Job
from pipeline.clinic.store import Store
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.site.pacs_settings import PacsTable
from tests.helpers.dicom_files import PATIENT_ID, SERIES_UID
from tests.helpers.waiting import eventually
from tests.pipeline.pacs.fake_pacs import OUR_TITLE, PACS_TITLE, FakePacs, dataset, images

STUDY_UID = "2.25.2718281828459045"
COUNT = 6


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "clinic") as opened:
        yield opened


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with FakePacs(images=images(COUNT)).running() as running:
        yield running


def source(store: Store, port: int, *, retries: int = 0, keep_free_gb: float = 0) -> PacsSource:
    titles = {"called_aet": PACS_TITLE, "calling_aet": OUR_TITLE}
    dimse = {"host": "127.0.0.1", "port": port, "timeout_seconds": 5, "connect_seconds": 5, **titles}
    limits = {"retries": retries, "retry_seconds": 0, "keep_free_gb": keep_free_gb}
    table = PacsTable.model_validate({"protocol": "dimse", "dimse": dimse, "limits": limits})
    return PacsSource(store.folder, table, store.folder)


def study(uid: str, *series: Dataset, **attributes: str) -> tuple[Dataset, list[Dataset]]:
    usual = {"StudyDate": "20210304", "PatientID": PATIENT_ID, "AccessionNumber": "A1", "ModalitiesInStudy": "CT"}
    return dataset(StudyInstanceUID=uid, **{**usual, **attributes}), list(series)


def ct(uid: str, **attributes: str) -> Dataset:
    return dataset(SeriesInstanceUID=uid, **{"Modality": "CT", "NumberOfSeriesRelatedInstances": "6", **attributes})


def ask(source: PacsSource, store: Store) -> Job:
    return source.ask(store, STUDY_UID, SERIES_UID, by="clinician")


# --- listing ---


def test_ct_series_of_one_patient_are_listed_newest_first(pacs: FakePacs, store: Store) -> None:
    pacs.studies = [
        study("1.1", ct("1.1.1", SeriesDescription="thin")),
        study("1.2", ct("1.2.1"), ct("1.2.2", Modality="SR"), StudyDate="20210401", PatientName="CANARY^ONE"),
        study("1.3", ct("1.3.1"), PatientID=PATIENT_ID + "7"),  # the fake PACS ignores the requested patient
    ]
    found = source(store, pacs.port).list_series(patient_id=f" {PATIENT_ID} ").to_json()
    assert found["complete"]
    assert [each["series_uid"] for each in found["series"]] == ["1.2.1", "1.1.1"]
    assert pacs.asked[0].PatientID == PATIENT_ID
    assert found["series"][0] == {
        "patient_id": PATIENT_ID,
        "issuer": "",
        "patient_name": "CANARY^ONE",
        "accession": "A1",
        "study_uid": "1.2",
        "series_uid": "1.2.1",
        "study_date": "2021-04-01",
        "body_part": "",
        "description": "",
        "images": 6,
    }
    assert found["series"][1]["description"] == "thin"


def test_series_can_be_searched_by_accession_number_and_dates(pacs: FakePacs, store: Store) -> None:
    pacs.studies = [study("1.1", ct("1.1.1")), study("1.2", ct("1.2.1"), AccessionNumber="A2", StudyDate="")]
    asking = source(store, pacs.port)
    assert [each.series_uid for each in asking.list_series(accession="A2").series] == ["1.2.1"]
    march = asking.list_series(from_date=date(2021, 3, 1), to_date=date(2021, 3, 31))
    assert [each.series_uid for each in march.series] == ["1.1.1"]
    assert asking.list_series(accession="A2").to_json()["series"][0]["study_date"] is None


@pytest.mark.parametrize(
    "criteria",
    [
        {},
        {"patient_id": "  "},
        {"patient_id": "*"},
        {"patient_id": "00?"},
        {"accession": "A\\B"},
        {"patient_id": "1\n2"},
        {"patient_id": "1" * 65},
        {"from_date": date(2021, 3, 1)},
        {"to_date": date(2021, 3, 1)},
        {"from_date": date(2021, 3, 1), "to_date": date(2021, 4, 2)},
        {"patient_id": "1", "from_date": date(2021, 3, 2), "to_date": date(2021, 3, 1)},
    ],
)
def test_too_broad_or_empty_search_is_not_sent_to_the_pacs(store: Store, criteria: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match="E_PACS_CRITERIA"):  # nothing listens there: a request would give E_PACS_SILENT
        source(store, free_port()).list_series(**criteria)


def test_long_list_is_truncated_and_marked_incomplete(
    pacs: FakePacs, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacs_source, "MOST_SERIES", 2)
    pacs.studies = [study(f"1.{number}", ct(f"1.{number}.1")) for number in range(1, 9)]
    found = source(store, pacs.port).list_series(patient_id=PATIENT_ID)
    assert (len(found.series), found.is_complete) == (2, False)
    assert len(pacs.asked) == 1 + 3  # stops as soon as it is known that more series exist


# --- fetching ---


def test_series_is_scored_only_after_it_was_fetched_completely(pacs: FakePacs, store: Store) -> None:
    pacs.images = images(COUNT, size=64, syntax=JPEG2000Lossless)
    asking = source(store, pacs.port)
    job = ask(asking, store)
    assert (job.state, job.source, job.asked_by, job.is_whole) == ("waiting", "pacs", "clinician", False)
    assert store.jobs.take() is None
    asking.fetch_all(store, Event())
    taken = store.jobs.take()
    assert taken is not None and taken.id == job.id
    files = sorted(taken.folder.iterdir())
    assert len(files) == COUNT and not any(SERIES_UID in str(path) for path in files)
    here = {image.SOPInstanceUID: image for image in map(dcmread, files)}
    for image in pacs.images:
        assert here[image.SOPInstanceUID].PixelData == image.PixelData
        assert here[image.SOPInstanceUID].PatientName == image.PatientName
        assert here[image.SOPInstanceUID].file_meta.TransferSyntaxUID == JPEG2000Lossless


def test_interrupted_fetch_continues_with_the_missing_images(pacs: FakePacs, store: Store) -> None:
    job = ask(source(store, pacs.port), store)

    class AfterTwo(Event):
        def is_set(self) -> bool:
            return len(list(job.folder.glob("*.dcm"))) >= 2

    source(store, pacs.port).fetch_all(store, AfterTwo())
    assert len(list(job.folder.glob("*.dcm"))) == 2
    assert store.jobs.take() is None
    (job.folder / ".part").write_bytes(b"half an image, as a kill leaves it")
    pacs.asked.clear()
    source(store, pacs.port).fetch_all(store, Event())
    assert len(pacs.asked[-1].SOPInstanceUID) == COUNT - 2
    taken = store.jobs.take()
    assert taken is not None and len(list(taken.folder.iterdir())) == COUNT


def breaks_off(pacs: FakePacs) -> None:
    usual, calls = pacs.usual_get, []

    def get(event: DicomEvent) -> Iterator[Any]:
        calls.append(1)
        for number, answer in enumerate(usual(event)):
            if len(calls) == 1 and number == 3:
                event.assoc.abort()
                return
            yield answer

    pacs.get = get


def test_aborted_retrieval_is_retried(pacs: FakePacs, store: Store) -> None:
    breaks_off(pacs)
    asking = source(store, pacs.port, retries=2)
    job = ask(asking, store)
    asking.fetch_all(store, Event())
    assert store.jobs.get(job.id).is_whole
    assert len(list(job.folder.glob("*.dcm"))) == COUNT


def test_failed_fetch_records_its_reason_and_leaves_no_file(
    pacs: FakePacs, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def of_another(image: Dataset) -> Dataset:
        image.SeriesInstanceUID = "1.2.666"
        return image

    def forgets_one(event: DicomEvent) -> Iterator[Any]:
        yield from list(pacs.usual_get(event))[:-1]

    def nothing() -> None:
        pacs.images = []

    def another() -> None:
        pacs.images = [of_another(image) for image in images(COUNT)]

    faults = {
        "E_PACS_NO_SERIES": (nothing, {}),
        "E_PACS_ANSWER": (another, {}),
        "E_PACS_INCOMPLETE": (lambda: setattr(pacs, "get", forgets_one), {}),
        "E_PACS_SILENT": (lambda: breaks_off(pacs), {}),
        "E_DISK": (lambda: None, {"keep_free_gb": 1e9}),
    }
    for code, (fault, options) in faults.items():
        pacs.images, pacs.get = images(COUNT), None
        fault()
        asking = source(store, pacs.port, **options)
        job = ask(asking, store)
        with caplog.at_level(logging.DEBUG):
            asking.fetch_all(store, Event())
        ended = store.jobs.get(job.id)
        assert (ended.state, ended.code) == ("no_score", code)
        assert ended.says and ended.remedy
        assert not job.folder.exists()
    assert store.jobs.take() is None and store.jobs.arriving() == []
    assert [record.code for record in store.audit.records()] == list(faults)
    assert not any(word in caplog.text for word in ("CANARY", STUDY_UID, SERIES_UID, "127.0.0.1"))


def test_series_of_which_the_pacs_lists_only_the_first_images_is_not_scored(store: Store) -> None:
    with FakePacs(images=images(120)).running() as pacs:
        pacs.studies = [study(STUDY_UID, ct(SERIES_UID, NumberOfSeriesRelatedInstances="120"))]

        def first_hundred(event: DicomEvent) -> Iterator[Any]:
            yield from list(pacs.usual_find(event))[:100]

        pacs.find = first_hundred
        fetching = source(store, pacs.port)
        job = ask(fetching, store)
        fetching.fetch_all(store, Event())
        ended = store.jobs.get(job.id)
        assert (ended.state, ended.code) == ("no_score", "E_PACS_TRUNCATED")
        assert not job.folder.exists()


def test_failed_series_does_not_block_the_next(pacs: FakePacs, store: Store) -> None:
    asking = source(store, pacs.port)
    lost = asking.ask(store, "1.2.3", "1.2.3.4", by="clinician")
    whole = ask(asking, store)
    asking.fetch_all(store, Event())
    assert store.jobs.get(lost.id).state == "no_score"
    assert store.jobs.get(whole.id).is_whole


def test_thread_fetches_requested_series_until_it_is_stopped(pacs: FakePacs, store: Store) -> None:
    stop, asking = Event(), source(store, pacs.port)
    thread = Thread(target=asking.run, args=(stop,))
    thread.start()
    job = ask(asking, store)
    eventually(lambda: store.jobs.get(job.id).is_whole)
    stop.set()
    thread.join(timeout=60)
    assert store.jobs.get(job.id).is_whole and not thread.is_alive()


def test_libraries_that_log_patient_data_stay_silenced(
    pacs: FakePacs, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    asking = source(store, pacs.port)
    with quiet_pydicom(), caplog.at_level(logging.WARNING):
        asking.list_series(patient_id=PATIENT_ID)
    for name in ("pydicom", "urllib3.connectionpool", "dicomweb_client.web"):
        logging.getLogger(name).warning("CANARY")
    assert "CANARY" not in caplog.text


@pytest.mark.parametrize("uids", [("1.2.3", "../../x"), ("1.2.3/series/4", "1.2"), ("", "1.2"), ("1.2", "01.2")])
def test_invalid_uid_is_refused_without_a_request(store: Store, uids: tuple[str, str]) -> None:
    with pytest.raises(Refusal, match="E_PACS_UID"):
        source(store, free_port()).ask(store, *uids, by="clinician")
    assert store.jobs.arriving() == []


def test_full_queue_refuses_further_series(store: Store) -> None:
    asking = source(store, free_port())
    ask(asking, store)
    with pytest.raises(Refusal, match="E_QUEUE_FULL"):
        asking.ask(store, STUDY_UID, SERIES_UID, by="clinician", at_most=1)
