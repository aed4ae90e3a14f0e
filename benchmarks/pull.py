"""Transfer rate of a series from a real PACS (Orthanc on loopback), compared with bare downloads of the series."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import requests
from chest import SYNTAXES, write_chest
from common import Figure, Part
from dicomweb_client import DICOMwebClient
from pydicom import dcmread

from pipeline.pacs.pull import pull
from pipeline.site.folder import Site, init_site, site_settings

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.e2e.orthanc import AET, DICOMWEB, ORTHANC, PASSWORD, USER, Orthanc

REPEATS = 5
OUR_TITLE = "FEDTHORAX"
STREAM, LIBRARY = "WADO-RS, stream to one file", "dicomweb-client, a file for each image"
GIGABIT = "tc qdisc add dev lo root tbf rate 1gbit burst 256kb latency 20ms"

Ways = dict[str, Callable[[Site], object]]


def measure(folder: Path) -> Part:
    missing = [str(path) for path in (ORTHANC, DICOMWEB) if not path.is_file()]
    if missing:
        return Part([f"Left out: {', '.join(missing)} absent (Debian packages orthanc and orthanc-dicomweb)."], [])
    figures = []
    notes = [
        "One synthetic series of 300 slices, 512 x 512. Orthanc runs on the same cores, with the series in its cache.",
        "Ours is a whole pull: find, fetch, de-identify by the allow-list, new identifiers, one file per image, log.",
    ]
    for name in ("uncompressed", "JPEG-LS"):
        orthanc = Orthanc(folder / name / "orthanc", modalities={"node": [OUR_TITLE, "127.0.0.1", 104]})
        try:
            orthanc.start()
            files = sorted(write_chest(folder / name / "files", SYNTAXES[name]).rglob("*.dcm"))
            orthanc.upload(files)
            with orthanc.inside():
                figures += _figures(folder / name, orthanc, files, f"{name}, loopback")
            if _slow_down(orthanc):
                with orthanc.inside():
                    figures += _figures(folder / name, orthanc, files, f"{name}, 1 Gbit/s")
            else:
                notes.append("1 Gbit/s left out: it requires root, for a separate network of Orthanc, and tc.")
        finally:
            orthanc.close()
    return Part(notes, figures)


def _slow_down(orthanc: Orthanc) -> bool:
    """Limit Orthanc's network to the speed of a hospital's. The network of this machine is not changed."""
    network = Path("/proc/thread-self/ns/net")
    ours = network.readlink()
    with orthanc.inside():
        is_its_own = network.readlink() != ours and shutil.which("tc") is not None
        return is_its_own and subprocess.run(GIGABIT.split(), check=False).returncode == 0


def _figures(folder: Path, orthanc: Orthanc, files: list[Path], where: str) -> list[Figure]:
    """Measure MB/s of all ways in turn, after a warm-up round."""
    first = dcmread(files[0], stop_before_pixels=True)
    study, series = first.StudyInstanceUID, first.SeriesInstanceUID

    def ours(site: Site) -> None:
        report = pull(site, lambda done, total: None)
        assert (report.images_now, report.findings) == (len(files), []), report

    dicomweb = f'dicomweb = {{ url = "{orthanc.url}", user = "{USER}", password_file = "keys/pacs" }}'
    peer = f'host = "127.0.0.1", port = {orthanc.dicom_port}, called_aet = "{AET}", calling_aet = "{OUR_TITLE}"'
    tables = f'[pacs]\nprotocol = "%s"\n{dicomweb}\ndimse = {{ {peer} }}\n'
    ways: Ways = {
        "dicomweb": ours,
        "dimse": ours,
        "stream": lambda site: _stream(f"{orthanc.url}/studies/{study}/series/{series}", site.folder / "series"),
        "library": lambda site: _library(orthanc.url, study, series, site.folder),
    }
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(REPEATS + 1):
        for way, work in ways.items():
            site = _site(folder / "site", tables % (way if work is ours else "dicomweb"))
            began = time.perf_counter()
            work(site)
            if repeat:
                rates[way].append(megabytes / (time.perf_counter() - began))
            shutil.rmtree(site.folder)
    return [
        Figure(f"pull, {where}, {name}", against, "MB/s", rates[way], rates[other], target)
        for name, way, against, other, target in (
            ("DICOMweb", "dicomweb", STREAM, "stream", "at least 0.8"),
            ("DICOMweb", "dicomweb", LIBRARY, "library", "at least 0.8"),
            ("C-GET", "dimse", STREAM, "stream", ""),
        )
    ]


def _site(folder: Path, pacs: str) -> Site:
    """Make a site with this PACS and its password."""
    site = init_site(folder, site_settings(None, name="bench") + pacs)
    password = folder / "keys" / "pacs"
    password.touch(mode=0o600)
    password.write_text(PASSWORD)
    return site


def _stream(url: str, path: Path) -> None:
    """Download the bytes of the answer as they arrive."""
    accept = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
    with requests.get(url, headers=accept, auth=(USER, PASSWORD), stream=True, timeout=60) as response:
        response.raise_for_status()
        with path.open("wb") as file:
            for chunk in response.iter_content(2**20):
                file.write(chunk)


def _library(url: str, study: str, series: str, folder: Path) -> None:
    """Download with a simple script on dicomweb-client."""
    with requests.Session() as session:
        session.auth = (USER, PASSWORD)
        client = DICOMwebClient(url, session)
        images = client.iter_series(study, series, media_types=(("application/dicom", "*"),))
        for number, image in enumerate(images):
            image.save_as(folder / f"{number}.dcm")
