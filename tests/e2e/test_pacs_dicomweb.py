"""Complete pulls over DICOMweb from a real PACS (Orthanc): restarts, kills, TLS, proxies, filters, planted names."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless

from models.refusal import Refusal
from pipeline.imaging.discovery import find_series
from pipeline.imaging.series_reader import read_series
from pipeline.pacs.pacs import open_pacs
from pipeline.pacs.pull import PullReport, pull
from pipeline.site.folder import Site, init_site
from tests.e2e.orthanc import PASSWORD, USER, Orthanc, require_orthanc
from tests.helpers.dicom_files import anything_goes, body, write_series
from tests.helpers.enhanced import enhanced, legacy_converted, save_frames, single_frames
from tests.pipeline.pacs.authority import Authority
from tests.pipeline.pacs.planted import NAME, holds, plant

pytestmark = pytest.mark.e2e
SLICES = 30
SITE = """
[site]
name = "synthetic"
[pacs]
protocol = "dicomweb"
[pacs.dicomweb]
{dicomweb}
[pacs.limits]
retry_seconds = 0.2
keep_free_gb = 0
{limits}
[pacs.filters]
{filters}
[labels]
file = "labels.csv"
"""
# A pull as a process. The last line of its output is the report as JSON, or the code of a refusal.
PULL = """
import json, sys
from pathlib import Path
from models.refusal import Refusal
from pipeline.pacs.pull import pull
from pipeline.site.folder import Site
try:
    print(json.dumps(pull(Site.open(Path(sys.argv[1])), lambda done, total: print(done, total, flush=True)).to_json()))
except Refusal as refusal:
    print(json.dumps(refusal.code))
