"""Reads the lungs from a DICOM Segmentation (PS3.3, A.51): binary, uncompressed, with any segments beside them.

Frames without a voxel may be absent, and frames may come in any order. pydicom is enough for this.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, uid
from pydicom.dataelem import RawDataElement

from models.refusal import Refusal
from pipeline.imaging import reasons
from pipeline.imaging.dicom_header import PIXEL_DATA, read_header, tags, text
from pipeline.imaging.geometry import MAX_OBLIQUE_DEGREES, unit_axes
from pipeline.imaging.lung_mask import BOTH, LEFT, RIGHT
from pipeline.imaging.volume import MAX_VOXELS

# SNOMED CT, and the older code of the same concept that some programs still write.
_ORGANS = {("SCT", "39607008"): BOTH, ("SRT", "T-28000"): BOTH, ("SCT", "3341006"): RIGHT, ("SCT", "44029006"): LEFT}
_SIDES = {
    **{("SCT", "24028007"): RIGHT, ("SRT", "G-A100"): RIGHT},
    **{("SCT", "7771000"): LEFT, ("SRT", "G-A101"): LEFT},
}
_MAX_FILE_BYTES = 2**28  # 2^31 voxels of one bit
_MAX_FRAMES = 2**14
_MAX_SEQUENCE_BYTES = 2**24  # a frame's description takes about 1 kB
_MAX_READS = 1_000_000
_SAME_DIRECTION = 1e-3
_SAME_PLACE_MM = 0.5
_UNEVEN = 0.1  # of the distance between slices
_READABLE = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian)
_ABOUT = tags("SOPClassUID", "ReferencedSeriesSequence")
_SEQUENCES = tags(
    "ReferencedSeriesSequence",
    "SegmentSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
_WANTED = [
    *tags("SOPClassUID", "FrameOfReferenceUID", "SegmentationType", "NumberOfFrames", "Rows", "Columns"),
    *tags("BitsAllocated", "SamplesPerPixel"),
    *_SEQUENCES,
    PIXEL_DATA,
]


@dataclass(frozen=True)
class _Frame:
    """One frame with a lung. `number`: its place in the file; `place_mm`: of its first voxel, LPS."""

    number: int
    label: int
    place_mm: NDArray[np.float64]


def referenced_series(path: Path) -> tuple[str, ...]:
    """Return the SeriesInstanceUIDs that a DICOM segmentation refers to; () for any other file."""
    try:
        header = read_header(path, _ABOUT, _MAX_READS)
        return _referenced(header) if text(header, "SOPClassUID") == uid.SegmentationStorage else ()
    except Refusal:
        return ()


def read_segmentation(
    path: Path, series_uid: str, frame_of_reference: str
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return labels and affine as `LungMask` takes them.

    Raises `Refusal`: E_NOT_DICOM, E_PARSE, E_MASK_FILE, E_MASK_LABELS, E_MASK_SERIES.
    """
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise _fault("too large")
    header = read_header(path, _WANTED, _MAX_READS)
    try:
        _check_kind(header)
        frame = text(header, "FrameOfReferenceUID")
        if series_uid not in _referenced(header) or not frame or frame != frame_of_reference:
            raise Refusal(reasons.MASK_SERIES)
        return _volume(header, _lung_segments(header))
    except Refusal:
        raise
    except Exception as error:  # pydicom converts values only on access, and raises many kinds of exceptions
        raise _fault(str(error)) from None


def _fault(private: str) -> Refusal:
    return Refusal(reasons.MASK_FILE, private=private)


def _referenced(header: Dataset) -> tuple[str, ...]:
    try:
        return tuple(filter(None, (text(item, "SeriesInstanceUID") for item in header.ReferencedSeriesSequence)))
    except Exception:  # absent or damaged
        return ()


