"""De-identify an image before it is stored: only attributes on an allow-list are copied.

A new file is built from the allow-list (`allow_list`); nothing is deleted from the old file. Private attributes, free
text, overlays, curves and future attributes of DICOM are therefore left out without being listed (the profiles of DICOM
PS3.15, annex E, list what to remove), and so are sequences; the functional groups of multi-frame images are built again
from the same list. Allowed values must have a valid form: numbers are numbers, and words come from closed lists. No
free text is copied. Pixels are copied only for CT images that can be axial slices, on which no scanner writes text. For
a screen capture, a dose report or an image with BurnedInAnnotation only the header is copied, and the reader refuses
the image because of it; the same holds for native pixels in a layout that the reader does not know, and for a transfer
syntax that it does not know. Overlays in unused bits, bytes after the last pixel and comments in JPEG streams are
removed (`clean_pixels`).

Days and times are kept, with their offset from UTC, because they join the CT with the laboratory's results. The birth
date is not kept: if the image does not state the age, the age at the scan is calculated from it. Patient, study, series
and image get keyed identifiers, which are constant at one site and differ between sites.
"""

import math
import struct
from functools import lru_cache
from io import BytesIO
from typing import BinaryIO, cast

from pydicom import Dataset, uid
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag

from models.refusal import Refusal
from pipeline.imaging import codecs, image_type
from pipeline.imaging import reasons as imaging_reasons
from pipeline.imaging.dates_and_ages import AGE, age_in_years, patient_age
from pipeline.imaging.dicom_header import PIXEL_DATA, BoundedFile, is_decoded, tags, text
from pipeline.imaging.functional_groups import CT_CLASSES, GROUPS, MULTI_FRAME_CT, PER_FRAME, SHARED
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.pacs import reasons
from pipeline.pacs.allow_list import ALLOWED, BINARY, IMPLEMENTATION_UID, registered
from pipeline.pacs.clean_pixels import UNDEFINED, Layout, Pixels, clean
from pipeline.site import reasons as site_reasons
from pipeline.site.folder import Site

