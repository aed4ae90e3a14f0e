"""Which attributes a de-identified image keeps, and the form that their values must have.

Start with `ALLOWED`. Identifiers and pixels are added to it by `deidentify`.
"""

import re
from collections.abc import Callable

from pydicom import uid
from pydicom.tag import Tag

from models.refusal import Refusal
from pipeline.imaging import image_type
from pipeline.imaging import reasons as imaging_reasons
from pipeline.imaging.vendor_tags import known_kernel, known_manufacturer

IMPLEMENTATION_UID = uid.UID("2.25.184716237519960213187036450927313064537")
_UNSAID = b"OTHER"  # replaces a text that is not allowed; a missing value would have another meaning

_MOST_WORDS = 64  # in ImageType; scanners write fewer than ten
# The words of ImageType that the reader knows, and their separators.
_IMAGE_TYPE = {b"", b" ", b"/", b"\\", *(word.encode() for word in image_type.KNOWN)}

Rule = Callable[[bytes], bytes | None]  # maps a value without padding to the allowed value; None: leave it out


def _form(pattern: bytes) -> Rule:
    """Return a rule that keeps values of this form."""
    is_of_form = re.compile(pattern).fullmatch
    return lambda value: value if is_of_form(value) else None


def _one_of(*words: bytes) -> Rule:
    """Return a rule that keeps these words and replaces all others by OTHER."""
    return lambda value: value if value.upper() in words else _UNSAID


def _image_type(value: bytes) -> bytes:
    """Keep the words of ImageType that the reader uses (PS3.3, C.7.6.1.1.2); vendors add their own words.

    Raises Refusal E_PARSE if there are too many: what follows the first ones could say that the image is no slice.
    """
    words = re.split(rb"([ /\\\\])", value)
    if len(words) > 2 * _MOST_WORDS:
        raise Refusal(imaging_reasons.PARSE, private="too many words in ImageType")
    return b"".join(word if word.upper() in _IMAGE_TYPE else _UNSAID for word in words)


def _manufacturer(value: bytes) -> bytes:
    return known_manufacturer(value.decode("latin-1")).encode()


def _kernel(value: bytes) -> bytes:
    return known_kernel(value.decode("latin-1"))[0].encode() or _UNSAID


def registered(value: bytes) -> bytes:
    """Keep standard SOP classes; a private one could contain anything."""
    return value if uid.UID(value.decode("latin-1")).type == "SOP Class" else IMPLEMENTATION_UID.encode()


def _was_given(agent: bytes) -> bytes | None:
    return None if agent.upper() in (b"", b"NO", b"NONE") else b"YES"


_number = _form(rb" *[-+.eE0-9]{0,32} *(\\ *[-+.eE0-9]{0,32} *){0,5}")
_two_bytes = _form(rb"(?s:..)")
_counts = _form(rb"(?s:....){1,16}")
_day = _form(rb"[0-9]{8}")
_time = _form(rb"[0-9:.]{0,16}")

# All allowed attributes: value representation, rule, keywords. Identifiers and pixels are added to them.
ALLOWED: dict[int, tuple[str, Rule]] = {
    int(Tag(keyword)): (vr, rule)
    for vr, rule, keywords in (
        ("UI", registered, "SOPClassUID"),
        ("CS", _image_type, "ImageType"),
        ("CS", _one_of(b"CT"), "Modality"),
        ("CS", _one_of(b"YES", b"NO"), "BurnedInAnnotation"),
        ("CS", _form(rb"[HF]F(P|S|DR|DL)"), "PatientPosition"),
        ("CS", _one_of(b"MONOCHROME1", b"MONOCHROME2"), "PhotometricInterpretation"),
        ("CS", _one_of(b"00", b"01"), "LossyImageCompression"),
        ("LO", _one_of(b"HU", b"US"), "RescaleType"),
        ("LO", _manufacturer, "Manufacturer"),
        ("SH", _kernel, "ConvolutionKernel"),
        ("LO", _was_given, "ContrastBolusAgent"),
        ("DA", _day, "StudyDate SeriesDate AcquisitionDate"),
        ("TM", _time, "StudyTime SeriesTime AcquisitionTime"),
        ("SH", _form(rb"[+-][0-9]{4}"), "TimezoneOffsetFromUTC"),
        ("AS", _form(rb"[0-9]{1,3}[DWMY]"), "PatientAge"),
        ("CS", _form(rb"[FMO]"), "PatientSex"),
        ("DS", _number, "ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness KVP"),
        ("DS", _number, "RescaleSlope RescaleIntercept SpacingBetweenSlices SliceLocation"),
        ("IS", _number, "NumberOfFrames InstanceNumber AcquisitionNumber TemporalPositionIdentifier"),
        ("DT", _form(rb"[0-9]{8,14}(\.[0-9]{1,6})?([+-][0-9]{4})?"), "AcquisitionDateTime"),
        # Of multi-frame images, in functional groups or for all frames.
        ("CS", _image_type, "FrameType"),
        ("CS", _one_of(b"MONOCHROME"), "PixelPresentation"),
        ("CS", _one_of(b"VOLUME"), "VolumetricProperties"),
        ("CS", _one_of(b"NONE"), "VolumeBasedCalculationTechnique"),
        ("CS", _one_of(b"YES", b"NO"), "ContrastBolusAgentAdministered"),
        ("SH", _form(rb"[0-9]{1,8}"), "StackID"),
        ("UL", _counts, "InStackPositionNumber TemporalPositionIndex DimensionIndexValues"),
        ("AT", _form(rb"(?s:....)"), "DimensionIndexPointer"),
        ("US", _two_bytes, "Rows Columns SamplesPerPixel BitsAllocated BitsStored HighBit PixelRepresentation"),
        ("US", _two_bytes, "PixelPaddingValue PixelPaddingRangeLimit"),
    )
    for keyword in keywords.split()
}
BINARY = {"US", "SS", "UL", "AT"}
