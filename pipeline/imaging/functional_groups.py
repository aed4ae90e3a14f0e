"""Describes each frame of a multi-frame CT image as the header of a single-frame image. It reads no files.

An Enhanced CT or Legacy Converted Enhanced CT image (DICOM PS3.3, A.38 and A.70) keeps position, orientation, spacing
and rescale of its frames in functional groups (C.7.6.16): sequences that all frames share, or that each frame has.
"""

from collections.abc import Iterator

from pydicom import Dataset, uid
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.tag import Tag

from models.refusal import Refusal
from pipeline.imaging import reasons

MULTI_FRAME_CT = frozenset((uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage))
CT_CLASSES = frozenset((uid.CTImageStorage, *MULTI_FRAME_CT))
SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
# The groups whose attributes a reader of CT needs. The two last ones hold what a conversion found in single frames.
GROUPS = (
    *("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence"),
    *("CTImageFrameTypeSequence", "CTReconstructionSequence", "ContrastBolusUsageSequence", "FrameContentSequence"),
    *("UnassignedSharedConvertedAttributesSequence", "UnassignedPerFrameConvertedAttributesSequence"),
)
_CONVERTED = GROUPS[-2:]
# How pixels are stored: the image states it once.
_OF_ALL_FRAMES = frozenset(
    Tag(keyword)
    for keyword in (
        "Rows",
        "Columns",
        "SamplesPerPixel",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
    )
)
MAX_FRAMES = 2**14
_MAX_SEQUENCE_BYTES = 2**25  # the description of a frame takes about 1 kB, with all attributes of its source 5 kB
_SAME_POSITION_MM = 0.01
# Dimensions along which one volume varies.
_OF_ONE_VOLUME = {"StackID", "InStackPositionNumber", "ImagePositionPatient", "SliceLocation", "InstanceNumber"}


def is_multi_frame(header: Dataset) -> bool:
    """Whether a header is that of a CT image with functional groups."""
    try:
        return (header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")) in MULTI_FRAME_CT
    except Exception:  # pydicom converts values only on access
        return False


def first_frame(header: Dataset) -> Dataset:
    """Return the header of a multi-frame image as that of its first frame, as far as it contains groups.

    Any other header, and one whose groups cannot be read, is returned unchanged.
    """
    if not is_multi_frame(header):
        return header
    try:
        flat = _with_groups(_flat(header), [*_items(header, SHARED)[:1], *_items(header, PER_FRAME)[:1]])
    except Exception:  # pydicom converts values only on access, and raises many kinds of exceptions
        return header
    flat.file_meta = header.file_meta
    return flat


def frame_headers(header: Dataset) -> list[Dataset]:
    """Return one flat header for each frame, with the attributes and keywords of a single-frame CT image.

    FrameType becomes ImageType. Attributes that the image itself has are overridden by shared groups, and these by the
    frame's own. `header`: with NumberOfFrames and both sequences of groups.

    Raises `Refusal`: E_MULTIFRAME, E_SEVERAL_VOLUMES.
    """
    try:
        shared, own = _items(header, SHARED), _items(header, PER_FRAME)
        count = int(str(header.NumberOfFrames))
        if not 1 <= count == len(own) <= MAX_FRAMES or len(shared) > 1:
            raise Refusal(reasons.MULTIFRAME, private=f"{len(own)} descriptions")
        base = _with_groups(_flat(header), shared)
        frames = [_with_groups(Dataset(dict(base.items())), [item]) for item in own]
        varying = list(_varying(header, frames))
        is_repeated = _is_repeated(frames)
    except Refusal:
        raise
    except Exception as error:  # pydicom converts values only on access, and raises many kinds of exceptions
        raise Refusal(reasons.MULTIFRAME, private=str(error)) from None
    stacks = len({str(frame.get("StackID", "")) for frame in frames})
    if stacks > 1:
        raise Refusal(reasons.SEVERAL_VOLUMES, found=f"{stacks} stacks")
    if is_repeated and varying:
        raise Refusal(reasons.SEVERAL_VOLUMES, found=", ".join(varying))
    for frame in frames:
        frame.file_meta = header.file_meta
    return frames


def _items(header: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence of groups. Raises `Refusal` E_MULTIFRAME if it is too large."""
    raw = header.get_item(keyword) if keyword in header else None
    if isinstance(raw, RawDataElement) and len(raw.value or b"") > _MAX_SEQUENCE_BYTES:
        raise Refusal(reasons.MULTIFRAME, private="a sequence is too large")
    return list(header.get(keyword) or [])


def _flat(header: Dataset) -> Dataset:
    """Return the elements of the header that are no sequences, without the number of frames."""
    flat = Dataset()
    _copy(header, flat)
    if header.get("ContrastBolusAgentSequence"):
        flat.add_new("ContrastBolusAgent", "LO", "YES")
    if "NumberOfFrames" in flat:
        del flat.NumberOfFrames
    return flat


def _copy(source: Dataset, target: Dataset, *, overrides: bool = True) -> None:
    """Copy the standard elements that are no sequences."""
    for tag in source.keys():  # noqa: SIM118  iterating over a dataset would convert its elements
        element = source.get_item(tag)
        if tag.is_private or _is_sequence(element) or (tag in target and (not overrides or tag in _OF_ALL_FRAMES)):
            continue
        target[tag] = element


def _is_sequence(element: DataElement | RawDataElement | None) -> bool:
    if element is None:
        return True
    if element.VR is None:  # implicit: only the dictionary knows
        return keyword_for_tag(element.tag).endswith("Sequence")
    return element.VR == "SQ"


def _with_groups(flat: Dataset, items: list[Dataset]) -> Dataset:
    """Add to `flat` the attributes of the groups of `items`, and return it.

    Elements are replaced, never changed: the frames share those of the image.
    """
    for item in items:
        for keyword in GROUPS:
            for group in list(item.get(keyword) or [])[:1]:
                _copy(group, flat, overrides=keyword not in _CONVERTED)
                if "FrameType" in group:
                    flat.add_new("ImageType", "CS", group.FrameType)
                if "ContrastBolusAgentAdministered" in group:
                    was_given = group.ContrastBolusAgentAdministered == "YES"
                    flat.add_new("ContrastBolusAgent", "LO", "YES" if was_given else "NO")
    return flat


def _varying(header: Dataset, frames: list[Dataset]) -> Iterator[str]:
    """Yield what varies between frames and makes them several volumes, in words without values of the header."""
    times = {str(frame.get("TemporalPositionIndex", "")) for frame in frames}
    if len(times) > 1:
        yield f"{len(times)} temporal positions"
    for place, dimension in enumerate(header.get("DimensionIndexSequence") or []):
        keyword = keyword_for_tag(Tag(dimension.DimensionIndexPointer)) or "a private attribute"
        values = {_index(frame, place) for frame in frames}
        if len(values) > 1 and keyword not in {*_OF_ONE_VOLUME, "TemporalPositionIndex"}:
            yield f"{len(values)} values of {keyword}"


def _index(frame: Dataset, place: int) -> int:
    found = frame.get("DimensionIndexValues")
    values = found if hasattr(found, "__len__") else [found]
    return int(values[place]) if place < len(values) else 0


def _is_repeated(frames: list[Dataset]) -> bool:
    """Whether two frames have the same position."""
    found = [frame.get("ImagePositionPatient") for frame in frames]
    places = [tuple(round(float(number) / _SAME_POSITION_MM) for number in place) for place in found if place]
    return len(set(places)) < len(places)
