"""Maps the scanner and kernel of a header to words of closed lists, because headers can contain names of patients."""

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
# The number increases with the sharpness. Siemens: B30f, Br40d, I50f, Bl57; Canon: FC08 for the body, FC30 for bone,
# FC52 for lung.
_NUMBERED = (
    (re.compile(r"(?:B|BF|BL|BR|BV|I|Q|QR|HR|U|UB|UR)(\d\d)[DFHS]?"), 50),
    (re.compile(r"FC(\d\d)"), 30),
)


def known_manufacturer(text: str) -> str:
    """Return the name of the manufacturer, OTHER if it is not on the list, '' if there is none."""
    name = f"{text.strip().upper()} "
    found = (known for known, starts in _MANUFACTURERS.items() if name.startswith(starts))
    return next(found, "OTHER" if name.strip() else "")


def known_kernel(text: str) -> tuple[str, Sharpness]:
    """Return the name of the kernel and whether it is soft or sharp; ('', '') if it is unknown."""
    name = text.partition("\\")[0].strip().upper().replace(" ", "")
    if name in _NAMED:
        return name, _NAMED[name]
    for pattern, sharp_from in _NUMBERED:
        if found := pattern.fullmatch(name):
            return name, "sharp" if int(found[1]) >= sharp_from else "soft"
    return "", ""
