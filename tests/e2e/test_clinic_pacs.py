"""The clinic with a real PACS (Orthanc): series are listed, fetched and received, and the service is killed meanwhile.

All scans are synthetic. The tests run the model to check that a scan gets the same probability by every transfer.
"""

import json
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]

from federation.system.process import free_port
from models.network import build_network
from models.network_settings import NetworkSettings
from models.release import Release, load_release, save_release
from pipeline.clinic import model_registry, pacs_source
from pipeline.clinic.cstore_receiver import Reception
from pipeline.clinic.pacs_source import PacsSource
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import Store
from pipeline.imaging.dicom_header import read_header
from pipeline.pacs.association import keep_answers
from pipeline.scoring.score import score
from pipeline.site.pacs_settings import PacsTable
from tests.e2e.conftest import Command
from tests.e2e.orthanc import AET, PASSWORD, USER, Orthanc, require_orthanc
from tests.helpers.descriptions import description
from tests.helpers.dicom_files import PATIENT_ID, SERIES_UID, write_series
from tests.pipeline.pacs.fake_pacs import OUR_TITLE
from tests.pipeline.scoring.test_score import SPACING_MM, chest

pytestmark = pytest.mark.e2e
STUDY_UID = "2.25.2718281828459045"
RECEIVE = "import sys\nfrom pathlib import Path\nfrom threading import Event\n" + (
    "from pipeline.clinic.cstore_receiver import Reception\nfrom pipeline.clinic.settings import Clinic\n"
    "Reception(Clinic.open(Path(sys.argv[1]))).run(Event())\n"
)


class Hospital:
    """Orthanc with one synthetic chest CT of one patient, and clinics that use it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scan = folder, folder / "scan"
        self.receiver_port = free_port()
        node = [OUR_TITLE, "127.0.0.1", self.receiver_port]
        self.orthanc = Orthanc(folder / "orthanc", modalities={"node": node})
        self.files = write_series(self.scan, chest(), spacing_mm=SPACING_MM)

    def clinic(self, name: str, *, quiet_seconds: float = 0.5) -> Clinic:
        folder = self.folder / name
        folder.mkdir()
        (folder / "clinic.toml").write_text(
            f'[receiver]\nenabled = true\naet = "{OUR_TITLE}"\npacs_aet = "{AET}"\n'
            f"port = {self.receiver_port}\nquiet_seconds = {quiet_seconds}\n"
            f"[server]\nport = {free_port()}\n"
            f'[results]\nsend = "always"\nurl = "{self.orthanc.url}"\nuser = "{USER}"\npassword_file = "password"\n'
        )
        (folder / "password").touch(mode=0o600)
        (folder / "password").write_text(PASSWORD)
        return Clinic.open(folder)

    def source(self, clinic: Clinic, protocol: str) -> PacsSource:
        web = {"url": self.orthanc.url, "user": USER, "password_file": "password"}
        dimse = {"host": "127.0.0.1", "port": self.orthanc.dicom_port, "called_aet": AET, "calling_aet": OUR_TITLE}
        dimse |= {"receiver_port": self.receiver_port, "retrieve": protocol} if protocol != "dicomweb" else {}
        table = {"protocol": "dicomweb" if protocol == "dicomweb" else "dimse", "limits": {"keep_free_gb": 0}}
        return PacsSource(
            clinic.folder, PacsTable.model_validate({**table, "dicomweb": web, "dimse": dimse}), clinic.folder
        )

    def series(self, modality: str) -> list[str]:
        """Return the Orthanc ids of the series with this modality."""
        query = {"Level": "Series", "Query": {"Modality": modality}}
        found: list[str] = self.orthanc.rest("POST", "/tools/find", json.dumps(query).encode())
        return found

    def send(self) -> None:
        """Let the PACS send the series to the receiver, like an auto-routing rule."""
        (series,) = self.series("CT")
        self.orthanc.rest("POST", "/modalities/node/store", f'{{"Resources": ["{series}"]}}'.encode())


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    require_orthanc()
    opened = Hospital(tmp_path_factory.mktemp("hospital"))
    try:
        opened.orthanc.start()
        assert opened.orthanc.upload(opened.files) == 0
        yield opened
    finally:
        opened.orthanc.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with random weights, marked as trained on patients: phantom results are not sent to the PACS."""
    folder = tmp_path_factory.mktemp("release")
    save_release(folder, build_network(NetworkSettings(), seed=3), description(trained_on_synthetic_data=False))
    return folder


