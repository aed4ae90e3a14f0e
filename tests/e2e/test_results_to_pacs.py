"""Results are stored in a real PACS (Orthanc) exactly once, by STOW-RS and C-STORE, despite kills."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from highdicom.sr import srread
from pydicom import dcmread

from federation.system.process import free_port
from pipeline.clinic.records import Answer, Delivery
from pipeline.clinic.results.outbox import Outbox
from pipeline.clinic.results.write import PICTURE, REPORT, write_results
from pipeline.clinic.review import Proposal, decide
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import new_id
from pipeline.pacs.pacs import connect
from pipeline.pacs.queries import RemoteSeries
from pipeline.scoring.score import Score
from tests.e2e.orthanc import AET, PASSWORD, USER, Orthanc, require_orthanc
from tests.helpers.scored_answers import SEVERE, answer_to, score_of, series_of, write_scan
from tests.pipeline.pacs.fake_pacs import OUR_TITLE

pytestmark = pytest.mark.e2e
WAYS = ("stow", "c-store")
SETTINGS = """
[results]
send = "always"
by = "{way}"
url = "{url}"
user = "{user}"
password_file = "password"
host = "127.0.0.1"
port = {port}
called_aet = "{aet}"
calling_aet = "{ours}"
timeout_seconds = 20
retry_seconds = 0.2
"""
# The outbox as a process. With "kill" it is killed (SIGKILL) after the PACS response, before it records the delivery.
SENDER = """
import os, signal, sys, threading
from pathlib import Path
from pipeline.clinic.deliveries import Deliveries
from pipeline.clinic.results.outbox import Outbox
from pipeline.clinic.settings import Clinic
if sys.argv[2:] == ["kill"]:
    Deliveries.set = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Outbox(Clinic.open(Path(sys.argv[1]))).run("pacs", threading.Event())
"""


class Hospital:
    """A PACS with one synthetic scan, and clinics that have scored it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scan = folder, folder / "scan"
        node = {"AET": OUR_TITLE, "Host": "127.0.0.1", "Port": free_port()}
        self.orthanc = Orthanc(folder / "orthanc", modalities={"node": node})
        write_scan(self.scan)
        self.score: Score = score_of(self.scan)

    def fill(self) -> None:
        self.orthanc.upload(sorted(self.scan.iterdir()))

    def clinic(self, way: str) -> tuple[Clinic, Answer]:
        """Create a clinic with one answer that is queued for the PACS."""
        folder = self.folder / new_id()
        folder.mkdir()
        (folder / "password").touch(mode=0o600)
        (folder / "password").write_text(PASSWORD)
        names = {"url": self.orthanc.url, "user": USER, "port": self.orthanc.dicom_port, "aet": AET, "ours": OUR_TITLE}
        (folder / "clinic.toml").write_text(SETTINGS.format(way=way, **names))
        clinic = Clinic.open(folder)
        with clinic.store() as store:
            store.jobs.add(new_id(), source="upload", asked_by="test")
            job = store.jobs.take()
            assert job is not None
            answer = answer_to(self.score, series_of(self.scan), clinic.answers / new_id(), job_id=job.id)
            assert write_results(answer, answer.folder) is None
            store.answers.add(job, answer, deliver=("pacs",))
        return clinic, answer

    @contextmanager
    def sender(self, clinic: Clinic, *how: str) -> Iterator["subprocess.Popen[bytes]"]:
        with self.orthanc.inside():
            process = subprocess.Popen([sys.executable, "-c", SENDER, str(clinic.folder), *how], start_new_session=True)
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.wait()

    def results(self, answer: Answer) -> dict[str, list[str]]:
        """Return the SOP instances of this answer in the PACS, by series number (QIDO-RS)."""
        ours = {dcmread(answer.folder / name).SeriesInstanceUID for name in (REPORT, PICTURE)}
        found = {}
        for series in self.qido(f"/studies/{answer.study_uid}/series?includefield=00200011"):
            uid = value(series, "0020000E")
            if uid in ours:
                instances = self.qido(f"/studies/{answer.study_uid}/series/{uid}/instances")
                found[str(value(series, "00200011"))] = [value(each, "00080018") for each in instances]
        return found

    def qido(self, path: str) -> list[dict[str, Any]]:
        headers = {"Accept": "application/dicom+json"}
        with self.orthanc.inside():
            return requests.get(f"{self.orthanc.url}{path}", auth=(USER, PASSWORD), headers=headers, timeout=60).json()


def value(answer: dict[str, Any], tag: str) -> Any:
    return answer[tag]["Value"][0]


def delivery(clinic: Clinic, answer: Answer) -> Delivery:
    with clinic.store() as store:
        found = store.answers.get(answer.id).pacs
    assert found is not None
    return found


