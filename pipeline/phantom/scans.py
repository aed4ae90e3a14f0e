"""Acquisition of a synthetic body: the scanner's blur and noise, and a DICOM series of valid CT images."""

from datetime import timedelta
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, generate_uid
from scipy import ndimage

from pipeline.imaging import phantom_marker
from pipeline.phantom import measured_noise
from pipeline.phantom.anatomy import AIR_HU, Field
from pipeline.phantom.hospitals import Scanner
from pipeline.phantom.patients import Patient

IMPLEMENTATION_UID = UID("2.25.302837465920193847561029384756102938475")
STORED_INTERCEPT_HU = -1024


def acquire(hu: Field, scanner: Scanner, rng: Generator) -> Field:
    """Simulate the scanner: in-plane blur, noise correlated over neighbouring pixels, calibration offset.

    A scanner with measured noise scans random bodies, which are blurred already.
    """
    if scanner.noise is not None:
        return measured_noise.acquire(hu, scanner, rng)
    sigma = (0.0, scanner.blur_mm / scanner.grid.spacing_mm[1], scanner.blur_mm / scanner.grid.spacing_mm[2])
    noise = ndimage.gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), (0, 0.6, 0.6), truncate=2)
    noise *= scanner.noise_hu / noise.std()
    seen = ndimage.gaussian_filter(hu, sigma, truncate=3) + noise + scanner.offset_hu
    return np.maximum(seen, AIR_HU - 20)


def _common_tags(scanner: Scanner, patient: Patient, uids: list[str], number: int, note: str) -> Dataset:
    """Return the common tags of all slices of the series. Names and identifiers are synthetic."""
    when = patient.scanned
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.Modality = CTImageStorage, "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = when.strftime("%Y%m%d")
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = when.strftime("%H%M%S")
    ds.Manufacturer, ds.ManufacturerModelName = scanner.manufacturer, scanner.model
    ds.ConvolutionKernel, ds.KVP = scanner.kernel, "120"
    ds.PatientName, ds.PatientID = patient.name, patient.patient_id
    ds.PatientSex, ds.PatientAge = patient.sex, f"{patient.age_years:03d}Y"
    ds.PatientBirthDate = ds.ReferringPhysicianName = ds.AccessionNumber = ""
    ds.BodyPartExamined, ds.PatientPosition = "CHEST", "HFS"
    ds.StudyDescription, ds.SeriesDescription = "SYNTHETIC CHEST CT", f"SYNTHETIC {scanner.kernel}{note}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uids
    ds.StudyID, ds.SeriesNumber, ds.AcquisitionNumber, ds.PositionReferenceIndicator = "1", number, 1, ""
    ds.SliceThickness, ds.PixelSpacing = scanner.grid.spacing_mm[0], list(scanner.grid.spacing_mm[1:])
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = scanner.grid.shape[1:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, STORED_INTERCEPT_HU, "HU"
    block = ds.private_block(0x0019, scanner.private_creator, create=True)
    block.add_new(0x10, "LO", f"protocol {scanner.model}")
    phantom_marker.mark(ds)
    return ds


def _write(ds: Dataset, pixels: NDArray[np.uint16], scanner: Scanner, path: Path) -> None:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = scanner.transfer_syntax
    ds.file_meta.ImplementationClassUID = IMPLEMENTATION_UID
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    if scanner.transfer_syntax.is_compressed:
        ds.compress(scanner.transfer_syntax, pixels, generate_instance_uid=False)
    else:
        ds.PixelData = pixels.tobytes()
        ds["PixelData"].VR = "OW"
    ds.save_as(path, enforce_file_format=True)


def write_series(
    hu: Field,
    scanner: Scanner,
    patient: Patient,
    folder: Path,
    *,
    number: int = 2,
    note: str = "",
) -> list[Path]:
    """Write one series to `folder`, one file per slice; `hu` has slice 0 lowest, LPS axes (z, y, x).

    Returns the files from the lowest slice to the highest. UIDs follow from the patient and the series number, so
    that the same seed writes the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = [scanner.manufacturer, patient.patient_id, patient.scanned.isoformat()]
    uids: list[str] = [
        generate_uid(entropy_srcs=[*key, "study"]),
        generate_uid(entropy_srcs=[*key, str(number)]),
        generate_uid(entropy_srcs=[*key, "frame"]),
    ]
    x0, y0, z0 = scanner.grid.origin_mm
    spacing = scanner.grid.spacing_mm
    rows, columns = scanner.grid.shape[1:]
    cosines = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    if scanner.rotated:  # half a turn about the body's axis: both in-plane axes are reversed
        hu, cosines = hu[:, ::-1, ::-1], [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0]
        x0, y0 = x0 + (columns - 1) * spacing[2], y0 + (rows - 1) * spacing[1]
    stored = np.rint(hu - STORED_INTERCEPT_HU).clip(0, 4095).astype(np.uint16)
    ds = _common_tags(scanner, patient, uids, number, note)
    files = []
    for i, pixels in enumerate(stored):
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[*key, str(number), str(i)])
        ds.InstanceNumber = len(stored) - i if scanner.head_first_order else i + 1
        ds.ImagePositionPatient = [round(v, 4) for v in (x0, y0, z0 + i * spacing[0])]
        ds.ImageOrientationPatient = [round(c, 6) for c in cosines]
        ds.ContentTime = (patient.scanned + timedelta(milliseconds=5 * i)).strftime("%H%M%S.%f")
        path = folder / f"{number}-{ds.InstanceNumber:04d}.dcm"
        _write(ds, np.ascontiguousarray(pixels), scanner, path)
        files.append(path)
    return files
