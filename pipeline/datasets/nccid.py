"""NCCID, the National COVID-19 Chest Imaging Database of NHSX: patients of about 20 British hospital trusts.

    DIR/training/ct/<patient>/<study>/<series>/*.dcm     (DIR may be the folder training itself)
    DIR/training/data/<patient>/data_<date>.json         clinical record of a patient with a positive swab
    DIR/training/data/<patient>/status_<date>.json       one swab, usually a negative one

Use of the data requires NHSX's access agreement. The newest file of each kind is used, because centres send
corrections. A site is a SubmittingCentre, with a new pseudonym key at each import: who has pseudonyms of NCCID must not
be able to tell its patients. Its laboratory and outcome records are written like a hospital's exports, and joined by
the site's own rules.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from models.refusal import Refusal
from pipeline.datasets import reasons
from pipeline.datasets.common import Imported, Progress, check_layout, check_out, make_site, write_table
from pipeline.datasets.nccid_records import Clinical, read_outcome, read_swabs, trusted_orders
from pipeline.imaging.dicom_header import read_header, tags, text
from pipeline.imaging.discovery import find_series
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.site import reasons as site_reasons
from pipeline.system.findings import Finding
from pipeline.system.json_text import parse_json

_FILE = re.compile(r"(data|status)_(\d{4}-\d{2}-\d{2})\.json", flags=re.ASCII)
_MAX_FILE_BYTES = 2**20
_MAX_NAME = 40  # of a site
ABOUT = (
    "Made from NCCID (NHSX; for use under its access agreement): one submitting centre. Dates that may be day and "
    "month or month and day are not used, unless the published sources agree on the order of their field and the "
    "centre keeps to it; a patient whose swabs or course could not be read is left out, or has no outcome. Only series "
    "whose day is that of AcquisitionDate or StudyDate are linked: NCCID shifted the other dates in the scans."
)
TABLES = """[laboratory]
file = "laboratory.csv"
date_format = "%Y-%m-%d"

[outcomes]
file = "outcomes.csv"
"""


def import_nccid(folder: Path, out: Path, *, progress: Progress) -> Imported:
    """Create one site folder under `out` for each submitting centre that has a usable patient.

    Raises Refusal: E_LAYOUT, E_IMPORT_OUT.
    Findings: E_NO_SCAN, E_NO_CLINICAL, E_CLINICAL_FILE, E_CENTRE, E_CT_DATE, E_SWABS, E_SWAB_RESULT, E_AMBIGUOUS_DATE,
    E_UNREADABLE_DATE, E_EVENT_DATE; the last three may remove only an outcome, not the patient.
    """
    training = folder / "training" if (folder / "training").is_dir() else folder
    check_layout("NCCID", training, ("ct", "data"))
    check_out(out, folder)
    with_ct = sorted(path.name for path in (training / "ct").iterdir() if path.is_dir())
    with_data = {path.name for path in (training / "data").iterdir() if path.is_dir()}
    findings = [Finding(reasons.NO_SCAN, patient_id) for patient_id in sorted(with_data.difference(with_ct))]
    centres: dict[str, list[Clinical]] = defaultdict(list)
    links: dict[str, dict[str, Path]] = {}
    for number, patient_id in enumerate(with_ct):
        progress(number, len(with_ct))
        try:
            centre, clinical = _clinical(training / "data" / patient_id)
            links[patient_id] = _dated_series(training / "ct", patient_id, findings)
            centres[centre].append(clinical)
        except Refusal as refusal:
            findings.append(Finding(refusal.reason, patient_id, refusal.private))
    sites = {}
    for centre, name in _site_names(centres):
        if patients := _make_site(out / name, centres[centre], links, findings):
            sites[name] = patients
    progress(len(with_ct), len(with_ct))
    return Imported(sites, findings)


def _clinical(folder: Path) -> tuple[str, Clinical]:
    """A patient's centre, in one spelling, and newest files.

    Raises Refusal: E_NO_CLINICAL, E_CLINICAL_FILE, E_CENTRE.
    """
    newest: dict[str, dict[str, Any]] = {}
    centres = set()
    for file in _files(folder):  # by kind and day
        if match := _FILE.fullmatch(file.name):
            newest[match[1]] = _read_json(file)
            words = re.findall("[a-z0-9]+", str(newest[match[1]].get("SubmittingCentre") or "").lower())
            centres.add("-".join(words))
    if not newest:
        raise Refusal(reasons.NO_CLINICAL)
    centre = centres.pop()
    if centres or not centre:
        raise Refusal(reasons.CENTRE)
    return centre, Clinical(folder.name, newest.get("data", {}), newest.get("status", {}))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _read_json(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content = parse_json(stream.read(_MAX_FILE_BYTES))
    except (OSError, ValueError) as error:
        raise Refusal(reasons.CLINICAL_FILE, private=f"{file}: {error}") from None
    if not isinstance(content, dict):
        raise Refusal(reasons.CLINICAL_FILE, private=str(file))
    return content


def _dated_series(root: Path, patient_id: str, findings: list[Finding]) -> dict[str, Path]:
    """Return a patient's series with a reliable date, by path under `root`. Raises Refusal E_NO_SCAN."""
    found = {}
    for folder in sorted(path for path in (root / patient_id).glob("*/*") if path.is_dir()):
        first = next((file for file in _files(folder) if file.suffix == ".dcm"), None)
        if first is None:
            continue
        if _is_truly_dated(first):
            found[folder.relative_to(root).as_posix()] = folder
        else:
            findings.append(Finding(site_reasons.CT_DATE, patient_id, str(folder)))
    if not found:
        raise Refusal(reasons.NO_SCAN)
    return found


