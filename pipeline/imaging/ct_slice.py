"""Reads the slices of one file: checks their headers and converts their pixels to Hounsfield units.

A file has one slice, or the frames of a multi-frame image, which become slices like all others.

The attributes are defined in DICOM PS3.3, C.7.6.3 (pixels), C.7.5.1.1.2 (padding), C.8.2.1 (CT image).
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, uid
from pydicom.encaps import encapsulate
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from models.refusal import Reason, Refusal
from pipeline.imaging import codecs, image_type, reasons
from pipeline.imaging.codecs import Form
from pipeline.imaging.dicom_header import PIXEL_DATA, BoundedFile, read_header, tags, text, text_or_nothing
from pipeline.imaging.fast_header import head_tags, read_head
from pipeline.imaging.functional_groups import CT_CLASSES, is_multi_frame
from pipeline.imaging.geometry import MAX_OBLIQUE_DEGREES
from pipeline.imaging.multiframe import Frame, Span, read_frames
from pipeline.imaging.volume import HU_ENDS, whole_hu

AIR_HU = -1024
BRIGHTEST_HU = 3071  # end of the 12-bit range of CT scanners, which begins at -1024
_DARKEST_TISSUE_HU = -950.0
_MAX_SLOPE = 100.0
_LEAST_AXIAL = math.cos(math.radians(MAX_OBLIQUE_DEGREES))
# Attributes of frames, and their values in slices with HU; single-frame images have none of them.
_OF_MULTI_FRAME = {
    "PixelPresentation": ("", "MONOCHROME"),
    "VolumetricProperties": ("", "VOLUME"),
    "VolumeBasedCalculationTechnique": ("", "NONE"),
}
_MAX_INTERCEPT = 2.0**16

# What is the same in all images of one series, by its definition (DICOM PS3.3, C.7.1 to C.7.5).
OF_ONE_SCAN = (
    *("PatientBirthDate", "PatientSex", "PatientAge", "StudyDate", "AccessionNumber", "PatientPosition"),
    *("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "FrameOfReferenceUID"),
)
# What tells recordings of one body apart, such as phases and reconstructions.
OF_ONE_RECORDING = (
    *("TemporalPositionIdentifier", "TemporalPositionIndex", "AcquisitionNumber", "AcquisitionDate"),
    *("KVP", "ConvolutionKernel"),
)
_KEYWORDS = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("SOPClassUID", "Modality", "ImageType", "NumberOfFrames", "BurnedInAnnotation", "ContrastBolusAgent"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    "LossyImageCompression",
    *OF_ONE_SCAN,
    *OF_ONE_RECORDING,
    *("SpacingBetweenSlices", "SliceLocation"),
)
_HEADER, _IN_HEAD = tags(*_KEYWORDS), head_tags(*_KEYWORDS)
_POSITION, _LOCATION = int(Tag("ImagePositionPatient")), int(Tag("SliceLocation"))
_DECIMAL = rb" *([-+]?[0-9]+\.?[0-9]*(?:[eE][-+]?[0-9]+)?) *"
# The whole element: tag, VR and length (or only a length of four bytes), and three Decimal Strings in simple form.
_PLAIN_POSITION = re.compile(rb".{4}(?:DS..|..\0\0)" + rb"\\".join([_DECIMAL] * 3), re.DOTALL)
_PLAIN_LOCATION = re.compile(rb".{4}(?:DS..|..\0\0)" + _DECIMAL, re.DOTALL)


@dataclass(frozen=True)
class Slice:
    """The header of one CT slice, with the checks that need only one file.

    `position_mm`, `orientation`, `pixel_spacing_mm` (between rows, between columns): as in DICOM, LPS.
    `thickness_mm`, `spacing_mm` (SpacingBetweenSlices), `location_mm` (SliceLocation): NaN if absent.
    `scan`, `recording`: the values of `OF_ONE_SCAN` and `OF_ONE_RECORDING`, '' where absent. `padding`: first and last
    stored value that mean 'outside the scan'.
    `pixels_at`, `native`: location of the pixels in the file (see `fast_header.Head`); None if unknown.
    `spans`: of the fragments of an encapsulated frame of a multi-frame image.
    """

    path: Path
    form: Form
    position_mm: list[float]
    orientation: list[float]
    pixel_spacing_mm: list[float]
    thickness_mm: float
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    flags: tuple[str, ...]
    spacing_mm: float = np.nan
    location_mm: float = np.nan
    scan: tuple[str, ...] = ()
    recording: tuple[str, ...] = ()
    pixels_at: int | None = None
    native: tuple[int, int] | None = None
    spans: tuple[Span, ...] = ()


def inspect_slices(paths: Iterable[Path]) -> list[Slice]:
    """Read and check the headers of a series; headers that differ only in the position are checked once.

    Raises `Refusal` for the first file that `inspect_file` refuses.
    """
    slices: list[Slice] = []
    checked: dict[bytes, Slice] = {}
    for path in paths:
        head = read_head(path, _IN_HEAD)
        plain = head and _PLAIN_POSITION.fullmatch(head.elements.pop(_POSITION, b""))
        if not head or not plain:
            slices += inspect_file(path)
            continue
        location = _PLAIN_LOCATION.fullmatch(head.elements.pop(_LOCATION, b""))
        same = head.same
        if same not in checked:
            found = inspect_file(path)
            if len(found) != 1 or found[0].native or found[0].spans:  # of a multi-frame image
                slices += found
                continue
            (checked[same],) = found
        slices.append(
            replace(
                checked[same],
                path=path,
                position_mm=[float(number) for number in plain.groups()],
                location_mm=float(location[1]) if location else np.nan,
                pixels_at=head.pixels_at,
                native=head.native,
            )
        )
    return slices


def inspect_slice(path: Path) -> Slice:
    """Read and check the header of one file, and return its only slice, or the first one of several.

    Raises `Refusal` as `inspect_file` does.
    """
    return inspect_file(path)[0]


def inspect_file(path: Path) -> list[Slice]:
    """Read and check the headers of all slices of one file.

    Raises `Refusal`: E_NOT_DICOM, E_PARSE, E_MODALITY, E_MODALITY_MISMATCH, E_MULTIFRAME, E_SEVERAL_VOLUMES,
    E_LOCALIZER, E_NOT_AXIAL, E_BURNED_IN, E_PIXEL, E_TRANSFER_SYNTAX, E_RESCALE, E_GEOMETRY, E_TRUNCATED.
    Flags: W_MODALITY_EMPTY, W_LOSSY, W_DERIVED, W_IMAGE_TYPE, W_CONTRAST.
    """
    header = read_header(path, _HEADER)
    try:
        frames = read_frames(path, [*_HEADER]) if is_multi_frame(header) else [Frame(header)]
        return [_checked(path, frame) for frame in frames]
    except Refusal as refusal:
        refusal.private = f"{path} {refusal.private}"
        raise


def _checked(path: Path, frame: Frame) -> Slice:
    header = frame.header
    flags = _check_kind(header)
    form, stored_range = _pixel_format(header)
    slope, intercept = _rescale(header)
    return Slice(
        path=path,
        form=form,
        position_mm=_numbers(header, "ImagePositionPatient", 3, reasons.GEOMETRY),
        orientation=_numbers(header, "ImageOrientationPatient", 6, reasons.GEOMETRY),
        pixel_spacing_mm=_numbers(header, "PixelSpacing", 2, reasons.GEOMETRY),
        thickness_mm=_first(header, "SliceThickness"),
        spacing_mm=_first(header, "SpacingBetweenSlices"),
        location_mm=_first(header, "SliceLocation"),
        scan=tuple(text_or_nothing(header, keyword).strip() for keyword in OF_ONE_SCAN),
        recording=tuple(text_or_nothing(header, keyword).strip() for keyword in OF_ONE_RECORDING),
        slope=slope,
        intercept=intercept,
        padding=_padding(header, stored_range, slope, intercept),
        flags=flags,
        native=frame.native,
        spans=frame.spans,
    )


def decode_slice(header: Slice, out: NDArray[np.int16] | None = None) -> NDArray[np.int16]:
    """Return the pixels in whole HU, shape (rows, columns), clipped only to int16; declared padding is -1024.

    The pixels are written to `out` if given.

    Raises `Refusal`: E_TRUNCATED, E_DECODE, and those of `read_header`.
    """
    try:
        stored = codecs.decode(*_pixel_data(header))
    except Refusal as refusal:
        refusal.private = f"{header.path} {refusal.private}"
        raise
    hu = np.empty(stored.shape, np.int16) if out is None else out
    if header.slope == 1 and header.intercept.is_integer() and abs(header.intercept) < HU_ENDS.max:
        _add(stored, int(header.intercept), hu)
    else:
        hu[:] = whole_hu(stored * np.float32(header.slope) + np.float32(header.intercept))
    if header.padding is not None:
        hu[(stored >= header.padding[0]) & (stored <= header.padding[1])] = AIR_HU
    return hu


def _add(stored: NDArray[np.integer], intercept: int, hu: NDArray[np.int16]) -> None:
    """Add a whole intercept without a conversion to float32."""
    kind = stored.dtype.newbyteorder("=") if stored.itemsize == hu.itemsize else hu.dtype
    native, ends = stored.astype(kind, copy=False), np.iinfo(kind)
    least, most = max(ends.min, HU_ENDS.min - intercept), min(ends.max, HU_ENDS.max - intercept)
    # Values beyond int16 wrap around here; adding the intercept wraps them back.
    np.clip(native, kind.type(least), kind.type(most), out=hu.view(kind))
    hu += np.int16(intercept)


def _pixel_data(header: Slice) -> tuple[bytes, Form, str]:
    """Return the arguments of `codecs.decode`. Raises `Refusal` as `read_header` does."""
    form = header.form
    if header.native and not form.syntax.is_encapsulated:
        return _native_pixels(header.path, *header.native, form), form, "OW"
    if header.spans:
        return _encapsulated_pixels(header.path, header.spans), form, "OB"
    if header.pixels_at is None:
        element = read_header(header.path, [PIXEL_DATA]).get_item(PIXEL_DATA)
    else:
        try:
            with header.path.open("rb") as file:
                rest = cast(BinaryIO, BoundedFile(file))
                rest.seek(header.pixels_at)
                is_implicit = form.syntax.is_implicit_VR
                element = read_dataset(rest, is_implicit, True, specific_tags=[PIXEL_DATA]).get_item(PIXEL_DATA)
        except Exception as error:
            raise Refusal(reasons.PARSE, private=str(error)) from None
    return (b"", form, "OW") if element is None else (element.value, form, element.VR or "OW")


def _native_pixels(path: Path, begins: int, length: int, form: Form) -> bytes:
    """Read native pixels directly: locating the element with pydicom takes twice as long as reading it."""
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(begins)
            return file.read(min(length, 2 * form.frame_bytes))  # two frames suffice for `codecs.decode` to refuse
    except OSError as error:
        raise Refusal(reasons.PARSE, private=str(error)) from None


def _encapsulated_pixels(path: Path, spans: Iterable[Span]) -> bytes:
    """Read the fragments of one frame, and return them as the value of PixelData of a single-frame image."""
    try:
        with path.open("rb", buffering=0) as file:
            fragments = []
            for begins, length in spans:
                file.seek(begins)
                fragments.append(file.read(length))
    except OSError as error:
        raise Refusal(reasons.PARSE, private=str(error)) from None
    return encapsulate([b"".join(fragments)])


def _check_kind(header: Dataset) -> tuple[str, ...]:
    """Refuse a slice that is not an axial one of CT, and return its flags."""
    flags = []
    modality = text(header, "Modality")
    sop_class = text(header, "SOPClassUID") or text(header.file_meta, "MediaStorageSOPClassUID")
    is_ct_class = sop_class in CT_CLASSES
    is_capture = f"{sop_class}.".startswith(f"{uid.SecondaryCaptureImageStorage}.")
    if modality not in ("CT", "") or (not modality and not is_ct_class):
        raise Refusal(reasons.MODALITY_MISMATCH if is_ct_class else reasons.MODALITY)
    if not modality:
        flags.append(reasons.MODALITY_EMPTY.code)
    if is_capture:
        raise Refusal(reasons.NOT_AXIAL)
    if sop_class and not is_ct_class:
        raise Refusal(reasons.MODALITY_MISMATCH)
    if _floats(header, "NumberOfFrames") not in ([], [1.0]):  # frames of multi-frame images have none
        raise Refusal(reasons.MULTIFRAME)

    lossy = text(header, "LossyImageCompression").strip()
    if lossy == "01" or (lossy != "00" and text(header.file_meta, "TransferSyntaxUID") in codecs.MAY_BE_LOSSY):
        flags.append(reasons.LOSSY.code)
    if unusual := _image_type(header, is_lossy=lossy == "01"):
        flags.append(unusual.code)
    if text(header, "BurnedInAnnotation").upper() == "YES":
        raise Refusal(reasons.BURNED_IN)
    if text(header, "ContrastBolusAgent").strip().upper() not in ("", "NO", "NONE"):
        flags.append(reasons.CONTRAST.code)
    return tuple(flags)


def _image_type(header: Dataset, *, is_lossy: bool) -> Reason | None:
    """Return the flag for an unusual ImageType. Raises `Refusal`: E_LOCALIZER, E_NOT_AXIAL."""
    kind = image_type.judge(text(header, "ImageType"), is_lossy=is_lossy)
    if kind and kind.refuses:
        raise Refusal(kind)
    if kind is reasons.IMAGE_TYPE and not _is_axial(header):
        raise Refusal(reasons.NOT_AXIAL)
    for keyword, usual in _OF_MULTI_FRAME.items():
        if text(header, keyword).strip().upper() not in usual:
            raise Refusal(reasons.NOT_AXIAL, private=keyword)
    return kind


def _is_axial(header: Dataset) -> bool:
    """Whether the orientation of a slice says that it is axial: nothing else does if ImageType is absent."""
    directions = _floats(header, "ImageOrientationPatient")
    if len(directions) != 6:
        return False
    normal = np.cross(directions[:3], directions[3:])
    return bool(abs(normal[2]) >= _LEAST_AXIAL * np.linalg.norm(normal) > 0)


def _pixel_format(header: Dataset) -> tuple[Form, tuple[int, int]]:
    """Return how the pixels are stored, and the range of values that can be stored."""
    keywords = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation")
    numbers = [_numbers(header, keyword, 1, reasons.PIXEL)[0] for keyword in keywords]
    if not all(number.is_integer() for number in numbers):
        raise Refusal(reasons.PIXEL)
    rows, columns, samples, allocated, stored, signed = map(int, numbers)
    is_grey = samples == 1 and text(header, "PhotometricInterpretation") == "MONOCHROME2"
    is_laid_out = allocated in (8, 16) and 1 <= stored <= allocated and signed in (0, 1)
    is_flush = _floats(header, "HighBit") in ([], [stored - 1])  # no other value is allowed; often absent
    if rows < 1 or columns < 1 or not is_grey or not is_laid_out or not is_flush:
        raise Refusal(reasons.PIXEL)
    syntax = uid.UID(text(header.file_meta, "TransferSyntaxUID"))
    if not codecs.is_readable(syntax):
        raise codecs.unsupported(syntax)
    lowest = -(2 ** (stored - 1)) if signed else 0
    return Form(syntax, rows, columns, allocated, stored, bool(signed)), (lowest, lowest + 2**stored - 1)


def _rescale(header: Dataset) -> tuple[float, float]:
    (slope,) = _numbers(header, "RescaleSlope", 1, reasons.RESCALE)
    (intercept,) = _numbers(header, "RescaleIntercept", 1, reasons.RESCALE)
    is_hu = text(header, "RescaleType").strip() in ("", "HU", "US")
    if not is_hu or not 0 < slope <= _MAX_SLOPE or not abs(intercept) <= _MAX_INTERCEPT:
        raise Refusal(reasons.RESCALE)
    return slope, intercept


def _padding(header: Dataset, stored_range: tuple[int, int], slope: float, intercept: float) -> tuple[int, int] | None:
    """Return the declared padding as stored values; refuse padding that cannot be distinguished from tissue."""
    declared = _floats(header, "PixelPaddingValue") + _floats(header, "PixelPaddingRangeLimit")
    if not declared:
        return None
    if not all(number.is_integer() for number in declared):
        raise Refusal(reasons.PIXEL, private="PixelPaddingValue")
    # Scanners write -2000 as 63536 and vice versa; both are the same 16 bits.
    lowest = -(2**15) if stored_range[0] < 0 else 0
    as_stored = [(int(number) - lowest) % 2**16 + lowest for number in declared]
    first, last = min(as_stored), max(as_stored)
    can_be_stored = stored_range[0] <= first and last <= stored_range[1]
    is_tissue = first * slope + intercept <= BRIGHTEST_HU and last * slope + intercept >= _DARKEST_TISSUE_HU
    if not can_be_stored or is_tissue:
        raise Refusal(reasons.PIXEL, private="PixelPaddingValue")
    return first, last


def _floats(header: Dataset, keyword: str) -> list[float]:
    """Return the numbers of an attribute, including NaN; an empty list if it is absent or not numeric."""
    try:
        value = header.get(keyword)
        return [float(item) for item in (value if isinstance(value, MultiValue) else [value])]
    except Exception:  # pydicom converts values only on access
        return []


def _first(header: Dataset, keyword: str) -> float:
    return next(iter(_floats(header, keyword)), np.nan)


def _numbers(header: Dataset, keyword: str, count: int, reason: Reason) -> list[float]:
    values = _floats(header, keyword)
    if len(values) != count:
        raise Refusal(reason, private=keyword)
    return values
