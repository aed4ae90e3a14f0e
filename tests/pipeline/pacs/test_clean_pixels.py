"""Tests of what is removed beside pixels: unused bits, what follows the last pixel, and comments in JPEG streams."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import uid
from pydicom.encaps import encapsulate

from pipeline.pacs.clean_pixels import only_streams, without_surplus, without_unused_bits

NOTE = b"Qvickstrom"
SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00" + b"\x55\xff\x00\x12" + b"\xff\xd0" + b"\x56\xfe"
END = b"\xff\xd9"
SAMPLES = 6  # of a frame


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def jpeg(*notes: bytes, blank: bool = False) -> bytes:
    frame = b"\xff\xd8" + segment(0xC3, bytes(9))
    return frame + b"".join(segment(0xFE, bytes(len(n)) if blank else n) for n in notes) + SCAN + END


def jpeg_2000(*, is_long: bool = True, comment: bytes = NOTE) -> bytes:
    head = b"\xff\x4f" + segment(0x51, bytes(41)) + segment(0x64, comment) + segment(0x52, bytes(10))
    tile = segment(0x64, comment) + b"\xff\x93\xff\x91\x00\x04\xff\xd9" + b"\x55\xff\x12"
    size = 12 + len(tile) if is_long else 0
    return head + segment(0x90, b"\0\0" + size.to_bytes(4, "big") + b"\0\1") + tile + END


def rle(*, low: bytes = b"\x05abcdef", unused: int = 0) -> bytes:
    """A frame of 6 samples of 16 bits: five times one high byte, and another one."""
    high = b"\xfc\x01\x00\x02"
    return struct.pack("<16L", 2, 64, 64 + len(high), *[unused] * 13) + high + low


def clean(
    value: bytes, *, syntax: str = uid.JPEGLosslessSV1, frames: int = 1, samples: int = SAMPLES
) -> bytes | bytearray | None:
    return only_streams(value, syntax=syntax, frames=frames, samples=samples)


STREAMS = [
    (uid.JPEGBaseline8Bit, jpeg()),
    (uid.JPEGLosslessSV1, jpeg()),
    (uid.JPEGLSLossless, jpeg().replace(b"\xff\x00", b"\xff\x7f")),
    (uid.JPEG2000Lossless, jpeg_2000(comment=bytes(9))),
    (uid.JPEG2000, jpeg_2000(comment=bytes(9), is_long=False)),
    (uid.HTJ2KLossless, jpeg_2000(comment=bytes(9))),
    (uid.RLELossless, rle()),
]


@pytest.mark.parametrize(("syntax", "frame"), STREAMS)
@pytest.mark.parametrize("note", [b"", b"x", NOTE, NOTE * 9 + END, END + NOTE, jpeg(NOTE), jpeg_2000()])
def test_what_follows_the_end_of_a_frame_becomes_zeros(syntax: str, frame: bytes, note: bytes) -> None:
    for frames in (1, 3):
        value, expected = encapsulate([frame + note] * frames), encapsulate([frame + bytes(len(note))] * frames)
        assert clean(value, syntax=syntax, frames=frames) == expected


@pytest.mark.parametrize(("syntax", "frame"), STREAMS[:-1])
@pytest.mark.parametrize("fragments", [2, 3, 5])
def test_end_of_a_frame_is_found_in_any_of_its_fragments(syntax: str, frame: bytes, fragments: int) -> None:
    for frames, note in ((1, b""), (1, NOTE), (2, b""), (2, b"x")):
        value, expected = (
            encapsulate([frame + each] * frames, fragments_per_frame=fragments) for each in (note, bytes(len(note)))
        )
        assert clean(value, syntax=syntax, frames=frames) == expected


def test_frames_after_a_fragment_that_belongs_to_none_become_zeros() -> None:
    """Where they begin is not certain; the reader refuses the image."""
    value = encapsulate([jpeg(), NOTE, jpeg()], has_bot=False)
    expected = encapsulate([jpeg(), bytes(len(NOTE)), bytes(len(jpeg()))], has_bot=False)
    assert clean(value, frames=2) == expected


def test_another_stream_than_those_of_the_frames_becomes_zeros() -> None:
    value = encapsulate([jpeg(), jpeg()], has_bot=False)
    assert clean(value) == encapsulate([jpeg(), bytes(len(jpeg()))], has_bot=False)
    assert clean(value, frames=2) == value


def test_offset_table_holds_offsets_of_fragments_only() -> None:
    value = encapsulate([jpeg(), jpeg()])
    assert value[8:12] == bytes(4) and value[12:16] != bytes(4)
    assert clean(value, frames=2) == value
    noted = value[:4] + (6).to_bytes(4, "little") + NOTE[:6] + value[16:]
    assert clean(noted, frames=2) == noted.replace(NOTE[:6], bytes(6))


def test_what_follows_the_last_item_becomes_zeros() -> None:
    assert clean(encapsulate([jpeg()]) + NOTE) == encapsulate([jpeg()]) + bytes(len(NOTE))
    assert clean(NOTE) == bytes(len(NOTE))


@pytest.mark.parametrize(
    ("syntax", "frame", "kept"),
    [
        (uid.JPEGLosslessSV1, NOTE * 3, 0),
        (uid.JPEGLosslessSV1, jpeg_2000(), 0),
        (uid.JPEG2000Lossless, jpeg(), 0),
        (uid.JPEGLosslessSV1, jpeg()[:15] + NOTE, 15),  # no marker follows the header
        (uid.JPEGLosslessSV1, jpeg()[:25] + NOTE + b"A", 25),  # the scan has no end
        (
            uid.JPEG2000Lossless,
            jpeg_2000(comment=bytes(9)).replace(b"\x24\0\1", b"\x99\0\1"),
            99,
        ),  # a tile-part that is too long
        (uid.RLELossless, rle()[:60], 0),
        (uid.RLELossless, struct.pack("<16L", 2, 64, 63, *[0] * 13) + NOTE, 0),
    ],
)
def test_stream_whose_end_is_unknown_is_not_kept(syntax: str, frame: bytes, kept: int) -> None:
    assert clean(encapsulate([frame]), syntax=syntax) == encapsulate([frame[:kept] + bytes(len(frame) - kept)])


@pytest.mark.parametrize("syntax", [uid.MPEG2MPML, "1.2.840.10008.1.2.4.110", "1.2.3"])
def test_pixels_of_a_syntax_that_is_not_read_are_not_kept(syntax: str) -> None:
    assert clean(encapsulate([jpeg()]), syntax=syntax) is None
    assert clean(encapsulate([rle()]), syntax=uid.RLELossless, samples=0) is None


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (rle(unused=0x41424344), rle()),
        (rle(low=b"\x7fabcdef" + NOTE), rle(low=b"\x7fabcdef" + bytes(len(NOTE)))),
        (rle(low=b"\x80\x80\x05abcdef" + NOTE), rle(low=b"\x80\x80\x05abcdef" + bytes(len(NOTE)))),
        (rle(low=b"\x02abc\xfed" + NOTE), rle(low=b"\x02abc\xfed" + bytes(len(NOTE)))),
        (rle(low=b"\x02abc"), rle(low=b"\x02abc")),  # too short: the reader refuses it
    ],
)
def test_rle_keeps_its_samples_only(frame: bytes, expected: bytes) -> None:
    assert clean(encapsulate([frame]), syntax=uid.RLELossless) == encapsulate([expected])


def test_comments_of_each_frame_become_zeros() -> None:
    notes = [(NOTE, b"x"), (), (NOTE * 9,)]
    for fragments in (1, 3):
        before, after = (
            encapsulate([jpeg(*each, blank=blank) for each in notes], fragments_per_frame=fragments)
            for blank in (False, True)
        )
        assert clean(before, frames=3) == after


@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xEE, 0xFE, 0xF0])
def test_comments_and_unknown_segments_are_removed_wherever_they_are(marker: int) -> None:
    def frame(note: bytes) -> bytes:
        return b"\xff\xd8\xff\xff" + segment(marker, note) + SCAN + segment(marker, note) + SCAN + END

    assert clean(encapsulate([frame(NOTE)])) == encapsulate([frame(bytes(len(NOTE)))])


def test_tables_are_kept() -> None:
    tables = encapsulate([b"\xff\xd8" + segment(0xC4, NOTE) + SCAN + END])
    assert clean(tables) == tables


@pytest.mark.parametrize("is_long", [True, False])
def test_jpeg_2000_comments_are_removed(is_long: bool) -> None:
    before, after = (jpeg_2000(comment=comment, is_long=is_long) for comment in (NOTE, bytes(len(NOTE))))
    assert clean(encapsulate([before] * 2), syntax=uid.JPEG2000, frames=2) == encapsulate([after] * 2)


@given(
    st.sampled_from(STREAMS),
    st.binary(max_size=9),
    st.integers(0, 300),
    st.binary(min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_damaged_streams_keep_their_length(
    stream: tuple[str, bytes], start: bytes, at: int, damage: bytes, frames: int
) -> None:
    syntax, frame = stream
    value = start + encapsulate([frame, frame])
    value = value[:at] + damage + value[at + len(damage) :]
    assert len(clean(value, syntax=syntax, frames=frames) or b"") == len(value)


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
