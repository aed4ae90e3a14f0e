"""Decodes JPEG Extended with 12 bits (DICOM PS3.5, A.4.1) as a plugin of pydicom, with GDCM.

pydicom's own plugin refuses frames of 12 bits, although GDCM decodes them if it is given the precision that the frame
itself states: tests compare them with the decoder of DCMTK.
"""

from pydicom import uid
from pydicom.pixels.decoders.base import DecodeRunner

DECODER_DEPENDENCIES = {uid.JPEGExtended12Bit: ("python-gdcm>=3.0.24",)}
_START_OF_FRAME = 0xC1  # extended sequential DCT; other processes are not of this transfer syntax
_BASELINE = 0xC0  # a frame of 8 bits may be a baseline one


def is_available(syntax: str) -> bool:
    """Whether this plugin decodes `syntax`; pydicom calls this."""
    return syntax in DECODER_DEPENDENCIES


def precision(frame: bytes) -> int:
    """Return the bits of a sample, from the first segment of a JPEG image that states them. Raises ValueError."""
    at = 2
    while at + 5 <= len(frame) and frame[at] == 0xFF:
        if frame[at + 1] in (_START_OF_FRAME, _BASELINE):
            return frame[at + 4]
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    raise ValueError("no frame of JPEG Extended")


def decode_frame(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode one frame of grey pixels with 8 or 12 bits, little endian. Raises ValueError."""
    import gdcm

    bits = precision(frame)
    if bits not in (8, 12) or runner.bits_allocated != (8 if bits == 8 else 16):
        raise ValueError("the precision of the JPEG frame differs from the header")
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(uid.JPEGExtended12Bit))))
    image.SetPixelFormat(gdcm.PixelFormat(1, runner.bits_allocated, bits, bits - 1, runner.pixel_representation))
    pixels: bytes = image.GetBuffer().encode("utf-8", "surrogateescape")  # GDCM returns char* as str
    if len(pixels) != runner.rows * runner.columns * runner.bits_allocated // 8:
        raise ValueError("GDCM cannot decode the frame")
    return pixels
