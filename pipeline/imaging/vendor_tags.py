"""What a header says of scanner and kernel, in words of closed lists: a header can hold anything, a name included."""

import re
from typing import Literal

Sharpness = Literal["soft", "sharp", ""]

_MANUFACTURERS = {
    "SIEMENS": ("SIEMENS",),
    "GE": ("GE ", "GE MEDICAL", "GENERAL ELECTRIC"),
    "PHILIPS": ("PHILIPS", "MARCONI", "PICKER"),
    "CANON": ("CANON", "TOSHIBA"),
    "HITACHI": ("HITACHI",),
    "UNITED IMAGING": ("UIH", "UNITED IMAGING"),
    "NEUSOFT": ("NEUSOFT", "NMS"),
    "SYNTHETIC": ("SYNTHETIC",),
}
_NAMED: dict[str, Sharpness] = {
    **dict.fromkeys(("STANDARD", "SOFT", "CHEST", "DETAIL"), "soft"),  # GE
    **dict.fromkeys(("LUNG", "BONE", "BONEPLUS", "EDGE", "ULTRA"), "sharp"),
    **dict.fromkeys(("A", "B", "C", "UA", "UB", "UC", "YA", "YB"), "soft"),  # Philips
    **dict.fromkeys(("D", "E", "L", "YC", "YD", "YE"), "sharp"),
}
# The number grows with the sharpness. Siemens: B30f, Br40d, I50f, Bl57; Canon: FC08 for the body, FC30 for bone, FC52
# for lung.
_NUMBERED = (
    (re.compile(r"(?:B|BF|BL|BR|BV|I|Q|QR|HR|U|UB|UR)(\d\d)[DFHS]?"), 50),
    (re.compile(r"FC(\d\d)"), 30),
)


def known_manufacturer(text: str) -> str:
    """The manufacturer's name, OTHER for one that is not on the list, '' for none."""
    name = f"{text.strip().upper()} "
    found = (known for known, starts in _MANUFACTURERS.items() if name.startswith(starts))
    return next(found, "OTHER" if name.strip() else "")


def known_kernel(text: str) -> tuple[str, Sharpness]:
    """The kernel's name and whether it is soft or sharp; ('', '') for one that is not known."""
    name = text.partition("\\")[0].strip().upper().replace(" ", "")
    if name in _NAMED:
        return name, _NAMED[name]
    for pattern, sharp_from in _NUMBERED:
        if found := pattern.fullmatch(name):
            return name, "sharp" if int(found[1]) >= sharp_from else "soft"
    return "", ""
