"""Tests of decoding frames that are damaged or state a false size. Some of them once crashed the whole process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, get_frame

from models.refusal import Refusal
from pipeline.imaging import codecs

JPEG = ["4.50", "4.57", "4.70", "4.80", "4.81"]
JPEG2000 = ["4.90", "4.91"]
FRAME_HEADS = [b"\xff\xc0", b"\xff\xc3", b"\xff\xf7"]
SIZE = 512


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