def wait_until(true: Callable[[], bool], *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def expected(answer: Answer) -> dict[str, list[str]]:
    files = [dcmread(answer.folder / name) for name in (REPORT, PICTURE)]
    return {str(each.SeriesNumber): [each.SOPInstanceUID] for each in files}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    require_orthanc()
    made = Hospital(tmp_path_factory.mktemp("hospital"))
    try:
        made.orthanc.start()
        made.fill()
        yield made
    finally:
        made.orthanc.close()


@pytest.mark.parametrize("way", WAYS)
def test_results_are_queued_while_the_pacs_is_down_and_stored_later(hospital: Hospital, way: str) -> None:
    clinic, answer = hospital.clinic(way)
    hospital.orthanc.stop()
    with hospital.sender(clinic):
        wait_until(lambda: delivery(clinic, answer).attempts >= 2)
        waiting = delivery(clinic, answer)
        assert (waiting.state, waiting.code) == ("waiting", "E_PACS_REFUSED")
        hospital.orthanc.start()
        wait_until(lambda: delivery(clinic, answer).state == "sent")
    assert delivery(clinic, answer).code is None
    assert hospital.results(answer) == expected(answer)
    modalities = {value(each, "00080060") for each in hospital.qido(f"/studies/{answer.study_uid}/series")}
    assert modalities == {"CT", "SR", "OT"}
    (source,) = (
        each
        for each in hospital.qido(f"/studies/{answer.study_uid}/series?includefield=00201209")
        if value(each, "00080060") == "CT"
    )
    assert value(source, "00201209") == len(list(hospital.scan.iterdir()))  # no image was overwritten


@pytest.mark.parametrize("way", WAYS)
def test_killed_sender_resends_without_duplicates(hospital: Hospital, way: str) -> None:
    clinic, answer = hospital.clinic(way)
    with hospital.sender(clinic, "kill") as process:
        assert process.wait(timeout=120) == -signal.SIGKILL
    assert hospital.results(answer) == expected(answer)  # the PACS has it, but the outbox does not know
    assert delivery(clinic, answer).state == "waiting"
    with hospital.sender(clinic):
        wait_until(lambda: delivery(clinic, answer).state == "sent")
    assert hospital.results(answer) == expected(answer)


def test_results_are_unchanged_when_fetched_from_the_pacs(hospital: Hospital, tmp_path: Path) -> None:
    clinic, answer = hospital.clinic("stow")
    with hospital.sender(clinic):
        wait_until(lambda: delivery(clinic, answer).state == "sent")
    for name in (REPORT, PICTURE):
        made = dcmread(answer.folder / name)
        series = RemoteSeries("", "", "", answer.study_uid, made.SeriesInstanceUID, made.Modality, "", 1)
        with hospital.orthanc.inside(), connect(clinic.settings.results.pacs, clinic.folder) as pacs:
            (content,) = pacs.fetch(series, None)
        (tmp_path / name).write_bytes(content)
    (severe,) = (
        group
        for group in srread(tmp_path / REPORT).content.get_image_measurement_groups()
        if group.tracking_identifier == "severe"
    )
    assert severe.get_measurements()[0].value == pytest.approx(SEVERE)
    stored, sent = (dcmread(folder / PICTURE) for folder in (tmp_path, answer.folder))
    assert stored.PixelData == sent.PixelData


@pytest.mark.parametrize("way", WAYS)
def test_segmentation_and_verified_report_are_stored_after_a_person_accepted(hospital: Hospital, way: str) -> None:
    clinic, answer = hospital.clinic(way)
    with (clinic.folder / "clinic.toml").open("a") as settings:
        settings.write("seg = true\n")
    clinic = Clinic.open(clinic.folder)
    with clinic.store() as store:
        seen = store.answers.get(answer.id)
        targets = Outbox(clinic).targets(seen, "accepted")
        proposal = Proposal("accepted", seen.revision)
        decided = decide(store, answer.id, proposal, by="reader", person="Leser^Anna", targets=targets)
    with hospital.sender(clinic):
        wait_until(lambda: delivery(clinic, answer).state == "sent")
    assert decided.decision and delivery(clinic, answer).decision_id == decided.decision.id
    made = {path.name: dcmread(path) for path in (answer.folder / decided.decision.id).iterdir()}
    assert made.keys() == {"sr.dcm", "picture.dcm", "seg.dcm"}
    for each in made.values():
        stored = hospital.qido(f"/studies/{answer.study_uid}/series/{each.SeriesInstanceUID}/instances")
        assert [value(one, "00080018") for one in stored] == [each.SOPInstanceUID]
    assert hospital.results(answer) == {}  # the unverified one was replaced before it was sent


def test_permanently_refused_result_is_sent_only_once(hospital: Hospital) -> None:
    """The file is not valid DICOM: Orthanc rejects the whole request with 400."""
    clinic, answer = hospital.clinic("stow")
    (answer.folder / REPORT).unlink()
    (answer.folder / PICTURE).write_bytes((answer.folder / PICTURE).read_bytes()[:2000])
    with hospital.sender(clinic):
        wait_until(lambda: delivery(clinic, answer).attempts == 1)
        wait_until(lambda: delivery(clinic, answer).state != "waiting")
    assert (delivery(clinic, answer).state, delivery(clinic, answer).code) == ("failed", "E_PACS_STORE")
    assert (answer.folder / PICTURE).exists()
