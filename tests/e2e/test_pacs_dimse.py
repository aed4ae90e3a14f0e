"""C-ECHO, C-FIND, C-GET and C-MOVE against a real PACS (Orthanc), and complete pulls over DIMSE."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, JPEG2000Lossless, RLELossless
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import MRImageStorage  # type: ignore[attr-defined]

from federation.system.process import free_port
from models.refusal import Refusal
from pipeline.imaging.discovery import find_series
from pipeline.imaging.functional_groups import CT_CLASSES
from pipeline.imaging.series_reader import read_series
from pipeline.pacs.association import keep_answers
from pipeline.pacs.dimse import DimsePacs
from pipeline.pacs.pull import PullReport, pull
from pipeline.pacs.queries import RemoteSeries, StudyQuery
from pipeline.site.folder import Site, init_site
from pipeline.site.pacs_settings import DimseTable
from tests.e2e.orthanc import AET, Orthanc, require_orthanc
from tests.helpers.dicom_files import PATIENT_ID, body, write_series
from tests.helpers.enhanced import enhanced, legacy_converted, save_frames, single_frames
from tests.pipeline.pacs.authority import Authority
from tests.pipeline.pacs.fake_pacs import OUR_TITLE, images

pytestmark = pytest.mark.e2e
MODES = ("c-get", "c-move")
SLICES = 40
SITE = """
[site]
name = "synthetic"
[pacs]
protocol = "dimse"
[pacs.limits]
retry_seconds = 0.5
[pacs.dimse]
{dimse}
[labels]
file = "labels.csv"
"""


class Hospital:
    """A PACS with two synthetic series (one is compressed) of two patients, and nodes that pull from it."""

    def __init__(self, folder: Path, *, settings: dict[str, Any] | None = None, over_tls: bool = False) -> None:
        self.folder, self.source = folder, folder / "source"
        self.receiver_port = free_port()
        node = {"AET": OUR_TITLE, "Host": "127.0.0.1", "Port": self.receiver_port, "UseDicomTls": over_tls}
        self.orthanc = Orthanc(folder / "orthanc", modalities={"node": node}, settings=settings)
        chest = body(SLICES, 128, 128) + np.random.default_rng(1).integers(-20, 20, (SLICES, 128, 128))

        def of_another(image: Dataset, index: int) -> None:
            image.PatientID, image.StudyInstanceUID, image.SeriesInstanceUID = "CANARY-0043", "1.2.43", "1.2.43.1"
            image.SOPInstanceUID = f"1.2.43.1.{index + 1}"

        write_series(self.source / "plain", chest)
        write_series(self.source / "compressed", -chest, transfer_syntax=JPEG2000Lossless, edit=of_another)

    @contextmanager
    def open(self) -> Iterator["Hospital"]:
        try:
            self.orthanc.start()
            self.orthanc.upload(sorted(self.source.rglob("*.dcm")))
            yield self
        finally:
            self.orthanc.close()

    def settings(self, **settings: Any) -> dict[str, Any]:
        ours = {"host": "127.0.0.1", "port": self.orthanc.dicom_port, "called_aet": AET, "calling_aet": OUR_TITLE}
        return ours | {"receiver_port": self.receiver_port, "timeout_seconds": 20, "connect_seconds": 5} | settings

    def client(self, **settings: Any) -> DimsePacs:
        return DimsePacs(DimseTable(**self.settings(**settings)), self.folder)

    def site(self, name: str, **settings: Any) -> Site:
        lines = [f"{key} = {json.dumps(value)}" for key, value in self.settings(**settings).items()]
        return init_site(self.folder / name, SITE.format(dimse="\n".join(lines)))

    def pull(self, site: Site) -> PullReport:
        with self.orthanc.inside():
            return pull(site, lambda done, total: None)

    def volumes(self, folder: Path) -> list[np.ndarray]:
        """Return the HU volume of every series below a folder."""
        series, findings = find_series(folder)
        assert findings == []
        return sorted((read_series(each).hu for each in series), key=lambda hu: float(hu.mean()))


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    require_orthanc()
    with Hospital(tmp_path_factory.mktemp("hospital")).open() as opened:
        yield opened


def find_one(client: DimsePacs) -> RemoteSeries:
    (found,) = (series for series in client.find(StudyQuery()) if series.patient_id == PATIENT_ID)
    return found


@pytest.mark.parametrize("retrieve", MODES)
def test_images_are_found_and_fetched_unchanged(hospital: Hospital, retrieve: str) -> None:
    client = hospital.client(retrieve=retrieve)
    stored = {path: dcmread(path) for path in hospital.source.rglob("*.dcm")}
    with hospital.orthanc.inside():
        client.echo()
        found = client.find(StudyQuery())
        assert {(each.patient_id, each.modality, each.images) for each in found} == {
            (PATIENT_ID, "CT", SLICES),
            ("CANARY-0043", "CT", SLICES),
        }
        fetched = {}
        for series in found:
            listed = client.images(series)
            arrived = [dcmread(BytesIO(content)) for content in client.fetch(series, None)]
            assert {image.SOPInstanceUID for image in arrived} == listed
            fetched |= {image.SOPInstanceUID: image for image in arrived}
            few = set(sorted(listed)[:7])
            assert {dcmread(BytesIO(content)).SOPInstanceUID for content in client.fetch(series, few)} == few
    assert len(fetched) == len(stored) == 2 * SLICES
    for original in stored.values():
        image = fetched[original.SOPInstanceUID]
        assert image.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
        assert image.PixelData == original.PixelData


@pytest.mark.parametrize("retrieve", MODES)
def test_pull_fetches_all_images_with_equal_hu_and_second_pull_none(hospital: Hospital, retrieve: str) -> None:
    site = hospital.site(f"pull-{retrieve}", retrieve=retrieve)
    first, second = hospital.pull(site), hospital.pull(site)
    assert (first.fetched_now, first.images_now, first.failed, first.findings) == (2, 2 * SLICES, 0, [])
    assert (second.fetched_now, second.images_now, second.already, second.megabytes) == (0, 0, 2, 0.0)
    for here, there in zip(hospital.volumes(site.ct_folder), hospital.volumes(hospital.source), strict=True):
        np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("retrieve", MODES)
def test_pull_completes_although_the_pacs_is_killed_during_it(
    hospital: Hospital, retrieve: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = hospital.site(f"killed-{retrieve}", retrieve=retrieve)
    usual, fetches = DimsePacs.fetch, []
    restart = threading.Timer(1.0, hospital.orthanc.start)

    def fetch(client: DimsePacs, series: RemoteSeries, wanted: set[str] | None) -> Iterator[bytes]:
        fetches.append(wanted)
        for count, content in enumerate(usual(client, series, wanted)):
            yield content
            if len(fetches) == 1 and count == 9:
                hospital.orthanc.kill()
                restart.start()

    monkeypatch.setattr(DimsePacs, "fetch", fetch)
    report = hospital.pull(site)
    restart.join()
    assert (report.fetched_now, report.failed) == (2, 0)
    assert len(fetches) > 2
    assert fetches[-2] is not None and len(fetches[-2]) < SLICES  # only the missing images
    assert report.images_now == 2 * SLICES
    for here, there in zip(hospital.volumes(site.ct_folder), hospital.volumes(hospital.source), strict=True):
        np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"calling_aet": "STRANGER"}, "E_PACS_AUTH"),
        ({"called_aet": "ANOTHER"}, "E_PACS_AUTH"),
        ({"port": 1}, "E_PACS_REFUSED"),
    ],
)
def test_rejected_association_raises_the_reason(hospital: Hospital, settings: dict[str, Any], code: str) -> None:
    with hospital.orthanc.inside(), pytest.raises(Refusal, match=code):
        hospital.client(**settings).echo()


def test_pull_with_an_unknown_ae_title_ends_with_the_reason(hospital: Hospital) -> None:
    with pytest.raises(Refusal, match="E_PACS_AUTH"):
        hospital.pull(hospital.site("stranger", calling_aet="STRANGER"))


def test_c_move_to_a_wrong_receiver_port_ends_without_delivery(hospital: Hospital) -> None:
    client = hospital.client(retrieve="c-move", receiver_port=free_port())
    with hospital.orthanc.inside():
        series = find_one(client)
        with pytest.raises(Refusal, match="E_PACS_NO_DELIVERY") as caught:
            list(client.fetch(series, None))
    assert caught.value.private.startswith(f"AE title {OUR_TITLE}, host 127.0.0.1, port ")


@contextmanager
def stranger(port: int, *, calling: str = AET, called: str = OUR_TITLE) -> Iterator[Association]:
    """Open an association to the receiver as an unknown client that wants to store images."""
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.connection_timeout = 5
    for each in (CTImageStorage, MRImageStorage):
        entity.add_requested_context(each)
    association = entity.associate("127.0.0.1", port, ae_title=called)
    keep_answers(association)
    try:
        yield association
    finally:
        association.abort()


def test_unknown_client_cannot_store_images_during_a_transfer(hospital: Hospital) -> None:
    client, port = hospital.client(retrieve="c-move"), hospital.receiver_port
    (image,) = images(1, SOPInstanceUID="1.2.666")
    with hospital.orthanc.inside():
        series = find_one(client)
        contents = client.fetch(series, None)
        arrived = [next(contents)]
        for titles in ({"calling": "STRANGER"}, {"called": "ANOTHER"}):
            with stranger(port, **titles) as association:
                assert association.is_rejected
        with stranger(port) as association:  # a client that knows both AE titles
            assert {context.abstract_syntax for context in association.accepted_contexts} <= CT_CLASSES
            assert association.send_c_store(image).Status == 0x0124
        arrived += contents
    assert len(arrived) == SLICES
    assert not any(b"1.2.666" in content for content in arrived)


@pytest.mark.parametrize("retrieve", MODES)
def test_pull_over_tls_with_the_hospitals_ca(tmp_path: Path, retrieve: str) -> None:
    require_orthanc()
    authority, other = Authority.make(tmp_path), Authority.make(tmp_path, "other")
    pacs_certificate, pacs_key = authority.sign("pacs")
    settings = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(pacs_certificate),
        "DicomTlsPrivateKey": str(pacs_key),
        "DicomTlsTrustedCertificates": str(authority.path),
        "DicomTlsRemoteCertificateRequired": True,
    }
    certificate, key = map(str, authority.sign("node"))
    with Hospital(tmp_path / "hospital", settings=settings, over_tls=True).open() as hospital:
        ours = {"retrieve": retrieve, "certificate": certificate, "key": key}
        report = hospital.pull(hospital.site("tls", ca_certificate=str(authority.path), **ours))
        assert (report.images_now, report.failed) == (2 * SLICES, 0)
        with hospital.orthanc.inside():
            with pytest.raises(Refusal, match="E_PACS_UNTRUSTED"):  # certificate of another CA
                hospital.client(ca_certificate=str(other.path), **ours).echo()
            with pytest.raises(Refusal, match="E_PACS_UNTRUSTED"):  # the PACS requires a client certificate
                hospital.client(ca_certificate=str(authority.path)).echo()
            with pytest.raises(Refusal, match="E_PACS_CLOSED"):
                hospital.client().echo()


@pytest.mark.parametrize("retrieve", MODES)
@pytest.mark.parametrize("make", [enhanced, legacy_converted])
def test_multi_frame_image_is_pulled_like_its_single_frames(tmp_path: Path, retrieve: str, make: Any) -> None:
    require_orthanc()
    hospital = Hospital(tmp_path)
    plain = hospital.volumes(hospital.source / "plain")
    images = single_frames(sorted((hospital.source / "plain").iterdir()))
    shutil.rmtree(hospital.source)
    save_frames(make(images), hospital.source / "1.dcm", syntax=RLELossless)
    with hospital.open():
        site = hospital.site("node", retrieve=retrieve)
        report = hospital.pull(site)
    assert (report.series, report.fetched_now, report.images_now, report.findings) == (1, 1, 1, [])
    (pulled,) = hospital.volumes(site.ct_folder)
    assert np.array_equal(pulled, plain[0])