@pytest.fixture(scope="module")
def release(model: Path) -> Release:
    return load_release(model)


@pytest.fixture(scope="module")
def expected(hospital: Hospital, release: Release) -> dict[str, float]:
    """The probabilities of the scan, read from a folder."""
    return score(hospital.scan, release).probabilities


def eventually(condition: Callable[[], Any], *, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def pixels(folder: Path) -> dict[str, bytes]:
    return {image.SOPInstanceUID: image.PixelData for image in map(dcmread, folder.glob("*.dcm"))}


@contextmanager
def receiving(hospital: Hospital, clinic: Clinic) -> Iterator[Store]:
    """Run the receiver in a thread of this process, in the network namespace of the PACS."""
    stop = Event()
    with hospital.orthanc.inside():
        thread = Thread(target=Reception(clinic).run, args=(stop,))
        thread.start()
        assert eventually(lambda: _listens(hospital.receiver_port))
    try:
        with clinic.store() as store:
            yield store
    finally:
        stop.set()
        thread.join(timeout=60)


@contextmanager
def sender(hospital: Hospital) -> Iterator[Any]:
    """Connect with the AE title of the PACS. Yields a function that sends one image and returns the status."""
    entity = AE(ae_title=AET)
    entity.add_requested_context(CTImageStorage)
    entity.acse_timeout = entity.dimse_timeout = entity.connection_timeout = 60
    with hospital.orthanc.inside():

        def associate() -> Any:
            opened = entity.associate("127.0.0.1", hospital.receiver_port, ae_title=OUR_TITLE)
            return opened if opened.is_established else None

        association = eventually(associate)
    keep_answers(association)

    def send(image: Dataset) -> int | None:
        return association.send_c_store(image).get("Status") if association.is_established else None

    send.association = association  # type: ignore[attr-defined]
    try:
        yield send
    finally:
        association.abort()


# --- fetched by a clinician ---


@pytest.mark.parametrize("protocol", ["dicomweb", "c-get", "c-move"])
def test_listed_series_is_fetched_completely_and_scored_as_from_a_folder(
    hospital: Hospital, release: Release, expected: dict[str, float], protocol: str
) -> None:
    clinic = hospital.clinic(protocol)
    source = hospital.source(clinic, protocol)
    with hospital.orthanc.inside(), clinic.store() as store:
        (found,) = source.list_series(patient_id=PATIENT_ID).to_json()["series"]
        assert (found["patient_name"], found["study_date"], found["images"]) == (
            "CANARY^SYNTHETIC",
            "2021-03-04",
            len(hospital.files),
        )
        assert source.list_series(patient_id=PATIENT_ID[:-1]).series == ()
        job = source.ask(store, found["study_uid"], found["series_uid"], by="clinician")
        assert store.jobs.take() is None
        source.fetch_all(store, Event())
        taken = store.jobs.take()
    assert taken is not None and taken.id == job.id
    assert pixels(taken.folder) == pixels(hospital.scan)
    probabilities = score(taken.folder, release, series_uid=taken.series_uid).probabilities
    assert probabilities == pytest.approx(expected, abs=0.01)


def test_zip_gives_the_same_probabilities(
    hospital: Hospital, release: Release, expected: dict[str, float], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for path in hospital.files:
            archive.write(path, path.name)
    assert score(tmp_path / "scan.zip", release).probabilities == pytest.approx(expected, abs=0.01)


def test_fetch_continues_after_the_pacs_was_killed(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service ends too. The next service continues the fetch."""
    clinic, stop = hospital.clinic("interrupted"), Event()
    received = []

    def read_header_of_some(path: Path, *arguments: Any) -> Any:
        received.append(path)
        if len(received) == 20:
            hospital.orthanc.kill()
            stop.set()
        return read_header(path, *arguments)

    monkeypatch.setattr(pacs_source, "read_header", read_header_of_some)  # called for each received image
    with hospital.orthanc.inside(), clinic.store() as store:
        hospital.source(clinic, "dicomweb").ask(store, STUDY_UID, SERIES_UID, by="clinician")
        hospital.source(clinic, "dicomweb").fetch_all(store, stop)
        assert store.jobs.take() is None
        hospital.orthanc.stop()
        hospital.orthanc.start()
        hospital.source(clinic, "dicomweb").fetch_all(store, Event())
        job = store.jobs.take()
    assert job is not None and pixels(job.folder) == pixels(hospital.scan)
    assert len(received) == len(hospital.files)  # no image was fetched twice


# --- sent by the PACS ---


def test_received_series_is_queued_once_when_complete(
    hospital: Hospital, release: Release, expected: dict[str, float]
) -> None:
    clinic = hospital.clinic("received")
    with receiving(hospital, clinic) as store:
        hospital.send()
        job = eventually(store.jobs.take)
        hospital.send()  # again: the same images are not a new scan
        time.sleep(1.5)
        assert store.jobs.take() is None
    assert (job.source, job.patient.id, job.series_uid) == ("received", PATIENT_ID, SERIES_UID)
    assert pixels(job.folder) == pixels(hospital.scan)
    assert score(job.folder, release, series_uid=job.series_uid).probabilities == pytest.approx(expected, abs=0.01)


def test_incomplete_series_is_queued_only_after_the_rest_arrives(hospital: Hospital) -> None:
    clinic = hospital.clinic("halves")
    with receiving(hospital, clinic) as store:
        with sender(hospital) as send:
            assert {send(dcmread(path)) for path in hospital.files[:30]} == {0}
        # The association was aborted. After ten times the quiet period, the half series has not become a job.
        time.sleep(5)
        assert store.jobs.newest() == []
        hospital.send()
        job = eventually(store.jobs.take)
    assert pixels(job.folder) == pixels(hospital.scan)


def test_no_acknowledged_image_is_lost_when_the_receiver_is_killed(hospital: Hospital) -> None:
    """Images acknowledged before kill -9 are not sent again, but are part of the scan."""
    clinic = hospital.clinic("killed", quiet_seconds=12)
    images = [dcmread(path) for path in hospital.files]
    acknowledged: set[str] = set()
    for victim in (True, False):
        with hospital.orthanc.inside():
            process = subprocess.Popen([sys.executable, "-c", RECEIVE, str(clinic.folder)], start_new_session=True)
        try:
            with sender(hospital) as send, clinic.store() as store:
                left = [image for image in images if image.SOPInstanceUID not in acknowledged]
                for number, image in enumerate(left):
                    if victim and number == len(left) // 3:
                        process.kill()
                    if send(image) == 0:
                        acknowledged.add(image.SOPInstanceUID)
                    elif victim:
                        break
                if not victim:
                    send.association.release()
                    jobs = eventually(store.jobs.newest)
        finally:
            process.kill()
            process.wait()
    (job,) = jobs
    assert len(acknowledged) == len(images)
    assert pixels(job.folder) == pixels(hospital.scan)


# --- complete workflow ---


def test_received_scan_is_scored_and_sent_back_once_despite_kills(
    hospital: Hospital, model: Path, expected: dict[str, float]
) -> None:
    clinic = hospital.clinic("service")
    kept = model_registry.add(clinic, model, by="test")
    with clinic.store() as store:
        store.models.set_live(kept.sha256, by="test")
        with _serving(hospital, clinic):
            hospital.send()  # the service is killed as soon as all images are acknowledged
        assert store.answers.newest() == []
        with _serving(hospital, clinic):
            delivered = eventually(lambda: store.deliveries.in_state("sent"), seconds=300)
        (answer,) = store.answers.newest()
    assert len(delivered) == 1
    assert answer.score["probability"] == pytest.approx(expected, abs=0.01)
    assert answer.patient is not None and answer.patient.id == PATIENT_ID
    (report,) = hospital.series("SR")
    (named,) = hospital.orthanc.rest("GET", f"/series/{report}/instances")
    tags = hospital.orthanc.rest("GET", f"/instances/{named['ID']}/simplified-tags")
    assert (tags["PatientID"], tags["StudyInstanceUID"]) == (PATIENT_ID, STUDY_UID)


@contextmanager
def _serving(hospital: Hospital, clinic: Clinic) -> Iterator[None]:
    """Run the service in the network namespace of the PACS, ended by kill -9."""
    with hospital.orthanc.inside():
        command = Command(clinic.folder / "output.log", "serve", clinic.folder)
        try:
            assert eventually(lambda: _listens(hospital.receiver_port), seconds=300), command.text()
            yield
        finally:
            command.kill()