@quiet_pydicom()
def _is_truly_dated(file: Path) -> bool:
    """Whether ingestion would take the series' day from a tag that NCCID did not shift."""
    series, _ = find_series(file)
    if not series or series[0].acquired is None:
        return True  # ingestion reports the problem
    header = read_header(file, tags("AcquisitionDate", "StudyDate"))
    kept = {text(header, keyword).strip() for keyword in ("AcquisitionDate", "StudyDate")}
    return f"{series[0].acquired:%Y%m%d}" in kept


def _site_names(centres: dict[str, list[Clinical]]) -> list[tuple[str, str]]:
    """Return a site's name for each centre: its own name, shortened, and numbered if not unique."""
    names: dict[str, str] = {}
    for centre in sorted(centres):
        name, number = centre[:_MAX_NAME], 1
        while name in names.values():
            number += 1
            name = f"{centre[: _MAX_NAME - len(str(number)) - 1]}-{number}"
        names[centre] = name
    return list(names.items())


def _make_site(site: Path, patients: list[Clinical], links: dict[str, dict[str, Path]], findings: list[Finding]) -> int:
    """Create the site of one centre; return its number of patients. Without patients, create nothing."""
    orders = trusted_orders(patients)
    swabs, outcomes = [], []
    kept: dict[str, Path] = {}
    for patient in patients:
        proven, unread = read_swabs(patient, orders)
        findings += unread
        if not proven:
            continue
        outcome, unread = read_outcome(patient, orders)
        findings += unread
        swabs += [(patient.patient_id, day, "positive" if positive else "negative") for day, positive in proven]
        if outcome is not None:
            outcomes.append((patient.patient_id, outcome.intubated, outcome.died, outcome.followed_until))
        kept |= links[patient.patient_id]
    if swabs:
        make_site(site, ABOUT, TABLES, kept, time_zone="Europe/London")
        write_table(site / "laboratory.csv", ("patient_id", "collected", "result"), swabs)
        write_table(site / "outcomes.csv", ("patient_id", "intubated", "died", "followed_until"), outcomes)
    return len({patient_id for patient_id, *_ in swabs})
