"""A clinic service for page tests: a real process, a model, synthetic scans, and a PACS if Orthanc is installed.

The model has random weights, so its results have no meaning. Their display does not depend on that.
"""

import contextlib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
from pydicom import dcmread

from federation.system.process import free_port
from models.calibration import Platt
from models.network import build_network
from models.network_settings import NetworkSettings
from models.release import save_release
from pipeline.clinic.web.auth import Tokens
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.hospitals import hospital
from pipeline.phantom.scans import acquire, write_series
from tests.e2e.conftest import Command
from tests.e2e.orthanc import DICOMWEB, ORTHANC, PASSWORD, USER, Orthanc
from tests.helpers.descriptions import description
from tests.helpers.phantoms import SOMEBODY, thorax

GRID = Grid(shape=(66, 110, 128), spacing_mm=(5.0, 3.2, 3.2))
MARKUP = '<img src=x onerror="document.title=1">'  # as a patient's identifier
NAME = "<b>O</b>\u202eN^Ann"  # contains a right-to-left override character
IN_PACS = "SYNTHETIC-9"  # PatientID of the scan in the PACS
_PACS_SETTINGS = """
[pacs]
protocol = "dicomweb"
[pacs.dicomweb]
url = "{url}"
user = "{user}"
password_file = "password"
[pacs.limits]
keep_free_gb = 0
[results]
send = "on_request"
url = "{url}"
user = "{user}"
password_file = "password"
retry_seconds = 1
"""


@dataclass(frozen=True)
class Clinic:
    """A service with a model, a token for it, scans (each as zip and folder) and the PACS, if it is installed."""

    url: str
    token: str
    scans: Path
    orthanc: Orthanc | None


@contextlib.contextmanager
def open_clinic(folder: Path, start: Callable[..., Command]) -> Iterator[Clinic]:
    """Inside the block, this thread and the processes that it starts run in the network namespace of the PACS."""
    with contextlib.ExitStack() as stack:
        site = folder / "site"
        site.mkdir()
        settings, orthanc = "", None
        if ORTHANC.is_file() and DICOMWEB.is_file():
            orthanc = Orthanc(folder / "orthanc")
            stack.callback(orthanc.close)
            stack.enter_context(orthanc.inside())
            orthanc.start()
            (site / "password").touch(mode=0o600)
            (site / "password").write_text(PASSWORD)
            settings = _PACS_SETTINGS.format(url=orthanc.url, user=USER)
        port = free_port()
        viewer = "https://viewer.example/?study={study_uid}&patient={patient_id}"
        (site / "clinic.toml").write_text(f"[server]\nport = {port}\nviewer_url = '{viewer}'\n{settings}")
        _save_model(folder / "model")
        served = start("serve", site, "--model", folder / "model")
        scans = folder / "made"
        _write_scan(scans / "chest")
        _write_scan(scans / "later", days=9)
        _write_scan(scans / "none", patient_id="SYNTHETIC-2", name="NOBODY^NIL", has_lungs=False)
        _write_scan(scans / "unmarked", patient_id="SYNTHETIC-3", name="LIKE^PATIENT", is_marked=False)
        files = _write_scan(scans / "pacs", patient_id=IN_PACS, name="PACS^PAT")
        if orthanc:
            assert orthanc.upload(files) == 0
        served.wait_for(rf"http://127\.0\.0\.1:{port}", seconds=300)
        token = Tokens(site).make("a reader", "score", by="a test", person="Leser^Anna")
        yield Clinic(f"http://127.0.0.1:{port}", token, scans, orthanc)


def _save_model(folder: Path) -> None:
    """Save a model that rates severe as intermediate and positive PCR as high for every scan."""
    platt = {
        label: Platt(slope=0.05, intercept=intercept, covariance=(0.0, 0.0, 0.04))
        for label, intercept in (("severe", -0.5), ("pcr_positive", 1.0))
    }
    points = {label: {"rule_out": 0.15, "rule_in": 0.6} for label in platt}
    save_release(
        folder,
        build_network(NetworkSettings(), seed=3),
        description(calibration=platt, operating_points=points, trained_on_synthetic_data=True),
    )


def _write_scan(
    folder: Path,
    *,
    patient_id: str = MARKUP,
    name: str = NAME,
    days: int = 0,
    has_lungs: bool = True,
    is_marked: bool = True,
) -> list[Path]:
    """Write a series, and a zip of it next to its folder. The whole right lung is ground glass.

    `is_marked`: mark the series as a phantom. Otherwise it counts as a scan of a patient.
    """
    scanner = replace(hospital(0).scanner, grid=GRID)
    body = thorax(GRID)
    hu = acquire(body.hu, scanner, np.random.default_rng(8))
    hu[body.lungs & (np.arange(GRID.shape[2]) < GRID.shape[2] / 2)] += 250.0
    if not has_lungs:
        hu[body.lungs] = 40.0
    patient = replace(SOMEBODY, patient_id=patient_id, name=name, scanned=SOMEBODY.scanned + timedelta(days=days))
    files = write_series(hu, scanner, patient, folder)
    for path in [] if is_marked else files:
        image = dcmread(path)
        del image.QualityControlImage
        image.save_as(path)
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in files:
            archive.write(path, path.name)
    return files
