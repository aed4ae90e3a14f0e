"""Judges a received HL7 v2 message, and makes the acknowledgement (HL7 v2.5.1, chapter 2.9 and 2.14).

Original mode: AA, AE or AR. Enhanced mode, if MSH-15 or MSH-16 is valued: only the accept acknowledgement (CA, CE, CR)
that MSH-15 asks for. With MSH-15 = NE, MSH-16 decides about AA, AE or AR at once. The deferred application
acknowledgement, which would be a message of its own, is not sent.
"""

import io
import re
from dataclasses import dataclass
from datetime import datetime

from models.refusal import Reason
from pipeline.feeds import reasons
from pipeline.records.laboratory.hl7 import check_structure
from pipeline.records.laboratory.hl7_messages import BrokenError, Header, messages_in, other_kind, parse

DEFAULT_SEPARATORS = "|^~\\&"
MAX_CONTROL_ID = 199  # characters; the limit of HL7 v2.7, the highest of all versions
_VERSION = re.compile(r"2(\.\d{1,2}){0,2}", re.ASCII)
# HL7 table 0357.
SEQUENCE, REQUIRED_MISSING = (100, "Segment sequence error"), (101, "Required field missing")
DATA_TYPE, NOT_IN_TABLE = (102, "Data type error"), (103, "Table value not found")
UNSUPPORTED_TYPE, UNSUPPORTED_EVENT = (200, "Unsupported message type"), (201, "Unsupported event code")
UNSUPPORTED_PROCESSING, UNSUPPORTED_VERSION = (202, "Unsupported processing id"), (203, "Unsupported version id")
INTERNAL = (207, "Application internal error")


@dataclass(frozen=True)
class Fault:
    """Why a message is not accepted. `error`: code and text of HL7 table 0357."""

    reason: Reason
    error: tuple[int, str]
    code: str = "AE"


def read_header(content: bytes) -> Header | Fault:
    """Return the header of a message that can be acknowledged by its control id."""
    try:
        header = Header.of(content)
    except BrokenError:
        return Fault(reasons.MESSAGE_HEADER, SEQUENCE, "AR")
    if not 0 < len(header.component(10)) <= MAX_CONTROL_ID:
        return Fault(reasons.MESSAGE_HEADER, REQUIRED_MISSING, "AR")
    return header


def find_fault(header: Header, content: bytes, default_encoding: str) -> Fault | None:
    """Return why a message is not accepted; None if the reader of the laboratory's messages can read it."""
    return _header_fault(header) or _content_fault(header, content, default_encoding)


def _header_fault(header: Header) -> Fault | None:
    if header.component(9) != "ORU":
        return Fault(reasons.MESSAGE_KIND, UNSUPPORTED_TYPE, "AR")
    if header.component(9, 2) not in ("R01", ""):
        return Fault(reasons.MESSAGE_KIND, UNSUPPORTED_EVENT, "AR")
    if header.component(11) not in ("P", ""):
        return Fault(reasons.MESSAGE_KIND, UNSUPPORTED_PROCESSING, "AR")
    if not _VERSION.fullmatch(header.component(12)):
        return Fault(reasons.MESSAGE_VERSION, UNSUPPORTED_VERSION, "AR")
    return None


def _content_fault(header: Header, content: bytes, default_encoding: str) -> Fault | None:
    try:
        encoding = header.encoding(default_encoding)
    except BrokenError:
        return Fault(reasons.MESSAGE_CHARSET, NOT_IN_TABLE)
    try:
        found = list(messages_in(io.TextIOWrapper(io.BytesIO(content), encoding)))
    except UnicodeError:
        return Fault(reasons.MESSAGE_CHARSET, DATA_TYPE)
    try:
        message = parse(found[0])
        if len(found) > 1 or other_kind(message):
            raise BrokenError("more than one message")
        check_structure(message)
    except BrokenError:
        return Fault(reasons.MESSAGE_BROKEN, SEQUENCE)
    return None


def acknowledge(header: Header | None, fault: Fault | None, *, control_id: str, now: datetime) -> bytes | None:
    """Make the acknowledgement; None if the sender asked for none. `control_id`: that of the acknowledgement.

    `header`: None if the message has none that can be read. `now` has a time zone.
    """
    code = _code(header, fault.code if fault else "AA")
    if not code:
        return None
    separators = header.separators if header else DEFAULT_SEPARATORS
    field, component = separators[0], separators[1]
    version = header.component(12) if header and _VERSION.fullmatch(header.component(12)) else "2.5.1"
    level = tuple(map(int, version.split(".")))
    event = (header.component(9, 2) if header else "") or "R01"
    theirs = [header.field(number) if header else "" for number in (5, 6, 3, 4)]
    msh = [
        f"MSH{separators}",
        *(theirs[:1] if theirs[0] else ["FEDTHORAX"]),
        *theirs[1:],
        now.strftime("%Y%m%d%H%M%S%z"),
        "",
        component.join(["ACK", event, "ACK"] if level >= (2, 3, 1) else ["ACK", event] if level >= (2, 3) else ["ACK"]),
        control_id,
        (header.field(11) if header else "") or "P",
        header.field(12) if header and version == header.component(12) else version,
        *(["", "", "", "", "", header.field(18)] if header and header.component(18) else []),
    ]
    own_text = _plain(f"{fault.reason.code}: {fault.reason.says}", separators) if fault else ""
    msa = ["MSA", code, header.field(10) if header else "", *([own_text] if fault else [])]
    segments = [field.join(msh), field.join(msa)]
    if fault and level >= (2, 5):
        number, text = fault.error
        error = component.join([str(number), _plain(text, separators), "HL70357"])
        segments.append(field.join(["ERR", "", "", error, "E", "", "", "", own_text]))
    return "".join(f"{segment}\r" for segment in segments).encode("latin-1")


def _code(header: Header | None, code: str) -> str:
    """Return the code to send in the sender's mode, "" if it wants no acknowledgement."""
    accept, application = (header.component(15), header.component(16)) if header else ("", "")
    if not accept and not application:
        return code
    by_condition = {"AL": True, "SU": code == "AA", "ER": code != "AA"}
    if accept and accept != "NE":
        return f"C{code[1]}" if by_condition.get(accept, True) else ""
    return code if by_condition.get(application, False) else ""


def _plain(text: str, separators: str) -> str:
    """Return our own text without characters that have a meaning in the message."""
    return text.translate({ord(each): " " for each in separators})