_UIDS = tags("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_CLASS, _PATIENT_ID, _ISSUER = tags("SOPClassUID", "PatientID", "IssuerOfPatientID")
_KIND, _BURNED_IN, _ORIENTATION = tags("ImageType", "BurnedInAnnotation", "ImageOrientationPatient")
_SYNTAX, _CLASS_OF_FILE = tags("TransferSyntaxUID", "MediaStorageSOPClassUID")
_REMOVED, _METHOD = tags("PatientIdentityRemoved", "DeidentificationMethod")
_FRAME_OF_REFERENCE, _AGENT, _AGENTS = tags("FrameOfReferenceUID", "ContrastBolusAgent", "ContrastBolusAgentSequence")
_SEQUENCES = tags(SHARED, PER_FRAME, "DimensionIndexSequence")
_GROUPS = tags(*GROUPS)
_AGE, *_OF_AGE = tags(*AGE)  # the birth date is read, and never copied
_WANTED = [*ALLOWED, *_OF_AGE, *_UIDS, _PATIENT_ID, _ISSUER, _FRAME_OF_REFERENCE, _AGENTS, *_SEQUENCES, PIXEL_DATA]
_BITS = tags("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
_FRAME, _FRAMES = tags("Rows", "Columns", "SamplesPerPixel"), int(Tag("NumberOfFrames"))
_SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"
_ITEM = 0xFFFEE000


@quiet_pydicom()
def strip(part10: bytes, site: Site, *, patient_id: str | None = None) -> tuple[str, bytes]:
    """Return name and content of the de-identified file for a complete DICOM file (PS3.10).

    PatientID becomes the site's pseudonym. Pixels keep their values and compression. `patient_id`: the patient
    according to the PACS. Raises `Refusal`: E_NOT_DICOM, E_PARSE, E_TRANSFER_SYNTAX, E_NO_PATIENT_ID,
    E_PATIENT_ID_UNDECODED, E_ISSUER, E_PATIENT_DIFFERS.
    """
    try:
        return _strip(part10, site, patient_id)
    except (Refusal, MemoryError):
        raise
    except Exception as error:  # a value that no rule foresees, such as one too long to be written
        raise Refusal(imaging_reasons.PARSE, private=f"{type(error).__name__}: {error}") from None


def _strip(part10: bytes, site: Site, patient_id: str | None) -> tuple[str, bytes]:
    meta, source = _read(part10)
    study, series, image = (_text(source, tag) for tag in _UIDS)
    if not (study and series and image):
        raise Refusal(imaging_reasons.PARSE, private="a UID is missing")
    owner = _patient(source, site, patient_id)
    passing = _passing(source)
    _pass_age(source, passing)
    if _CLASS not in passing:
        passing[_CLASS] = "UI", registered(_text(meta, _CLASS_OF_FILE).encode())
    for tag, original in zip(_UIDS, (study, series, image), strict=True):
        passing[tag] = "UI", keyed_uid(site, original).encode()
    passing[_PATIENT_ID] = "LO", site.pseudonym(owner).encode()
    passing[_REMOVED] = "CS", b"YES"
    passing[_METHOD] = "LO", b"fedthorax allow-list"
    if frame := _text(source, _FRAME_OF_REFERENCE):
        passing[_FRAME_OF_REFERENCE] = "UI", keyed_uid(site, frame).encode()
    syntax = _text(meta, _SYNTAX)
    if passing[_CLASS][1].decode("latin-1") in MULTI_FRAME_CT:
        _pass_groups(source, syntax, passing)
    pixels = _pixels(source, syntax, passing) if _is_axial_ct(passing) else None
    return image_file(site, image), _file(syntax, passing, pixels)


def keyed_uid(site: Site, original: str) -> str:
    """Return a valid UID (PS3.5, B.2) that replaces `original`; only this site can compute it."""
    return f"2.25.{int(site.keyed('uid', original)[:32], 16)}"


def image_file(site: Site, sop_instance_uid: str) -> str:
    """Return the file name that `strip` gives this image."""
    return f"{site.keyed('image', sop_instance_uid)[:32]}.dcm"


def series_folder(site: Site, study_uid: str, series_uid: str) -> str:
    """Return the folder name of a series."""
    return site.keyed("series", f"{study_uid}|{series_uid}")[:32]


def check_patient(patient_id: str, issuer: str, site: Site) -> None:
    """Check a patient's identifier.

    Raises Refusal: E_NO_PATIENT_ID if empty, E_PATIENT_ID_UNDECODED if read with loss, E_ISSUER if from elsewhere.
    """
    if not patient_id:
        raise Refusal(site_reasons.NO_PATIENT_ID)
    if not is_decoded(patient_id, issuer):
        raise Refusal(site_reasons.PATIENT_ID_UNDECODED)
    expected = site.settings.site.issuer
    if expected and issuer and issuer != expected:
        raise Refusal(site_reasons.ISSUER, private=issuer)


def _read(part10: bytes) -> tuple[Dataset, Dataset]:
    """Read the file's meta information and the needed attributes; `dcmread` takes twice as long.

    Raises Refusal: E_NOT_DICOM, E_PARSE, E_TRANSFER_SYNTAX.
    """
    if part10[128:132] != b"DICM":
        raise Refusal(imaging_reasons.NOT_DICOM)
    stream = cast(BinaryIO, BoundedFile(BytesIO(part10)))
    stream.seek(132)
    try:
        meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        implicit, order = _encoding(_text(meta, _SYNTAX))
        return meta, read_dataset(stream, implicit, order == "<", specific_tags=_WANTED)
    except Refusal:
        raise
    except Exception as error:  # broken files make pydicom raise many types of errors
        raise Refusal(imaging_reasons.PARSE, private=str(error)) from None


@lru_cache(maxsize=64)
def _encoding(transfer_syntax: str) -> tuple[bool, str]:
    """Return whether value representations are implicit, and the byte order for `struct`.

    Raises Refusal: E_TRANSFER_SYNTAX.
    """
    syntax = uid.UID(transfer_syntax)
    # Deflated files can expand to any size, and are very rare.
    if syntax.is_private or not syntax.is_transfer_syntax or syntax.is_deflated:
        raise codecs.unsupported(syntax)
    return syntax.is_implicit_VR, "<" if syntax.is_little_endian else ">"


def _patient(source: Dataset, site: Site, expected: str | None) -> str:
    patient_id = _text(source, _PATIENT_ID)
    check_patient(patient_id, _text(source, _ISSUER), site)
    if expected is not None and patient_id != expected:
        raise Refusal(reasons.PATIENT_DIFFERS)
    return patient_id


def _raw(source: Dataset, tag: BaseTag) -> RawDataElement | None:
    """Return an element as it is in the file; None if it is absent or encoded as a sequence."""
    try:
        element = source.get_item(tag)
    except Exception:  # absent, or pydicom fails to convert it
        return None
    return element if isinstance(element, RawDataElement) and isinstance(element.value, bytes) else None


def _text(source: Dataset, tag: BaseTag) -> str:
    """Return a text without padding, '' if absent. Raises Refusal E_PARSE."""
    if tag not in source:
        return ""
    element = _raw(source, tag)
    value = element.value if element is not None else None
    if isinstance(value, bytes) and value.isascii() and b"\x1b" not in value:  # an escape changes the character set
        return value.decode().strip(" \0")
    return text(source, keyword_for_tag(tag)).strip(" \0")


def _passing(source: Dataset) -> dict[int, tuple[str, bytes]]:
    """Return the allowed attributes: tag to value representation and value."""
    passing: dict[int, tuple[str, bytes]] = {}
    for tag, element in source.items():
        if tag not in ALLOWED or not isinstance(element, RawDataElement) or not element.value:
            continue  # not on the list, empty, or encoded as a sequence
        vr, rule = ALLOWED[tag]
        value = rule(element.value if vr in BINARY else element.value.strip(b" \0"))
        if value is not None:
            passing[tag] = element.VR if vr in BINARY and element.VR in BINARY else vr, value
    return passing


def _pass_age(source: Dataset, passing: dict[int, tuple[str, bytes]]) -> None:
    """Add the age at the scan if the image does not state it in a usable form."""
    _, stated = passing.get(_AGE, ("", b""))
    if age_in_years(stated.decode()) is not None:
        return
    if age := patient_age(source):
        passing[_AGE] = "AS", age.encode()


def _pass_groups(source: Dataset, syntax: str, passing: dict[int, tuple[str, bytes]]) -> None:
    """Add the functional groups of a multi-frame image, built again. Raises `Refusal` E_PARSE."""
    try:
        for tag in _SEQUENCES:
            if tag in source:
                items = (_item(item, syntax) for item in source[tag].value)
                passing[tag] = "SQ", b"".join(items)
        if _AGENTS in source and source[_AGENTS].value:
            passing[_AGENT] = "LO", b"YES"
    except Exception as error:  # pydicom converts sequences only on access
        raise Refusal(imaging_reasons.PARSE, private=str(error)) from None


def _item(item: Dataset, syntax: str) -> bytes:
    """Return an item of a sequence with its allowed attributes, and its functional groups built in the same way."""
    passing = _passing(item)
    for tag in _GROUPS:
        if tag in item:
            passing[tag] = "SQ", b"".join(_item(group, syntax) for group in item[tag].value)
    encoding = _encoding(syntax)
    content = b"".join(_element(tag, *passing[tag], *encoding) for tag in sorted(passing))
    return struct.pack(f"{encoding[1]}HHL", _ITEM >> 16, _ITEM & 0xFFFF, len(content)) + content


def _is_axial_ct(passing: dict[int, tuple[str, bytes]]) -> bool:
    """Whether the image can be an axial slice: the reader refuses all others, whose pixels may show text."""
    kind, burned_in = (passing.get(tag, ("", b""))[1] for tag in (_KIND, _BURNED_IN))
    reason = image_type.judge(kind.decode("latin-1"), is_lossy=False)
    is_described = _ORIENTATION in passing or passing[_CLASS][1].decode("latin-1") in MULTI_FRAME_CT
    is_ct = passing[_CLASS][1].decode("latin-1") in CT_CLASSES and burned_in.upper() != b"YES"
    return is_ct and (is_described if reason is imaging_reasons.IMAGE_TYPE else reason is None or not reason.refuses)


def _pixels(source: Dataset, syntax: str, passing: dict[int, tuple[str, bytes]]) -> Pixels | None:
    element, order = _raw(source, PIXEL_DATA), _encoding(syntax)[1]
    bits, frame = ([_number_of(passing, tag, order) for tag in each] for each in (_BITS, _FRAME))
    layout = Layout(bits, math.prod(number or 0 for number in frame), _frames(passing), order, syntax)
    return clean(element, layout) if element else None


def _frames(passing: dict[int, tuple[str, bytes]]) -> int:
    """Return the number of frames, 1 if it is absent or unusable."""
    try:
        return max(1, int(float(passing[_FRAMES][1])))
    except (KeyError, ValueError, OverflowError):
        return 1


def _number_of(passing: dict[int, tuple[str, bytes]], tag: int, order: str) -> int | None:
    value = passing.get(tag, ("", b""))[1]
    return int(struct.unpack(f"{order}H", value)[0]) if value else None


# --- writing (PS3.5, 7.1 and PS3.10, 7.1); pydicom takes many times as long ------------------------------------


def _file(syntax: str, passing: dict[int, tuple[str, bytes]], pixels: Pixels | None) -> bytes:
    meta = b"".join(
        _element(tag, vr, value)
        for tag, (vr, value) in (
            (0x00020001, ("OB", b"\0\1")),
            (0x00020002, passing[_CLASS]),
            (0x00020003, passing[_UIDS[2]]),
            (0x00020010, ("UI", syntax.encode())),
            (0x00020012, ("UI", IMPLEMENTATION_UID.encode())),
        )
    )
    encoding = _encoding(syntax)
    parts: list[bytes | bytearray] = [
        b"\0" * 128,
        b"DICM",
        _element(0x00020000, "UL", struct.pack("<L", len(meta))),
        meta,
    ]
    parts += [_element(tag, *passing[tag], *encoding) for tag in sorted(passing)]
    if pixels is not None:
        size = UNDEFINED if pixels.is_encapsulated else len(pixels.value)
        parts += [_head(PIXEL_DATA, pixels.vr, size, *encoding), pixels.value]
        parts += [_SEQUENCE_END] if pixels.is_encapsulated else []
    return b"".join(parts)


def _element(tag: int, vr: str, value: bytes, implicit: bool = False, order: str = "<") -> bytes:
    if len(value) % 2:
        value += b"\0" if vr == "UI" else b" "
    return _head(tag, vr, len(value), implicit, order) + value


@lru_cache(maxsize=4096)
def _head(tag: int, vr: str, length: int, implicit: bool, order: str) -> bytes:
    group, element = tag >> 16, tag & 0xFFFF
    if implicit:
        return struct.pack(f"{order}HHL", group, element, length)
    if vr in ("OB", "OW", "SQ"):
        return struct.pack(f"{order}HH2sxxL", group, element, vr.encode(), length)
    return struct.pack(f"{order}HH2sH", group, element, vr.encode(), length)
