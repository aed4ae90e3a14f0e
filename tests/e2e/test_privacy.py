"""Patient names do not leave the source files.

More than twenty names are planted in the files of a synthetic hospital. The tests search for them in everything that
a node stores or prints.
"""

import shutil
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence

from tests.e2e.conftest import run_command
from tests.e2e.orthanc import PASSWORD, USER, Orthanc, require_orthanc

pytestmark = pytest.mark.e2e

# One name per place, so that a failure shows which place leaks.
TEXT_TAGS = {
    "PatientName": "Aaltonen^Vanamo",
    "OtherPatientNames": "Bergqvist^Sylvi",
    "PatientAddress": "Cederstrom 12",
    "PatientMotherBirthName": "Dahlquist^Irma",
    "ReferringPhysicianName": "Ekelundh^Tauno",
    "OperatorsName": "Fagerholm^Eine",
    "InstitutionName": "Grankulla",
    "StationName": "HOLMBERG",
    "StudyDescription": "thorax Idestam",
    "SeriesDescription": "lung Jakobsson",
    "ProtocolName": "Kivenheimo",
    "ImageComments": "see Lindroos",
    "AdditionalPatientHistory": "Mickelsson coughs",
    "AccessionNumber": "NYLUND7",
    "StudyID": "OKSANEN9",
    "ConvolutionKernel": "PELTONEN^B",
    "Manufacturer": "QVICKSTROM",
    "ManufacturerModelName": "Roosberg^X",
    "ContrastBolusAgent": "as Sandelin said",
}
PRIVATE, NESTED, FILE_META = "Tallgren", "Ulfsson", "Vesterlund"
FILE, FOLDER, STRAY = "WIKSTROM", "XANDERSSON", "YLIHARJU"
PATIENT_ID, RESULT, CELL, DATE = "ZETTERLUND-0042", "positiv Astrom", "Blomqvist", "morgen Carpelan"
PLANTED = [*TEXT_TAGS.values(), PRIVATE, NESTED, FILE_META, FILE, FOLDER, STRAY, PATIENT_ID, RESULT, CELL, DATE]


def plant(ds: Dataset) -> None:
    """Plant names in tags, a private tag, a sequence and the file meta header. PatientID joins the records."""
    for keyword, name in TEXT_TAGS.items():
        setattr(ds, keyword, name)
    ds.PatientID = PATIENT_ID
    ds.private_block(0x0011, "SYNTHETIC", create=True).add_new(0x01, "LO", PRIVATE)
    item = Dataset()
    item.ScheduledProcedureStepDescription = NESTED
    ds.RequestAttributesSequence = Sequence([item])
    assert isinstance(ds.file_meta, FileMetaDataset)
    ds.file_meta.SourceApplicationEntityTitle = FILE_META


@pytest.fixture(scope="module")
def hospital(small_hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clean patients and one with names in all possible places of the files."""
    folder = tmp_path_factory.mktemp("privacy") / "hospital"
    for patient in ("N0-000002", "N0-000003", "N0-000004"):
        shutil.copytree(small_hospital / "ct" / patient, folder / "ct" / patient)
    named = folder / "ct" / FOLDER
    named.mkdir()
    for number, path in enumerate(sorted((small_hospital / "ct" / "N0-000001").glob("*.dcm"))):
        ds = dcmread(path)
        plant(ds)
        ds.save_as(named / f"{FILE}-{number:03d}.dcm")
    (named / f"{STRAY}.dcm").write_bytes(b"not DICOM")
    shutil.copy(small_hospital / "site.toml", folder)
    laboratory = (small_hospital / "laboratory.csv").read_text(encoding="utf-8").splitlines()
    laboratory[0] += ",remark"
    laboratory[1:] = [f"{line.replace('N0-000001', PATIENT_ID)},{CELL}" for line in laboratory[1:]]
    laboratory.append(f"999,{PATIENT_ID},2020-04-01T10:00,{RESULT},")
    (folder / "laboratory.csv").write_text("\n".join(laboratory), encoding="utf-8")
    outcomes = (small_hospital / "outcomes.csv").read_text(encoding="utf-8").replace("N0-000001", PATIENT_ID)
    (folder / "outcomes.csv").write_text(f"{outcomes}N0-000002,{DATE},,\r\n", encoding="utf-8")
    return folder


def holders(folder: Path, name: str) -> list[str]:
    """Return the files below a folder that contain a name in their path or content, in any common encoding."""
    spellings = [name.encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be")]
    spellings += [each.upper() for each in spellings] + [each.lower() for each in spellings]
    found = []
    for path in folder.rglob("*"):
        content = str(path.relative_to(folder)).encode() + (path.read_bytes() if path.is_file() else b"")
        if any(each in content for each in spellings):
            found.append(path.name)
    return found


def test_search_finds_every_planted_name_in_the_source(hospital: Path) -> None:
    assert len(PLANTED) >= 20
    for name in PLANTED:
        assert holders(hospital, name), f"{name} was not planted"


def run_node(site: Path, output: list[str]) -> None:
    """Run check, ingest, check with its page, and status: all node commands on files. Collect their output."""
    for arguments in (
        ("check", site, "--json"),
        ("ingest", site, "--json"),
        ("check", site, "--json", "--page", site / "check.html"),
        ("status", site, "--json"),
    ):
        done = run_command("node", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        output.append(done.stdout + done.stderr)


@pytest.mark.parametrize("source", ["folder", "pacs"])
def test_planted_names_are_only_in_the_source(hospital: Path, tmp_path: Path, source: str) -> None:
    site = tmp_path / "site"
    assert run_command("node", "init", site, "--from", hospital).returncode == 0
    output: list[str] = []
    if source == "folder":
        run_node(site, output)
    else:
        require_orthanc()
        orthanc = Orthanc(tmp_path / "orthanc")
        try:
            orthanc.start()
            orthanc.upload(path for path in (hospital / "ct").rglob("*.dcm") if path.stem != STRAY)
            use_pacs(site, orthanc)
            with orthanc.inside():
                run_node(site, output)
        finally:
            orthanc.close()
    assert any(site.rglob("*.npy")) and (site / "check.html").is_file() and (site / "cohort" / "cohort.csv").is_file()
    settings = (site / "site.toml").read_text()
    (site / "site.toml").unlink()  # it contains the path of the source folder, which the hospital chose
    for name in PLANTED:
        assert not holders(site, name), f"{name} is in a file of the node"
        assert name not in "".join(output), f"{name} was printed"
        assert name not in settings


def use_pacs(site: Path, orthanc: Orthanc) -> None:
    """Configure the site to fetch its scans from the PACS."""
    password = site / "keys" / "pacs-password"
    password.write_text(PASSWORD)
    password.chmod(0o600)
    text = (site / "site.toml").read_text()
    text += f'\n[pacs]\nprotocol = "dicomweb"\n\n[pacs.dicomweb]\nurl = "{orthanc.url}"\nuser = "{USER}"\n'
    text += 'password_file = "keys/pacs-password"\n'
    (site / "site.toml").write_text(text)
