"""Tests of what is removed beside pixels: unused bits, what follows the last pixel, and comments in JPEG headers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.encaps import encapsulate

from pipeline.pacs.clean_pixels import without_comments, without_surplus, without_unused_bits

NOTE = b"Qvickstrom"
SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00" + b"\x55\xff\x00\xfe" + NOTE + b"\xff\xd9"


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def jpeg(*notes: bytes, blank: bool = False) -> bytes:
    frame = b"\xff\xd8" + segment(0xC3, bytes(9))
    return frame + b"".join(segment(0xFE, bytes(len(n)) if blank else n) for n in notes) + SCAN


def test_comments_of_each_frame_become_zeros() -> None:
    notes = [(NOTE, b"x"), (), (NOTE * 9,)]
    expected = encapsulate([jpeg(*each, blank=True) for each in notes])
    assert without_comments(encapsulate([jpeg(*each) for each in notes])) == expected
    halves = encapsulate([jpeg(*each) for each in notes], fragments_per_frame=3)
    assert without_comments(halves)[-60:] == halves[-60:]


@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xEE, 0xFE])
def test_applications_and_comments_are_removed_after_fill_bytes_too(marker: int) -> None:
    frame = b"\xff\xd8\xff\xff" + segment(marker, NOTE)
    assert without_comments(encapsulate([frame + SCAN])).count(NOTE) == 1  # the one that is part of the scan


def test_tables_are_kept() -> None:
    tables = encapsulate([b"\xff\xd8" + segment(0xC4, NOTE) + SCAN])
    assert without_comments(tables) == tables


def test_jpeg_2000_comment_is_removed() -> None:
    size = segment(0x51, bytes(41))
    tile = segment(0x90, bytes(8)) + b"\xff\x64" + NOTE + b"\xff\xd9"  # what follows the first tile's marker is kept
    frame = b"\xff\x4f" + size + segment(0x64, b"\0\1" + NOTE) + segment(0x52, bytes(10)) + tile
    expected = frame.replace(segment(0x64, b"\0\1" + NOTE), segment(0x64, bytes(2 + len(NOTE))))
    assert without_comments(encapsulate([frame, frame])) == encapsulate([expected, expected])


@given(st.binary(max_size=200), st.integers(0, 300), st.binary(min_size=1, max_size=4))
def test_damaged_streams_keep_their_length(start: bytes, at: int, damage: bytes) -> None:
    value = start + encapsulate([jpeg(NOTE), jpeg(NOTE)])
    value = value[:at] + damage + value[at + len(damage) :]
    assert len(without_comments(value)) == len(value)


@given(st.data(), st.sampled_from([8, 16]), st.booleans(), st.sampled_from("<>"))
def test_unused_bits_repeat_the_sign(data: st.DataObject, allocated: int, is_signed: bool, order: str) -> None:
    stored = data.draw(st.integers(1, allocated))
    lowest = -(2 ** (stored - 1)) if is_signed else 0
    values = data.draw(st.lists(st.integers(lowest, lowest + 2**stored - 1), min_size=1, max_size=20))
    noise = data.draw(st.integers(0, 2**allocated - 1)) >> stored << stored
    raw = (np.array(values) & 2**stored - 1 | noise).astype(f"{order}u{allocated // 8}").tobytes()
    kept = without_unused_bits(raw, allocated=allocated, stored=stored, is_signed=is_signed, order=order)
    assert np.frombuffer(kept, f"{order}{'i' if is_signed else 'u'}{allocated // 8}").tolist() == values


def test_odd_byte_at_the_end_is_kept() -> None:
    kept = without_unused_bits(b"\xff\xff\x07", allocated=16, stored=12, is_signed=False, order="<")
    assert kept == b"\xff\x0f\x07"


@pytest.mark.parametrize(
    ("value", "frame_bytes", "frames", "expected"),
    [
        (b"abcd", 4, 1, b"abcd"),
        (b"abcdNOT", 4, 1, b"abcd"),
        (b"abcdefghNOT", 4, 2, b"abcdefgh"),
        (b"abcX", 3, 1, b"abc\0"),
        (b"abcXN", 3, 1, b"abc\0"),
        (b"abc", 3, 1, b"abc"),
        (b"abcdefX", 3, 2, b"abcdef"),
        (b"ab", 4, 1, b"ab"),
        (b"", 4, 1, b""),
    ],
)
def test_what_follows_the_last_pixel_is_cut(value: bytes, frame_bytes: int, frames: int, expected: bytes) -> None:
    assert without_surplus(value, frame_bytes=frame_bytes, frames=frames) == expected


def test_padding_of_swapped_bytes_precedes_the_last_pixel() -> None:
    assert without_surplus(b"baXcN", frame_bytes=3, frames=1, is_swapped=True) == b"ba\0c"


@pytest.mark.parametrize(("extra", "frames"), [(b"NOTE", 1), (b"NOTE" * 90, 1), (b"NOTE", 2)])
def test_room_for_another_image_is_kept_empty(extra: bytes, frames: int) -> None:
    """The reader refuses such a value, and must refuse it still."""
    kept = without_surplus(b"abcd" * frames + extra, frame_bytes=4, frames=frames)
    assert kept == b"abcd" * frames + bytes(4)


def test_room_for_another_image_makes_no_odd_length() -> None:
    assert without_surplus(b"abcabcNOTE", frame_bytes=3, frames=2) == b"abcabc" + bytes(4)
