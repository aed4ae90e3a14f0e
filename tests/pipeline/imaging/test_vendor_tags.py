"""Tests of manufacturer and kernel: only known names are accepted, because a header can contain anything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.imaging.vendor_tags import known_kernel, known_manufacturer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SIEMENS", "SIEMENS"),
        ("Siemens Healthineers", "SIEMENS"),
        ("GE MEDICAL SYSTEMS", "GE"),
        ("Gerda Example", "OTHER"),
        ("Philips Medical Systems", "PHILIPS"),
        ("TOSHIBA", "CANON"),
        ("CANARY^JANE", "OTHER"),
        ("", ""),
        ("  ", ""),
    ],
)
def test_manufacturer_is_normalised(text: str, expected: str) -> None:
    assert known_manufacturer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B30f", ("B30F", "soft")),
        ("B70s", ("B70S", "sharp")),
        ("Br40d\\3", ("BR40D", "soft")),
        ("Bl57d", ("BL57D", "sharp")),
        ("STANDARD", ("STANDARD", "soft")),
        ("Lung", ("LUNG", "sharp")),
        ("BONEPLUS", ("BONEPLUS", "sharp")),
        ("FC08", ("FC08", "soft")),
        ("FC52", ("FC52", "sharp")),
        ("YC", ("YC", "sharp")),
        ("L", ("L", "sharp")),
        ("", ("", "")),
        ("CANARY^JANE", ("", "")),
        ("B30fJane", ("", "")),
        ("Jane30", ("", "")),
    ],
)
def test_kernel_is_normalised(text: str, expected: tuple[str, str]) -> None:
    assert known_kernel(text) == expected


@given(st.text())
def test_unknown_text_is_never_returned(text: str) -> None:
    name, sharpness = known_kernel(text)
    assert len(name) <= 8
    assert bool(name) == bool(sharpness)
    assert name.isascii()
    assert known_manufacturer(text).isascii()