"""


class Hospital:
    """A PACS with synthetic patients, and the source files that were stored in it."""

    def __init__(self, folder: Path, **orthanc: Any) -> None:
        self.folder, self.source = folder, folder / "source"
        self.orthanc = Orthanc(folder / "orthanc", **orthanc)
        self.sites = 0

    @contextmanager
    def open(self) -> Iterator["Hospital"]:
        try:
            self.orthanc.start()
            yield self
        finally:
            self.orthanc.close()

    def add(self, number: int, *, slices: int = SLICES, size: int = 64, first: int = 0, **options: Any) -> None:
        """Store a series of patient CANARY-<number> in the PACS, or more slices of it."""
        attributes = options.pop("attributes", {})

        def edit(image: Dataset, index: int) -> None:
            image.PatientID, image.StudyInstanceUID = f"CANARY-{number}", f"1.2.{number}"
            image.SeriesInstanceUID = f"1.2.{number}.1"
            image.SOPInstanceUID = f"1.2.{number}.1.{first + index + 1}"
            image.AccessionNumber, image.BodyPartExamined = f"ACC{number}", "CHEST"
            for keyword, value in attributes.items():
                setattr(image, keyword, value)

        noise = np.random.default_rng(number).integers(-20, 20, (slices, size, size))
        folder = self.source / f"{number}-{first}"
        hu = body(slices, size, size) + noise
        self.orthanc.upload(write_series(folder, hu, origin_mm=(0.0, 0.0, 2.0 * first), edit=edit, **options))

    def site(self, *, limits: str = "", filters: str = "", **dicomweb: Any) -> Site:
        self.sites += 1
        folder = self.folder / f"site-{self.sites}"
        (folder / "keys").mkdir(parents=True)
        (folder / "keys" / "password").touch(mode=0o600)
        (folder / "keys" / "password").write_text(f"{PASSWORD}\n")
        ours = {"url": self.orthanc.url, "user": USER, "password_file": "keys/password", "timeout_seconds": 20}
        given = {key: value for key, value in (ours | dicomweb).items() if value is not None}
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in given.items())
        return init_site(folder, SITE.format(dicomweb=lines, limits=limits, filters=filters))

    def pull(self, site: Site) -> PullReport:
        with self.orthanc.inside():
            return pull(site, lambda done, total: None)

    def refused(self, site: Site) -> str:
        with pytest.raises(Refusal) as caught:
            self.pull(site)
        assert "127.0.0.1" not in str(caught.value)
        return caught.value.code

    def start(self, site: Site) -> subprocess.Popen[str]:
        with self.orthanc.inside():
            return subprocess.Popen(
                [sys.executable, "-c", PULL, str(site.folder)],
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )

    def is_all_here(self, site: Site) -> bool:
        """Return whether the site has the same scans as the source, bit for bit."""
        return volumes(site.ct_folder) == volumes(self.source)


def volumes(folder: Path) -> dict[bytes, int]:
    """Return, for every series, its HU volume as bytes and its number of files."""
    series, findings = find_series(folder)
    assert findings == []
    by_uid: dict[str, list[Path]] = {}
    for each in series:  # the source of a series that grew is in two folders, but is one series
        by_uid.setdefault(each.series_uid, []).extend(each.files)
    return {read_series(each).hu.tobytes(): len(each.files) for each in series}


def wait_until(true: Callable[[], bool], *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def images_here(site: Site) -> int:
    """Count the images of a site. Uses os.walk because folders are renamed during the count."""
    return sum(name.endswith(".dcm") for _, _, names in os.walk(site.folder) for name in names)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """Three patients: uncompressed, compressed, and one with an older study of another body part."""
    require_orthanc()
    with Hospital(tmp_path_factory.mktemp("hospital")).open() as opened:
        opened.add(1)
        opened.add(2, transfer_syntax=JPEG2000Lossless)
        opened.add(3, attributes={"StudyDate": "20190102", "BodyPartExamined": "HEAD"})
        yield opened


def test_pull_fetches_every_scan_once_and_bit_for_bit(hospital: Hospital) -> None:
    site = hospital.site()
    report = hospital.pull(site)
    assert (report.studies, report.series, report.fetched_now, report.images_now) == (3, 3, 3, 3 * SLICES)
    assert report.findings == []
    assert hospital.is_all_here(site)
    again = hospital.pull(site)
    assert (again.already, again.fetched_now, again.images_now, again.megabytes) == (3, 0, 0, 0)
    (pseudonymous,) = {each.patient_id for each in find_series(site.ct_folder)[0]} - {
        site.pseudonym(f"CANARY-{number}") for number in (2, 3)
    }
    assert pseudonymous == site.pseudonym("CANARY-1")


@pytest.mark.parametrize(
    ("filters", "patients"),
    [
        ("from_date = 2021-03-04", {1, 2}),
        ("to_date = 2021-03-03", {3}),
        ("from_date = 2019-01-02\nto_date = 2019-01-02", {3}),
        ('body_parts = ["CHEST", "THORAX"]', {1, 2}),
        ('body_parts = ["head"]', {3}),
        ('accessions = "list.txt"', {1, 3}),
        ('accessions = "list.txt"\nfrom_date = 2020-01-01', {1}),
        ('modality = "MR"', set()),
    ],
)
def test_filters_are_applied(hospital: Hospital, filters: str, patients: set[int]) -> None:
    site = hospital.site(filters=filters)
    (site.folder / "list.txt").write_text("# approved\nACC3\nACC1\nACC9\n")
    assert hospital.pull(site).fetched_now == len(patients)
    found = {each.patient_id for each in find_series(site.ct_folder)[0]}
    assert found == {site.pseudonym(f"CANARY-{number}") for number in patients}


def test_connection_failure_is_refused_with_its_code(hospital: Hospital) -> None:
    wrong = hospital.site()
    (wrong.folder / "keys" / "password").write_text("something else")
    assert hospital.refused(wrong) == "E_PACS_AUTH"
    nobody = hospital.site(user=None, password_file=None)
    assert hospital.refused(nobody) == "E_PACS_AUTH"
    assert hospital.refused(hospital.site(url=hospital.orthanc.url.replace("dicom-web", "nowhere"))) == "E_PACS_ANSWER"
    assert hospital.refused(hospital.site(url=hospital.orthanc.url.replace("http:", "https:"))) in {
        *("E_PACS_UNTRUSTED", "E_PACS_SILENT")
    }
    assert hospital.refused(hospital.site(url="http://127.0.0.1:1/dicom-web", limits="retries = 0")) == "E_PACS_REFUSED"


def test_token_is_sent_to_a_proxy_in_front_of_the_pacs(hospital: Hospital) -> None:
    """Orthanc does not support tokens. A proxy checks the token and forwards Orthanc's password instead."""
    with hospital.orthanc.inside(), Proxy(hospital.orthanc.http_port, token="t0ken") as door:
        for secret, code in (("t0ken", None), ("another", "E_PACS_AUTH")):
            site = hospital.site(url=f"{door.url}/dicom-web", user=None, password_file=None, token_file="keys/token")
            (site.folder / "keys" / "token").touch(mode=0o600)
            (site.folder / "keys" / "token").write_text(secret)
            if code is None:
                assert hospital.pull(site).fetched_now == 3
            else:
                assert hospital.refused(site) == code


