"""Writes small synthetic CT series, valid or broken, for tests of code that reads DICOM."""

import io
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from pydicom import Dataset, config
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

SUPINE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
PATIENT_ID = "CANARY-0042"
SERIES_UID = "2.25.3141592653589793"

Edit = Callable[[Dataset, int], None]


@contextmanager
def anything_goes() -> Iterator[None]:
    """Let pydicom write invalid values without warnings."""
    mode = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.settings.writing_validation_mode = mode


@anything_goes()
def ct_slice(hu: ArrayLike, *, position_mm: Sequence[float], **attributes: object) -> Dataset:
    """Create one CT image as a dataset. `attributes` (keyword=value) override or add attributes."""
    stored = np.rint(np.asarray(hu, dtype=np.float64)).astype(np.int16)
    ds = Dataset()
    ds.SOPClassUID, ds.Modality = CTImageStorage, "CT"
    ds.SOPInstanceUID = generate_uid(entropy_srcs=[str(value) for value in position_mm])
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.2718281828459045", SERIES_UID
    ds.StudyDate, ds.StudyTime = "20210304", "101112"
    ds.PatientName, ds.PatientID, ds.PatientSex, ds.PatientAge = "CANARY^SYNTHETIC", PATIENT_ID, "F", "063Y"
    ds.Manufacturer, ds.ConvolutionKernel, ds.SliceThickness = "SYNTHETIC", "B30f", 2.0
    ds.ImagePositionPatient = [float(value) for value in position_mm]
    ds.ImageOrientationPatient = list(SUPINE)
    ds.PixelSpacing = [1.0, 1.0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = stored.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = 1.0, 0.0
    ds.PixelData = stored.tobytes()
    ds["PixelData"].VR = "OW"
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def save(ds: Dataset, path: Path, *, transfer_syntax: UID = ExplicitVRLittleEndian) -> None:
    """Write one dataset unchanged, valid or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_encoded = transfer_syntax.is_encapsulated and "PixelData" in ds
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if is_encoded else transfer_syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID") or CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID") or generate_uid()
    if is_encoded:
        ds.compress(transfer_syntax, generate_instance_uid=False)
    with anything_goes():
        ds.save_as(path, enforce_file_format=True)


@anything_goes()
def write_series(
    folder: Path,
    hu: ArrayLike,
    *,
    spacing_mm: tuple[float, float, float] = (2.0, 1.0, 1.0),
    origin_mm: Sequence[float] = (0.0, 0.0, 0.0),
    orientation: Sequence[float] = SUPINE,
    step_mm: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    transfer_syntax: UID = ExplicitVRLittleEndian,
    edit: Edit | None = None,
) -> list[Path]:
    """Write `hu`, shape (slices, rows, columns), one file per slice. Return the paths in this order.

    `spacing_mm`: along (slices, rows, columns). `origin_mm`: LPS position of voxel (0, 0, 0). `step_mm`: LPS
    step from slice to slice; default: `spacing_mm[0]` along the normal. `names`: file names.
    `edit(dataset, index)` may change or break the dataset before it is written.
    """
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    step = np.cross(row, column) * spacing_mm[0] if step_mm is None else np.array(step_mm)
    paths = []
    for index, pixels in enumerate(np.asarray(hu)):
        ds = ct_slice(pixels, position_mm=np.array(origin_mm) + index * step)
        ds.ImageOrientationPatient = [float(value) for value in orientation]
        ds.PixelSpacing = list(spacing_mm[1:])
        ds.SliceThickness = spacing_mm[0]
        if edit is not None:
            edit(ds, index)
        path = folder / (names[index] if names else f"{index:03d}.dcm")
        save(ds, path, transfer_syntax=transfer_syntax)
        paths.append(path)
    return paths


def write_mislabelled(image: Dataset, path: Path) -> None:
    """Write texts in Latin-1 in a header that says UTF-8, as some exports do."""
    image.SpecificCharacterSet = "ISO_IR 100"
    save(image, path)
    path.write_bytes(mislabel(path.read_bytes()))


def mislabel(content: bytes) -> bytes:
    """Let an encoded header with texts in Latin-1 (ISO_IR 100) say that they are UTF-8."""
    assert content.count(b"ISO_IR 100") == 1
    return content.replace(b"ISO_IR 100", b"ISO_IR 192")


def rewrite(content: bytes, keyword: str, vr: str, value: bytes) -> bytes:
    """Give an element of an encoded header (explicit VR, short form) another VR and value, valid or not."""
    tag = Tag(keyword)
    start = content.index(struct.pack("<HH", tag.group, tag.elem))
    (length,) = struct.unpack_from("<H", content, start + 6)
    head = content[start : start + 4] + vr.encode() + struct.pack("<H", len(value))
    return content[:start] + head + value + content[start + 8 + length :]


def body(slices: int = 24, rows: int = 16, columns: int = 12) -> np.ndarray:
    """Create a block of tissue in air, with a different value in each slice."""
    hu = np.full((slices, rows, columns), -1000.0)
    hu[:, 3:-3, 3:-3] = np.arange(slices)[:, None, None] + 40.0
    return hu


def of_other_patient(archive: Path, number: int) -> bytes:
    """Return a zip of the same scan of another patient: a scan that is sent again gets no second answer."""
    made = io.BytesIO()
    other = str(number).zfill(len(PATIENT_ID)).encode()
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(made, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(PATIENT_ID.encode(), other))
    return made.getvalue()
