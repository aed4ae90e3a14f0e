"""Interpretation of the status that a PACS returns for a stored file, by C-STORE or STOW-RS.

Statuses: DICOM PS3.4, table B.2-1; PS3.7, annex C; PS3.18, table I.2-2.
"""

from models.refusal import Refusal
from pipeline.pacs import reasons

PROCESSING_FAILURE = 0x0110
_STORED = {0x0000, 0x0111, 0xB000, 0xB006, 0xB007}  # success; already stored; stored with a warning
_NOT_AUTHORISED = 0x0124
_OUT_OF_RESOURCES = 0xA7  # and any low byte
_CLASSES_FOR_GOOD = {0xA9, *range(0xC0, 0xD0)}  # data set does not match SOP class; cannot understand
_FOR_GOOD = {0x0106, 0x0117, 0x0119, 0x0122}  # invalid, or SOP class not supported


def not_stored(status: int) -> Refusal | None:
    """Return why a file was not stored; None if it was stored.

    E_PACS_STORE: sending the same file again is useless. E_PACS_SILENT, E_PACS_AUTH, E_PACS_ANSWER: it may help.
    """
    if status in _STORED:
        return None
    shown = f"{status:04X}H"
    if status in _FOR_GOOD or status >> 8 in _CLASSES_FOR_GOOD:
        return Refusal(reasons.PACS_STORE, status=shown)
    if status == _NOT_AUTHORISED:
        return Refusal(reasons.PACS_AUTH, private=f"status {shown}")
    reason = reasons.PACS_SILENT if status >> 8 == _OUT_OF_RESOURCES else reasons.PACS_ANSWER
    return Refusal(reason, private=f"status {shown}")