def test_only_the_proxy_of_site_toml_is_used(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # unused port: the variable must be ignored
    with hospital.orthanc.inside(), Proxy(hospital.orthanc.http_port) as proxy:
        direct, through = hospital.site(), hospital.site(proxy=proxy.url)
        assert hospital.pull(direct).fetched_now == 3
        assert proxy.requests == []
        assert hospital.pull(through).fetched_now == 3
        assert all(line.startswith(f"GET {hospital.orthanc.url}/") for line in proxy.requests)
        assert len(proxy.requests) > 3
    assert hospital.refused(hospital.site(proxy=proxy.url)) == "E_PACS_PROXY"


def test_only_the_hospitals_own_ca_is_trusted(hospital: Hospital, tmp_path: Path) -> None:
    authority, stranger = Authority.make(tmp_path, "hospital"), Authority.make(tmp_path, "stranger")
    identity = authority.sign("pacs")
    with hospital.orthanc.inside(), Proxy(hospital.orthanc.http_port, identity=identity) as door:
        url = f"{door.url}/dicom-web"
        trusting = hospital.site(url=url, ca_certificate=str(authority.path))
        assert hospital.pull(trusting).fetched_now == 3
        assert hospital.is_all_here(trusting)
        with Proxy(door.port) as proxy:
            tunnelled = hospital.site(url=url, ca_certificate=str(authority.path), proxy=proxy.url)
            assert hospital.pull(tunnelled).fetched_now == 3
            assert set(proxy.requests) == {f"CONNECT 127.0.0.1:{door.port} HTTP/1.0"}
        shown = len(door.requests)
        by_name = url.replace("127.0.0.1", "localhost")  # the certificate is only valid for the IP address
        for site in (
            hospital.site(url=url),
            hospital.site(url=url, ca_certificate=str(stranger.path)),
            hospital.site(url=by_name, ca_certificate=str(authority.path)),
        ):
            assert hospital.refused(site) == "E_PACS_UNTRUSTED"
        assert len(door.requests) == shown, "an untrusted server receives no request and no password"


def test_pull_adds_new_images_to_a_series_that_grew(tmp_path: Path) -> None:
    require_orthanc()
    with Hospital(tmp_path).open() as hospital:
        hospital.add(1)
        site = hospital.site()
        hospital.pull(site)
        before = {path: path.stat().st_mtime_ns for path in site.ct_folder.rglob("*.dcm")}
        hospital.add(1, slices=5, first=SLICES)
        report = hospital.pull(site)
        assert (report.fetched_now, report.images_now) == (1, 5)
        assert {path: path.stat().st_mtime_ns for path in before} == before
        (series,), _ = find_series(site.ct_folder)
        assert len(series.files) == SLICES + 5
        read_series(series)


@pytest.mark.parametrize("make", [enhanced, legacy_converted])
def test_multi_frame_image_is_pulled_like_its_single_frames(tmp_path: Path, make: Any) -> None:
    require_orthanc()
    images = single_frames(write_series(tmp_path / "single", body()))
    with Hospital(tmp_path).open() as hospital:
        save_frames(make(images), hospital.source / "1.dcm", syntax=RLELossless)
        hospital.orthanc.upload([hospital.source / "1.dcm"])
        site = hospital.site()
        report = hospital.pull(site)
        assert (report.series, report.fetched_now, report.images_now, report.findings) == (1, 1, 1, [])
        assert hospital.is_all_here(site)
    assert volumes(site.ct_folder).keys() == volumes(tmp_path / "single").keys()


def test_pull_completes_although_the_pacs_is_killed_and_restarted(tmp_path: Path) -> None:
    require_orthanc()
    with Hospital(tmp_path).open() as hospital:
        for number in (1, 2, 3):
            hospital.add(number, slices=40, size=256)
        site = hospital.site(limits="retries = 8\nmegabytes_per_second = 6.0")
        running = hospital.start(site)
        for reached in (10, 60):
            wait_until(lambda reached=reached: images_here(site) > reached)  # type: ignore[misc]
            hospital.orthanc.kill()
            time.sleep(0.5)
            hospital.orthanc.start()
        output, _ = running.communicate(timeout=300)
        report = json.loads(output.splitlines()[-1])
        assert (report["fetched_now"], report["images_now"], report["findings"]) == (3, 120, {})
        assert hospital.is_all_here(site)
        assert hospital.pull(site).images_now == 0


def test_killed_pull_continues_where_it_stopped(tmp_path: Path) -> None:
    """kill -9 at many moments: final files are always complete, and at most one image per kill is fetched twice."""
    require_orthanc()
    with Hospital(tmp_path).open() as hospital:
        for number in (1, 2):
            hospital.add(number, slices=40, size=256)
        site = hospital.site(limits="megabytes_per_second = 20.0")
        kills = 0
        for reached in range(5, 80, 14):
            running = hospital.start(site)
            wait_until(lambda reached=reached, it=running: images_here(site) > reached or it.poll() is not None)  # type: ignore[misc]
            kills += running.poll() is None
            os.kill(running.pid, signal.SIGKILL)
            running.communicate()
            assert min(path.stat().st_size for path in site.folder.rglob("*.dcm")) > 2 * 256 * 256
            assert {len(each.files) for each in find_series(site.ct_folder)[0]} <= {40}
        assert kills >= 5
        already = images_here(site)
        report = hospital.pull(site)
        assert report.images_now == 80 - already
        assert hospital.is_all_here(site)
        assert list(site.folder.rglob("*.tmp")) == []


def test_second_pull_at_the_same_time_is_refused(hospital: Hospital) -> None:
    site = hospital.site(limits="megabytes_per_second = 0.3")
    running = hospital.start(site)
    try:
        wait_until(lambda: images_here(site) > 0)
        assert hospital.refused(site) == "E_PULL_RUNNING"
    finally:
        running.kill()
        running.communicate()
    assert hospital.pull(hospital.site()).fetched_now == 3


def test_long_series_is_not_held_in_memory(tmp_path: Path) -> None:
    require_orthanc()
    with Hospital(tmp_path).open() as hospital:
        hospital.add(1, slices=100, size=512)  # 52 MB
        site = hospital.site()
        imports = "import requests, dicomweb_client, pipeline.pacs.pull, pipeline.pacs.dicomweb"
        peak = "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
        peaks_mb = []
        for code in (imports + peak, PULL + peak):
            command = [sys.executable, "-c", code, str(site.folder)]
            with hospital.orthanc.inside():
                done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks_mb.append(int(done.stdout.splitlines()[-1]))
        assert images_here(site) == 100
        assert peaks_mb[1] - peaks_mb[0] < 20


def test_planted_names_do_not_leave_the_pacs(tmp_path: Path) -> None:
    """Names in private tags, sequences, free text and file names do not occur in any file or path of the site."""
    require_orthanc()
    with Hospital(tmp_path).open() as hospital:

        def edit(image: Dataset, index: int) -> None:
            with anything_goes():
                plant(image)
            image.ImageType, image.RescaleType = ["ORIGINAL", "PRIMARY", "AXIAL"], "HU"
            image.PatientID = NAME

        names = [f"{NAME}-{index}.dcm" for index in range(SLICES)]
        paths = write_series(hospital.source / NAME, body(SLICES, 64, 64), names=names, edit=edit)
        hospital.orthanc.upload(paths)
        site = hospital.site()
        report = hospital.pull(site)
        assert (report.images_now, report.findings) == (SLICES, [])
        assert hospital.is_all_here(site)
        words = (NAME, "Ptarmigan", "2718281828459045", "3141592653589793", "1.2.840.3141", "19570203")
        in_the_source = b"".join(str(path).encode() + path.read_bytes() for path in hospital.source.rglob("*.dcm"))
        assert [word for word in words if not holds(in_the_source, word)] == []
        files = [path for path in site.folder.rglob("*") if path.is_file()]
        assert len(files) > SLICES
        found = b"".join(str(path.relative_to(site.folder)).encode() + path.read_bytes() for path in files)
        assert [word for word in words if holds(found, word)] == []


def test_echo_reports_whether_the_pacs_responds(hospital: Hospital) -> None:
    with hospital.orthanc.inside(), open_pacs(hospital.site()) as pacs:
        pacs.echo()
    hospital.orthanc.stop()
    try:
        with (
            hospital.orthanc.inside(),
            open_pacs(hospital.site()) as pacs,
            pytest.raises(Refusal, match="E_PACS_REFUSED"),
        ):
            pacs.echo()
    finally:
        hospital.orthanc.start()


class Proxy:
    """A small HTTP proxy on loopback: forwards requests, opens tunnels and records their first lines.

    With `token` or `identity` (certificate and key, for HTTPS) it is a reverse proxy of the PACS instead. It admits
    clients that send the token.
    """

    def __init__(self, port: int, *, token: str = "", identity: tuple[Path, Path] | None = None) -> None:
        self._target, self._token = port, token
        self.requests: list[str] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.url = f"{'https' if identity else 'http'}://127.0.0.1:{self.port}"
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if identity else None
        if self._tls and identity:
            self._tls.load_cert_chain(*identity)

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            client = self._tls.wrap_socket(client, server_side=True) if self._tls else client
        except OSError:  # the client does not trust the certificate
            client.close()
            return
        with client, socket.create_connection(("127.0.0.1", self._target)) as pacs:
            head = b""
            while b"\r\n\r\n" not in head and (more := client.recv(65536)):
                head += more
            if not head:
                return
            first, *rest = head.split(b"\r\n")
            self.requests.append(first.decode())
            if self._token and f"Authorization: Bearer {self._token}".encode() not in rest:
                client.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            if first.startswith(b"CONNECT"):
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=_pump, args=(client, pacs), daemon=True)
                back.start()
            else:  # one request per connection, so that each request is recorded
                method, target, version = first.split(b" ")
                target = target.removeprefix(f"http://127.0.0.1:{self._target}".encode())
                kept = [
                    line for line in rest if not line.lower().startswith((b"connection", b"proxy", b"authorization"))
                ]
                login = [line for line in rest if line.lower().startswith(b"authorization")]
                if self._token:
                    login = [b"Authorization: Basic " + b64encode(f"{USER}:{PASSWORD}".encode())]
                pacs.sendall(b"\r\n".join([b" ".join([method, target, version]), b"Connection: close", *login, *kept]))
            _pump(pacs, client)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return