def _check_kind(header: Dataset) -> None:
    if text(header, "SOPClassUID") != uid.SegmentationStorage or text(header, "SegmentationType") != "BINARY":
        raise _fault("not a binary segmentation")
    if header.file_meta.TransferSyntaxUID not in _READABLE:
        raise _fault("compressed")
    if (header.BitsAllocated, header.SamplesPerPixel) != (1, 1):
        raise _fault("not one bit for each voxel")
    for tag in _SEQUENCES:
        raw = header.get_item(tag)
        if isinstance(raw, RawDataElement) and len(raw.value or b"") > _MAX_SEQUENCE_BYTES:
            raise _fault("a sequence is too large")


def _lung_segments(header: Dataset) -> dict[int, int]:
    """Return the label of each segment that is a lung, by its number.

    Both lungs as one segment count only if right and left are not there. Raises `Refusal` E_MASK_LABELS.
    """
    found = {int(item.SegmentNumber): _label(item) for item in header.SegmentSequence}
    if {RIGHT, LEFT} <= set(found.values()):
        return {number: label for number, label in found.items() if label in (RIGHT, LEFT)}
    if BOTH not in found.values():
        raise Refusal(reasons.MASK_LABELS)
    return {number: BOTH for number, label in found.items() if label == BOTH}


def _label(segment: Dataset) -> int:
    """Return RIGHT, LEFT or BOTH, 0 for a segment that is no lung."""
    kinds = segment.get("SegmentedPropertyTypeCodeSequence") or []
    for kind in kinds:
        organ = _ORGANS.get(_code(kind), 0)
        modifiers = kind.get("SegmentedPropertyTypeModifierCodeSequence") or []
        sides = {_SIDES[_code(each)] for each in modifiers if _code(each) in _SIDES}
        if organ:
            return sides.pop() if organ == BOTH and len(sides) == 1 else organ
    return 0


def _code(item: Dataset) -> tuple[str, str]:
    return text(item, "CodingSchemeDesignator").strip(), text(item, "CodeValue").strip()


