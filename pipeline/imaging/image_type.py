"""Judges ImageType (DICOM PS3.3, C.7.6.1.1.2 and C.8.16.1): whether an image is an axial slice as a scanner makes it.

Vendors write words of their own, and exports remove the attribute or change it. So only words that name another kind of
image are refused. What is accepted without the usual three words is flagged, and its geometry must be axial.
"""

import re

from models.refusal import Reason
from pipeline.imaging import reasons

_LOCALIZERS = {"LOCALIZER", "SCOUT", "SURVIEW", "TOPOGRAM"}
# Words of images that are not slices with HU of one scan, although they may follow ORIGINAL\PRIMARY\AXIAL.
REFORMATTED = {
    *("AVERAGE", "CAPTURE", "CORONAL", "CPR", "CURVED", "CURVED_MPR", "DOSE", "DOSE_INFO", "MAX_IP", "MAXIP", "MIN_IP"),
    *("MINIP", "MIP", "MPR", "OBLIQUE", "PERFUSION", "PROJECTION", "REFORMATTED", "REPORT", "SAGITTAL", "SAVE"),
    *("SCREEN", "SSD", "SURFACE_RENDER", "VOLUME_RENDER", "VR", "VRT"),
    # Enhanced CT, derived pixel contrast (PS3.3, C.8.16.1.4)
    *("ADDITION", "DIVISION", "MASKED", "MAXIMUM", "MEAN", "MINIMUM", "MULTIPLICATION", "SUBTRACTION"),
}
KNOWN = {
    *("ORIGINAL", "DERIVED", "MIXED", "PRIMARY", "SECONDARY", "AXIAL", "VOLUME", "NONE"),
    *_LOCALIZERS,
    *REFORMATTED,
}
_AXIAL = {"AXIAL", "VOLUME"}  # the second one only in Enhanced CT: a set of axial frames that are evenly spaced
# SECONDARY says only that an image was made after the examination (C.7.6.1.1.2). Public chest CTs have it: LIDC-IDRI
# 0002 from a scanner, and NSCLC-Radiomics LUNG1-002 from a planning system.
_MADE_LATER = ["ORIGINAL", "SECONDARY", "AXIAL"]


def judge(image_type: str, *, is_lossy: bool) -> Reason | None:
    """Return why the images are refused (E_LOCALIZER, E_NOT_AXIAL) or flagged (W_DERIVED, W_IMAGE_TYPE), or None.

    `image_type`: the values, joined by backslashes; '' if absent. `is_lossy`: whether the pixels were compressed with
    loss, which turns ORIGINAL into DERIVED (PS3.3, C.7.6.1.1.5.1).
    """
    values = [value.strip().upper() for value in image_type.split("\\")]
    words = {word for value in values for word in re.split(r"[ /]", value)}
    if words & _LOCALIZERS:
        return reasons.LOCALIZER
    if words & REFORMATTED:
        return reasons.NOT_AXIAL
    if "SECONDARY" in values:
        return reasons.IMAGE_TYPE if values[:3] == _MADE_LATER else reasons.NOT_AXIAL
    is_axial = values[1:2] == ["PRIMARY"] and len(values) > 2 and values[2] in _AXIAL
    if "DERIVED" in values:
        return None if is_axial and is_lossy else reasons.DERIVED if is_axial else reasons.NOT_AXIAL
    return None if is_axial and values[0] == "ORIGINAL" else reasons.IMAGE_TYPE
