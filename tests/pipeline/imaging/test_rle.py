"""Tests of the fast RLE decoder: same result as pydicom's decoder, also on damaged frames, without a panic."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom.pixels.decoders import rle as in_python
from pydicom.pixels.encoders.base import RLELosslessEncoder

from pipeline.imaging import rle

ROWS, COLUMNS = 9, 14


def runner(bits: int) -> Any:
    return SimpleNamespace(
        rows=ROWS,
        columns=COLUMNS,
        bits_allocated=bits,
        samples_per_pixel=1,
        get_option=lambda name, default=None: default,
        set_option=lambda name, value: None,
    )


def encoded(rng: np.random.Generator, bits: int) -> bytes:
    """A frame with long runs or with noise."""
    pixels = rng.integers(0, 2**bits, (ROWS, COLUMNS)) // (1, 2 ** (bits - 2))[int(rng.integers(2))]
    stored = pixels.astype(f"<u{bits // 8}").tobytes()
    description = {"rows": ROWS, "columns": COLUMNS, "bits_allocated": bits, "bits_stored": bits, "number_of_frames": 1}
    kind = {"samples_per_pixel": 1, "photometric_interpretation": "MONOCHROME2", "pixel_representation": 0}
    return RLELosslessEncoder.encode(stored, encoding_plugin="pydicom", **description, **kind)


def answer(decode: Any, frame: bytes, bits: int) -> bytes | None:
    try:
        return bytes(decode(frame, runner(bits)))
    except ValueError:
        return None


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_result_equals_pydicom_on_damaged_frames(bits):
    rng = np.random.default_rng(bits)
    read = refused = 0
    for _ in range(400):
        frame = bytearray(encoded(rng, bits))
        for _ in range(rng.integers(0, 3)):
            at = int(rng.integers(0, 70 if rng.random() < 0.5 else len(frame)))
            removed, added = rng.integers(0, 3), rng.integers(0, 256, int(rng.integers(0, 4)), np.uint8).tobytes()
            frame[at : at + removed] = added
        expected = answer(in_python._decode_frame, bytes(frame), bits)
        assert answer(rle.decode_frame, bytes(frame), bits) == expected
        read, refused = read + (expected is not None), refused + (expected is None)
    assert min(read, refused) > 50


@pytest.mark.parametrize("bits", [8, 16])
def test_valid_frame_does_not_use_slow_decoder(bits, monkeypatch):
    frame = encoded(np.random.default_rng(1), bits)
    expected = answer(in_python._decode_frame, frame, bits)
    monkeypatch.setattr(in_python, "_decode_frame", None)
    assert answer(rle.decode_frame, frame, bits) == expected