def _volume(header: Dataset, segments: dict[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Put the frames of the lungs in order."""
    rows, columns, count = int(header.Rows), int(header.Columns), int(header.NumberOfFrames)
    pixels = header.get_item(PIXEL_DATA)
    data = b"" if pixels is None else bytes(pixels.value)
    is_possible = min(rows, columns, count) > 0 and count <= _MAX_FRAMES and len(header.SharedFunctionalGroupsSequence)
    if not is_possible or len(data) * 8 < rows * columns * count:
        raise _fault("truncated, or impossible sizes")
    shared = header.SharedFunctionalGroupsSequence[0]
    frames = list(_frames(header, segments, shared))
    if len(header.PerFrameFunctionalGroupsSequence) != count or not frames:
        raise _fault("no frame shows a lung, or a frame has no description")
    first = header.PerFrameFunctionalGroupsSequence[frames[0].number]
    row, column = _directions(first, shared)
    measures = _group(first, shared, "PixelMeasuresSequence")
    normal = np.cross(row, column)
    heights, step, corner = _stack(frames, normal, measures)
    if rows * columns * (max(heights) + 1) > MAX_VOXELS:
        raise _fault("too many voxels")
    labels = np.zeros((max(heights) + 1, rows, columns), np.uint8)
    for frame, height in zip(frames, heights, strict=True):
        # Segments may overlap: RIGHT | LEFT is BOTH, whatever the order of the frames.
        labels[height][_bits(data, frame.number, rows * columns).reshape(rows, columns)] |= frame.label
    between_rows, between_columns = (float(number) for number in measures.PixelSpacing)
    lps = np.eye(4)
    lps[:3] = np.stack([step, column * between_rows, row * between_columns, corner], axis=1)
    return labels, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _frames(header: Dataset, segments: dict[int, int], shared: Dataset) -> Iterator[_Frame]:
    """Yield the frames of the lungs. Raises `Refusal` E_MASK_FILE if they differ in orientation."""
    usual: tuple[NDArray[np.float64], ...] = ()
    for number, own in enumerate(header.PerFrameFunctionalGroupsSequence):
        about = _group(own, shared, "SegmentIdentificationSequence")
        label = segments.get(int(about.ReferencedSegmentNumber))
        if label is None:
            continue
        directions = _directions(own, shared)
        usual = usual or directions
        if np.abs(np.subtract(directions, usual)).max() > _SAME_DIRECTION:
            raise _fault("frames with several orientations")
        place = _numbers(_group(own, shared, "PlanePositionSequence").ImagePositionPatient, 3)
        yield _Frame(number, label, place)


def _group(own: Dataset, shared: Dataset, keyword: str) -> Dataset:
    """Return a functional group of a frame, from the frame itself or from those that all frames share."""
    found: Dataset = (own.get(keyword) or shared.get(keyword))[0]
    return found


def _directions(own: Dataset, shared: Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    both = _numbers(_group(own, shared, "PlaneOrientationSequence").ImageOrientationPatient, 6)
    try:
        return unit_axes(both)
    except Refusal:
        raise _fault("impossible orientation") from None


def _numbers(values: Iterable[object], count: int) -> NDArray[np.float64]:
    numbers = np.array([float(str(value)) for value in values])
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise _fault("impossible position or orientation")
    return numbers


def _stack(
    frames: list[_Frame], normal: NDArray[np.float64], measures: Dataset
) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]]:
    """Return the slice of each frame, the step from slice to slice, and the position of the lowest frame.

    The step is not perpendicular to the slices if the gantry was tilted. Empty slices may be absent, so the distance is
    the stated one, corrected by the ends: it may be stated rounded.
    """
    places = np.array([frame.place_mm for frame in frames])
    heights_mm = places @ normal
    lowest = places[heights_mm.argmin()]
    from_lowest = heights_mm - heights_mm.min()
    whole = places[heights_mm.argmax()] - lowest
    steps = np.diff(np.unique(np.round(from_lowest, 3)))
    is_tilted = _require_straight(places - lowest, from_lowest, whole, normal)
    stated = None if is_tilted else measures.get("SpacingBetweenSlices")  # along the table or across the slices
    usual_mm = float(stated) if stated else float(steps.min()) if steps.size else float(measures.SliceThickness)
    if not 0 < usual_mm < math.inf:
        raise _fault("the frames are not one stack")
    count = round(float(from_lowest.max()) / usual_mm)
    if count > _MAX_FRAMES:
        raise _fault("the frames are not one stack")
    step_mm = float(from_lowest.max()) / count if count else usual_mm
    heights = np.rint(from_lowest / step_mm)
    if np.abs(from_lowest - heights * step_mm).max() > _UNEVEN * step_mm:
        raise _fault("the distances between frames are uneven")
    return heights.astype(int).tolist(), whole / count if count else normal * usual_mm, lowest


def _require_straight(
    places: NDArray[np.float64],
    heights_mm: NDArray[np.float64],
    whole: NDArray[np.float64],
    normal: NDArray[np.float64],
) -> bool:
    """Check that frames lie on the line from the lowest to the highest one; return whether a tilted gantry leans it.

    `places`, `heights_mm`: from the lowest frame. `whole`: the highest of the places.
    """
    height_mm = float(whole @ normal)
    aside_mm = float(np.linalg.norm(whole - height_mm * normal))
    line = whole / height_mm if height_mm else normal
    is_leaning_much = aside_mm > _SAME_PLACE_MM + height_mm * math.tan(math.radians(MAX_OBLIQUE_DEGREES))
    if is_leaning_much or np.abs(places - np.outer(heights_mm, line)).max() > _SAME_PLACE_MM:
        raise _fault("the frames are not one stack")
    return aside_mm > _SAME_PLACE_MM


def _bits(data: bytes, frame: int, size: int) -> NDArray[np.bool_]:
    """Return the voxels of a frame; frames follow each other without padding, the first voxel in the lowest bit."""
    start, before = divmod(frame * size, 8)
    packed = np.frombuffer(data, np.uint8, count=(before + size + 7) // 8, offset=start)
    return np.unpackbits(packed, bitorder="little")[before : before + size].astype(bool)
