"""Tests of judging ImageType: which words make an image another kind than an axial slice."""

import pytest

from pipeline.imaging.image_type import judge


@pytest.mark.parametrize(
    ("image_type", "code"),
    [
        (r"ORIGINAL\PRIMARY\AXIAL", None),
        (r"original\primary\axial ", None),
        (r"ORIGINAL\PRIMARY\AXIAL\CT_SOM5 SPI", None),
        (r"ORIGINAL\PRIMARY\AXIAL\HELIX", None),
        (r"ORIGINAL\PRIMARY\VOLUME\NONE", None),
        (r"DERIVED\PRIMARY\AXIAL", "W_DERIVED"),
        (r"DERIVED\PRIMARY\AXIAL\CT_SOM7 SPI DUAL", "W_DERIVED"),
        (r"DERIVED\PRIMARY\AXIAL\RESAMPLED", "W_DERIVED"),
        ("", "W_IMAGE_TYPE"),
        (r"ORIGINAL\PRIMARY", "W_IMAGE_TYPE"),
        (r"ORIGINAL\PRIMARY\OTHER", "W_IMAGE_TYPE"),
        (r"ORIGINAL\PRIMARY\\", "W_IMAGE_TYPE"),
        ("AXIAL", "W_IMAGE_TYPE"),
        (r"OTHER\OTHER\AXIAL", "W_IMAGE_TYPE"),
        (r"ORIGINAL\PRIMARY\LOCALIZER", "E_LOCALIZER"),
        (r"ORIGINAL\PRIMARY\OTHER\SCOUT", "E_LOCALIZER"),
        (r"ORIGINAL\SECONDARY\AXIAL", "W_IMAGE_TYPE"),
        (r"ORIGINAL\SECONDARY\AXIAL\HELIX", "W_IMAGE_TYPE"),
        (r"ORIGINAL\SECONDARY\AXIAL\MIP", "E_NOT_AXIAL"),
        (r"ORIGINAL\SECONDARY\OTHER", "E_NOT_AXIAL"),
        (r"ORIGINAL\SECONDARY", "E_NOT_AXIAL"),
        (r"SECONDARY\ORIGINAL\AXIAL", "E_NOT_AXIAL"),
        (r"DERIVED\PRIMARY\OTHER", "E_NOT_AXIAL"),
        (r"DERIVED\SECONDARY\AXIAL", "E_NOT_AXIAL"),
        (r"DERIVED\SECONDARY\SCREEN SAVE", "E_NOT_AXIAL"),
        (r"DERIVED\SECONDARY\REFORMATTED\AVERAGE", "E_NOT_AXIAL"),
        (r"DERIVED\PRIMARY\AXIAL\MIN_IP", "E_NOT_AXIAL"),
        (r"ORIGINAL\PRIMARY\AXIAL\CT_SOM5 MPR", "E_NOT_AXIAL"),
        (r"DERIVED\PRIMARY\VOLUME\SUBTRACTION", "E_NOT_AXIAL"),
        (r"ORIGINAL\PRIMARY\OTHER\DOSE REPORT", "E_NOT_AXIAL"),
    ],
)
def test_words_of_other_kinds_are_refused_and_unusual_ones_flagged(image_type, code):
    reason = judge(image_type, is_lossy=False)
    assert (reason and reason.code) == code


def test_compression_with_loss_does_not_make_a_slice_a_derived_one():
    assert judge(r"DERIVED\PRIMARY\AXIAL", is_lossy=True) is None
