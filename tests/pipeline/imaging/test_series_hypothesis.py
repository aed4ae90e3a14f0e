"""Property tests: a synthetic slice with any tag, VR, value or length is read, or refused with a code."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom import uid as uids
from pydicom.datadict import DicomDictionary

from models.refusal import Refusal
from pipeline.imaging.ct_slice import decode_slice, inspect_slice
from pipeline.imaging.discovery import find_series
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.imaging.series_reader import read_series
from pipeline.pacs.deidentify import strip
from pipeline.site.folder import Site, init_site, site_settings
from tests.helpers.dicom_files import PATIENT_ID, body, ct_slice, save

Element = tuple[int, str, object]  # tag, VR, and the value: bytes, or for a sequence a list of lists of elements

KNOWN = sorted(DicomDictionary)
OURS = [
    element.tag for element in ct_slice(body()[0], position_mm=(0, 0, 0), PixelPaddingValue=-2000, NumberOfFrames=1)
]
SHORT = [
    "AE",
    "AS",
    "CS",
    "DA",
    "DS",
    "DT",
    "FD",
    "FL",
    "IS",
    "LO",
    "LT",
    "PN",
    "SH",
    "SL",
    "SS",
    "ST",
    "TM",
    "UI",
    "UL",
]
SHORT += ["US", "ZZ", "\0\0"]
LONG = ["OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"]  # PS3.5, 7.1.2
TRICKY = [
    "",
    " ",
    "\\",
    "\\\\",
    "NaN",
    "inf",
    "-0",
    "1e999",
    "9" * 400,
    "1\\x\\3",
    "\0",
    "^=^=",
    "YES",
    "ISO 2022 IR 87",
]

places = st.integers(0, len(KNOWN) - 1)
tags = st.one_of(st.sampled_from(OURS), places.map(lambda place: KNOWN[place]), st.integers(2**19, 2**32 - 1))
texts = st.one_of(st.sampled_from(TRICKY), st.text(max_size=40), st.floats().map(str), st.integers().map(str))
values = st.one_of(
    st.lists(texts, min_size=1, max_size=4).map(lambda parts: "\\".join(parts).encode(errors="replace")),
    st.binary(max_size=40),
    st.floats().map(lambda number: struct.pack("<d", number)),
    st.integers(0, 2**16 - 1).map(lambda number: struct.pack("<H", number)),
)


def elements(depth: int = 2) -> st.SearchStrategy[list[Element]]:
    """Elements of any kind, including nested sequences."""
    kinds = [st.tuples(tags, st.sampled_from(SHORT + LONG), values)]
    if depth:
        kinds.append(st.tuples(tags, st.just("SQ"), st.lists(st.deferred(lambda: elements(depth - 1)), max_size=2)))
    return st.lists(st.one_of(kinds), max_size=4)


def encoded(tag: int, vr: str, value: object, *, implicit: bool, length: int | None = None) -> bytes:
    """One element as encoded in a file; `length` may be false."""
    if isinstance(value, list):
        items = [b"".join(encoded(*each, implicit=implicit) for each in item) for item in value]
        value = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
    assert isinstance(value, bytes)
    length = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return head + struct.pack("<I", length) + value
    if vr in LONG:
        return head + vr.encode() + struct.pack("<HI", 0, length) + value
    return head + vr.encode() + struct.pack("<H", length % 2**16) + value


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return init_site(tmp_path_factory.mktemp("site"), site_settings(None, name="north"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A valid slice in explicit little endian."""
    path = tmp_path_factory.mktemp("whole") / "1.dcm"
    save(ct_slice(body()[0], position_mm=(0, 0, 0)), path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def good(whole: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Element]:
    """The elements of the valid slice by tag."""
    path = tmp_path_factory.mktemp("good") / "1.dcm"
    path.write_bytes(whole)
    raw = [dcmread(path).get_item(tag) for tag in dcmread(path).keys()]  # noqa: SIM118
    return {int(each.tag): (int(each.tag), each.VR, each.value) for each in raw}


def survives(action: Callable[[], object]) -> object:
    """The result of the action. A Refusal is a valid result; any other exception fails the test."""
    try:
        return action()
    except Refusal as refusal:
        assert refusal.code.startswith("E_")
        assert refusal.remedy
        assert PATIENT_ID not in str(refusal)
        return None


@quiet_pydicom()
def look_at(path: Path, site: Site) -> bool:
    """Run all processing of one file from an untrusted source; return whether its pixels were read."""
    series, findings = find_series(path)
    assert all(finding.reason.refuses for finding in findings)
    for each in series:
        survives(lambda each=each: read_series(each))
    survives(lambda: strip(path.read_bytes(), site))
    header = survives(lambda: inspect_slice(path))
    pixels = header and survives(lambda: decode_slice(header))
    assert pixels is None or np.isfinite(pixels).all()
    return pixels is not None


@pytest.mark.slow
@settings(max_examples=500, deadline=5000, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    changes=elements(),
    syntax=st.sampled_from(
        [uids.ExplicitVRLittleEndian, uids.ImplicitVRLittleEndian, uids.DeflatedExplicitVRLittleEndian]
    ),
)
def test_any_value_of_any_element_is_handled(
    good: dict[int, Element], site: Site, tmp_path: Path, changes: list[Element], syntax: uids.UID
) -> None:
    changed = good | {element[0]: element for element in changes}
    content = b"".join(encoded(*changed[tag], implicit=syntax.is_implicit_VR) for tag in sorted(changed))
    if syntax.is_deflated:
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        content = packer.compress(content) + packer.flush()
    meta = encoded(0x00020010, "UI", syntax.encode() + b"\0" * (len(syntax) % 2), implicit=False)
    meta = encoded(0x00020000, "UL", struct.pack("<I", len(meta)), implicit=False) + meta
    (tmp_path / "1.dcm").write_bytes(bytes(128) + b"DICM" + meta + content)
    is_read = look_at(tmp_path / "1.dcm", site)
    assert is_read or changes, "the unmodified slice must be read"


@pytest.mark.slow
@settings(max_examples=500, deadline=5000, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    place=st.floats(0, 1),
    tag=tags,
    vr=st.sampled_from(SHORT + LONG),
    length=st.one_of(st.just(0xFFFFFFFF), st.integers(0, 64), st.integers(0, 2**32 - 1)),
    value=values,
)
def test_any_inserted_element_bytes_are_handled(
    whole: bytes, site: Site, tmp_path: Path, place: float, tag: int, vr: str, length: int, value: bytes
) -> None:
    at = 132 + int(place * (len(whole) - 132))
    extra = encoded(tag, vr, value, implicit=False, length=length)
    (tmp_path / "1.dcm").write_bytes(whole[:at] + extra + whole[at:])
    look_at(tmp_path / "1.dcm", site)
