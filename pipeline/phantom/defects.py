"""The defects of a synthetic hospital, each planted in a separate patient.

Every entry names the code that `fedthorax node check` must report for it. The list is the ground truth for measuring
the precision and recall of the check.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
from numpy.random import Generator
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from pipeline.phantom.anatomy import MUSCLE_HU, Field
from pipeline.phantom.hospitals import Hospital
from pipeline.phantom.patients import Patient
from pipeline.phantom.records import OutcomeRow, PcrRow
from pipeline.phantom.scans import acquire, write_series


@dataclass
class Case:
    """One patient of a hospital with all of their files and rows; a defect changes it in place."""

    hospital: Hospital
    patient: Patient
    hu: Field  # after acquisition
    files: list[Path]
    pcr: list[PcrRow]
    outcomes: list[OutcomeRow]
    rng: Generator

    @property
    def folder(self) -> Path:
        return self.files[0].parent


def _rewrite(path: Path, change: Callable[[Dataset], None]) -> None:
    ds = dcmread(path)
    change(ds)
    ds.save_as(path)


def missing_slice(case: Case) -> None:
    case.files[len(case.files) // 2].unlink()


def duplicate_slice(case: Case) -> None:
    """Add a second, different image at the position of another one."""
    source, other = case.files[20], case.files[24]
    copy = source.with_name(f"again-{source.name}")
    shutil.copy(other, copy)
    position = dcmread(source, stop_before_pixels=True).ImagePositionPatient

    def move(ds: Dataset) -> None:
        ds.ImagePositionPatient = position
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[str(ds.SOPInstanceUID), copy.name])
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID

    _rewrite(copy, move)


def second_series(case: Case) -> None:
    """Add a second reconstruction of the same scan to the same folder, without the apices."""
    again = acquire(case.hu, case.hospital.scanner, case.rng)
    files = write_series(again, case.hospital.scanner, case.patient, case.folder, number=3, note=" SHARP")
    for path in files[len(files) * 5 // 6 :]:
        path.unlink()


def mr_among_ct(case: Case) -> None:
    """Add one MR image to the patient's folder."""
    path = case.folder / "9-0001.dcm"
    shutil.copy(case.files[0], path)

    def turn(ds: Dataset) -> None:
        if ds.file_meta.TransferSyntaxUID.is_compressed:
            ds.decompress(generate_instance_uid=False)  # such a UID would be random
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.Modality, ds.SOPClassUID = "MR", MRImageStorage
        ds.SeriesInstanceUID = generate_uid(entropy_srcs=[str(ds.SeriesInstanceUID), "MR"])
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[str(ds.SOPInstanceUID), "MR"])
        ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID

    _rewrite(path, turn)


def truncated_file(case: Case) -> None:
    """Truncate the pixels of one slice, as after an interrupted transfer."""
    path = case.files[10]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 2000])


