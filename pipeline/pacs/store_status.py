"""What a PACS means by its status for a file that it was asked to store, by C-STORE or STOW-RS alike.

Statuses: DICOM PS3.4, table B.2-1; PS3.7, annex C; PS3.18, table I.2-2.
"""

from models.refusal import Refusal
from pipeline.pacs import reasons

PROCESSING_FAILURE = 0x0110
_STORED = {0x0000, 0x0111, 0xB000, 0xB006, 0xB007}  # success; it has the file already; stored, with a remark
_NOT_AUTHORISED = 0x0124
_OUT_OF_RESOURCES = 0xA7  # and any low byte
_CLASSES_FOR_GOOD = {0xA9, *range(0xC0, 0xD0)}  # does not match its class, cannot be understood
_FOR_GOOD = {0x0106, 0x0117, 0x0119, 0x0122}  # invalid, or of a class that the PACS does not keep


def not_stored(status: int) -> Refusal | None:
    """Why a file is not stored; None if it is.

    E_PACS_STORE: sending the same file again is of no use. E_PACS_SILENT, E_PACS_AUTH, E_PACS_ANSWER: it may be.
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
