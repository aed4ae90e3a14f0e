"""Tests of decoding frames that are damaged or state a false size. Some of them once crashed the whole process."""

import base64
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread, uid
from pydicom.encaps import encapsulate, get_frame

from models.refusal import Refusal
from pipeline.imaging import codecs

JPEG = ["4.50", "4.51", "4.57", "4.70", "4.80", "4.81"]
JPEG2000 = ["4.90", "4.91"]
FRAME_HEADS = [b"\xff\xc0", b"\xff\xc1", b"\xff\xc3", b"\xff\xf7"]
SIZE = 512
# 12 x 16 pixels of 16 bits, encoded without loss by OpenJPH, which is no part of the product.
_HTJ2K = base64.b64decode(
    "/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCI"
    "kJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAQAAAf+TwAAm9/oFB3QAAMAAEsAAEsAAEoDa"
    "Agd0ADICh3QArgEHdADAABUQAATwAATAexQ4IQDGtACrBP4AYjQA/ZcAQjQAwAAWhAABaMAAFpiAVxBgoSxQl/IGQ/mEYFcAgD8w"
    "a/05JuTkxgBXuYRQVwBCeCuimgV4QTk94v4DH8xBEFcAwAAujgABdNAAC3QtklS4VGxtUWwBcmIxv2Vh4VJMpGjB9fjkIQV5kF8I"
    "FCBbAC2IFCy3RCz7LS2IaKEsMhNOLIKK6RO6LcLkDIqFC4vj1wgUY10AORa4uHG3HC7l4iKXhdxbrv3kidRevn/eQFEPfAD/2Q=="
)


@pytest.fixture
def chest_slice(real_data: Path) -> Callable[[str], Dataset]:
    folder = real_data / "awkward-dicom" / "cornerstone-chest-slice"

    def load(syntax: str) -> Dataset:
        (path,) = folder.glob(f"CTImage*1.2.840.10008.1.2.{syntax}.dcm")
        return dcmread(path)

    return load


def frame_of(dataset: Dataset) -> bytearray:
    return bytearray(get_frame(dataset.PixelData, 0, number_of_frames=1))


def frame_head(frame: bytearray) -> int:
    return next(frame.index(mark) for mark in FRAME_HEADS if mark in frame[:600])


def decode(dataset: Dataset, rows: int = SIZE) -> NDArray[np.integer]:
    bits = dataset.BitsAllocated, dataset.BitsStored, dataset.PixelRepresentation == 1
    return codecs.decode(dataset.PixelData, codecs.Form(dataset.file_meta.TransferSyntaxUID, rows, SIZE, *bits))


def code(dataset: Dataset, frame: bytes | bytearray) -> str:
    dataset.PixelData = encapsulate([bytes(frame)])
    with pytest.raises(Refusal) as caught:
        decode(dataset)
    return caught.value.code


@pytest.mark.parametrize("syntax", JPEG)
def test_jpeg_with_false_size_is_refused(chest_slice, syntax):
    dataset = chest_slice(syntax)
    frame = frame_of(dataset)
    head = frame_head(frame)
    frame[head + 5 : head + 9] = b"\xff\xff\xff\xff"  # 65,535 x 65,535 pixels
    assert code(dataset, frame) == "E_DECODE"


@pytest.mark.parametrize("syntax", JPEG2000)
def test_jpeg2000_with_false_size_is_refused(chest_slice, syntax):
    dataset = chest_slice(syntax)
    frame = frame_of(dataset)
    frame[8:16] = b"\x00\x00\xff\xff" * 2
    assert code(dataset, frame) == "E_DECODE"


@pytest.mark.parametrize("syntax", ["4.57", "4.70"])
@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, 0x00), (1, 0xC4), (2, 0xFF), (3, 0x00), (4, 17), (9, 3)],
    ids=["no marker", "no frame head", "long segment", "short segment", "17 bits", "3 components"],
)
def test_lossless_jpeg_with_damaged_header_is_refused(chest_slice, syntax, offset, value):
    dataset = chest_slice(syntax)
    frame = frame_of(dataset)
    frame[frame_head(frame) + offset] = value
    assert code(dataset, frame) == "E_DECODE"


@pytest.mark.parametrize("syntax", ["4.57", "4.70"])
def test_application_data_in_lossless_jpeg_is_ignored(chest_slice, syntax):
    dataset = chest_slice(syntax)
    frame = frame_of(dataset)
    expected = decode(dataset)
    assert frame[6:11] == b"JFIF\0"
    frame[11] = 9  # a JFIF version that does not exist
    dataset.PixelData = encapsulate([bytes(frame)])
    assert np.array_equal(decode(dataset), expected)


@pytest.mark.parametrize("syntax", [*JPEG, *JPEG2000, "5"])
@pytest.mark.parametrize("kept", [0.001, 0.5, 0.99])
def test_truncated_frame_is_refused(chest_slice, syntax, kept):
    dataset = chest_slice(syntax)
    frame = frame_of(dataset)
    assert code(dataset, frame[: int(kept * len(frame))]) in {"E_TRUNCATED", "E_DECODE"}


def test_padding_after_pixels_is_ignored(chest_slice):
    dataset = chest_slice("1")
    whole = decode(dataset)
    dataset.PixelData += bytes(6)
    assert np.array_equal(decode(dataset), whole)


def test_pixels_of_another_size_than_declared_are_refused(chest_slice):
    with pytest.raises(Refusal) as caught:
        decode(chest_slice("1"), rows=SIZE // 2)
    assert caught.value.code == "E_DECODE"


@pytest.mark.parametrize("syntax", [uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K])
def test_high_throughput_jpeg2000_is_decoded_exactly(syntax):
    rows, columns = np.mgrid[:12, :16]
    expected = (columns * 37 + rows * 91 + (columns * rows) % 53 * 7) % 4096
    form = codecs.Form(syntax, 12, 16, 16, 16, False)
    assert np.array_equal(codecs.decode(encapsulate([_HTJ2K]), form), expected)
    for damaged in (_HTJ2K[:200], _HTJ2K[:8] + b"\0\0\xff\xff" + _HTJ2K[12:]):
        with pytest.raises(Refusal):
            codecs.decode(encapsulate([damaged]), form)


def test_jpeg_extended_with_12_bits_has_the_hu_of_the_original(chest_slice):
    """Compression keeps 12 of 13 bits, in steps of 2 HU. The decoder of DCMTK gives the same values."""
    original, dataset = chest_slice("1").pixel_array.astype(float) - 1024, chest_slice("4.51")
    assert (dataset.BitsStored, dataset.RescaleSlope) == (12, pytest.approx(2.0, abs=0.001))
    hu = decode(dataset) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    is_body = original > -1100
    assert np.abs(hu - original)[is_body].mean() < 5
    assert np.abs(hu - original)[is_body].max() < 50


def test_jpeg_extended_of_another_precision_than_the_header_is_refused(chest_slice):
    dataset = chest_slice("4.51")
    frame = frame_of(dataset)
    frame[frame_head(frame) + 4] = 16
    assert code(dataset, frame) == "E_DECODE"