def moving_centre(case: Case) -> None:
    """Move the centre of the images by 3 mm from one slice on."""

    def move(ds: Dataset) -> None:
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x + 3, y, z]

    for path in case.files[len(case.files) // 2 :]:
        _rewrite(path, move)


def no_rescale(case: Case) -> None:
    def strip(ds: Dataset) -> None:
        del ds.RescaleSlope, ds.RescaleIntercept

    for path in case.files:
        _rewrite(path, strip)


def not_a_chest(case: Case) -> None:
    """Replace the lungs by solid tissue, as in an abdomen."""
    solid = np.where(case.hu < -300, case.rng.normal(MUSCLE_HU, 20, case.hu.shape), case.hu)
    outside = case.hu[:, :1, :1].mean()
    rim = np.ones(case.hu.shape[1:], dtype=bool)
    rim[12:-12, 8:-8] = False
    solid[:, rim] = outside
    write_series(solid.astype(np.float32), case.hospital.scanner, case.patient, case.folder)


def scan_under_two_identifiers(case: Case) -> None:
    """Copy the images to another patient, with a test and an outcome."""
    other = f"{case.patient.patient_id}-B"
    folder = case.folder.with_name(other)
    shutil.copytree(case.folder, folder)

    def send_again(ds: Dataset) -> None:
        ds.PatientID = other
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(ds, keyword, generate_uid(entropy_srcs=[str(ds[keyword].value), other]))
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID

    for path in folder.iterdir():
        _rewrite(path, send_again)
    case.pcr += [PcrRow(other, row.collected, row.result) for row in case.pcr]
    case.outcomes += [OutcomeRow(other, r.intubated, r.died, r.followed_until) for r in case.outcomes]


def no_pcr(case: Case) -> None:
    case.pcr.clear()


def contradictory_pcr(case: Case) -> None:
    """Give one specimen two contradictory results."""
    words = case.hospital.laboratory
    when = case.patient.scanned.replace(second=0) - timedelta(hours=5)
    case.pcr[:] = [PcrRow(case.patient.patient_id, when, word) for word in (words.positive[0], words.negative[0])]


def pcr_too_early(case: Case) -> None:
    when = case.patient.scanned.replace(second=0) - timedelta(days=11)
    case.pcr[:] = [PcrRow(case.patient.patient_id, when, case.hospital.laboratory.positive[0])]


def only_indeterminate_pcr(case: Case) -> None:
    when = case.patient.scanned.replace(second=0)
    case.pcr[:] = [PcrRow(case.patient.patient_id, when, case.hospital.laboratory.indeterminate[0])]


def unmapped_result(case: Case) -> None:
    """Add a row with a comment instead of a result to a valid row."""
    row = case.pcr[0]
    case.pcr.append(PcrRow(row.patient_id, row.collected - timedelta(hours=3), "see comment"))


def future_pcr(case: Case) -> None:
    """Add a row with a typing error in the year to a valid row."""
    row = case.pcr[0]
    case.pcr.append(PcrRow(row.patient_id, row.collected.replace(year=2099), row.result))


def outcome_without_ct(case: Case) -> None:
    shutil.rmtree(case.folder)


# Code that the check must report -> function that plants the defect.
DEFECTS: dict[str, Callable[[Case], None]] = {
    "E_SLICE_GAP": missing_slice,
    "E_DUPLICATE_SLICE": duplicate_slice,
    "W_SEVERAL_SERIES": second_series,
    "E_MODALITY": mr_among_ct,
    "E_TRUNCATED": truncated_file,
    "E_TILT": moving_centre,
    "E_RESCALE": no_rescale,
    "E_NO_LUNGS": not_a_chest,
    "E_DUPLICATE_SCAN": scan_under_two_identifiers,
    "E_NO_PCR": no_pcr,
    "E_PCR_CONFLICT": contradictory_pcr,
    "E_PCR_WINDOW": pcr_too_early,
    "E_PCR_INDETERMINATE": only_indeterminate_pcr,
    "W_PCR_UNMAPPED": unmapped_result,
    "E_PCR_DATE": future_pcr,
    "W_OUTCOME_WITHOUT_CT": outcome_without_ct,
}


def reported(code: str, patient_id: str, *, pcr_positive: bool) -> list[tuple[str, str]]:
    """Return the expected findings of a planted defect: pairs of code and patient.

    A scan under two identifiers is reported for both. A laboratory row that is left out removes a negative patient's
    label. The second series lacks the apices.
    """
    if code == "E_DUPLICATE_SCAN":
        return [(code, patient_id), (code, f"{patient_id}-B")]
    if code == "W_SEVERAL_SERIES":
        return [(code, patient_id), ("W_LUNGS_CUT", patient_id)]
    if code in {"W_PCR_UNMAPPED", "E_PCR_DATE"} and not pcr_positive:
        return [(code, patient_id), ("E_PCR_INCOMPLETE", patient_id)]
    return [(code, patient_id)]
