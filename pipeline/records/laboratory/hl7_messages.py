"""Reads HL7 v2 messages from files, and the texts in their fields.

The library `hl7` splits messages at their separators. Its decoding of escape sequences is not used: it logs fields that
it cannot read, and repeats a character as often as the field says.
"""

import codecs
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from models.refusal import Refusal
from pipeline.records import reasons
from pipeline.records.laboratory.hl7_envelope import FRAMING, SEGMENT_NAME, WholeFile, is_envelope

if TYPE_CHECKING:
    from hl7 import Message, Segment

NEEDED = {"MSH", "PID", "OBR", "OBX", "SPM"}
DOCUMENT = {"ED", "RP"}
MAX_LINE_CHARACTERS = 16_000_000  # a line may contain a document
MAX_HEADER_BYTES = 16_384
MAX_MESSAGE_CHARACTERS = 300_000  # without documents; each separator becomes an object
OVERSIZED = "oversized"  # instead of the segments of a longer message; not a segment, so `parse` refuses the message
MAX_PATIENTS, MAX_PATIENT_CHARACTERS = 1_000, 16_384  # that are kept of an oversized message
STANDARD_HEADER = r"MSH|^~\&"
# Python names of the encodings in HL7 table 0211.
CHARSETS = {"ASCII": "ascii", "UNICODE UTF-8": "utf-8", "UTF-8": "utf-8", "UTF8": "utf-8"} | {
    f"8859/{part}": f"iso8859-{part}"
    for part in range(1, 16)
    if part != 12  # ISO never published part 12
}


class BrokenError(Exception):
    """The message is not well-formed; the text says where, without quoting the content."""


def messages(path: Path, encoding: str, *, is_received: bool = False) -> Iterator[list[str]]:
    """Yield the lines of each message; lines before the first MSH form a message of their own.

    `is_received`: the file is one message from the network, which was whole: no file that could have been cut.

    Raises Refusal: E_TABLE_FILE, E_ENCODING, E_FILE_CUT.
    """
    whole = WholeFile(path.name)
    try:
        with path.open(encoding=encoding) as stream:  # \r, \n and \r\n all end a line
            if is_received:
                yield from messages_in(stream)
            else:
                yield from messages_in(stream, whole.see)
                whole.finish()
    except OSError as error:
        raise Refusal(reasons.TABLE_FILE, private=str(error), table="laboratory") from error
    except UnicodeError as error:
        raise Refusal(reasons.ENCODING, private=f"{path}: {error}", table="laboratory") from error


def messages_in(stream: TextIO, see: Callable[[str], None] = lambda raw: None) -> Iterator[list[str]]:
    """Yield the lines of each message in an open file, after `see` has had each. Raises UnicodeError."""
    lines: list[str] = []
    size = 0
    while raw := stream.readline(MAX_LINE_CHARACTERS):
        see(raw)
        line = raw.strip(FRAMING)
        if line.startswith("MSH") and lines:
            yield lines
            lines, size = [], 0
        if line and not is_envelope(line) and not _is_document(line):
            size += len(line)
            if size <= MAX_MESSAGE_CHARACTERS:
                lines.append(line)
            else:
                _keep_patients(lines, line)
    if lines:
        yield lines


def _keep_patients(lines: list[str], line: str) -> None:
    """Add a line to an oversized message, of which only the header and the patients are kept."""
    if not lines:
        lines += [line, OVERSIZED]
    elif lines[1:2] != [OVERSIZED]:
        patients = [each for each in (*lines[1:], line) if _is_patient(each)]
        lines[1:] = [OVERSIZED, *patients[:MAX_PATIENTS]]
    elif len(lines) < MAX_PATIENTS and _is_patient(line):
        lines.append(line)


def _is_patient(line: str) -> bool:
    return line[:3].upper() == "PID" and len(line) <= MAX_PATIENT_CHARACTERS


@dataclass(frozen=True)
class Header:
    """The MSH segment of a message in bytes. Its fields are kept as they are, one character for each byte.

    In all supported character sets, a byte below 128 stands for the same ASCII character.
    """

    separators: str  # MSH-1 and MSH-2
    fields: tuple[str, ...]

    @classmethod
    def of(cls, content: bytes) -> "Header":
        """Read the header. Raises BrokenError if the content does not begin with a valid MSH segment."""
        line = content[:MAX_HEADER_BYTES].replace(b"\n", b"\r").partition(b"\r")[0].decode("latin-1")
        _check_separators(line)
        if any(each < " " and each != "\t" for each in line):
            raise BrokenError("a control character in MSH")
        return cls(line[3:4] + line[4:].partition(line[3])[0], tuple(line.split(line[3])))

    def field(self, number: int) -> str:
        """Return the text of MSH-`number`, "" if absent. MSH-1 is the separator itself, so MSH-2 is the lowest."""
        return self.fields[number - 1] if number <= len(self.fields) else ""

    def component(self, number: int, component: int = 1) -> str:
        """Return a component of the first repetition of a field, stripped; "" if it is absent or HL7's null."""
        first = self.field(number).split(self.separators[2])[0].split(self.separators[1])
        text = first[component - 1].strip() if component <= len(first) else ""
        return "" if text == '""' else text

    def encoding(self, default: str) -> str:
        """Return the encoding that MSH-18 names, `default` if it is empty. Raises BrokenError if it is not known."""
        named = self.component(18)
        if not named:
            return default
        if named.upper() not in CHARSETS:
            raise BrokenError("MSH-18")
        return CHARSETS[named.upper()]


def _check_separators(line: str) -> None:
    """Raises BrokenError unless the line begins with MSH and five different separators."""
    separators = line[3:8]
    if not line.startswith("MSH"):
        raise BrokenError("text before MSH")
    if len(set(separators)) < 5 or any(each.isalnum() or each.isspace() for each in separators):
        raise BrokenError("MSH-1 or MSH-2")


def _is_document(line: str) -> bool:
    """Whether a line is an OBX with a document, for example a report in PDF."""
    fields = line.split(line[3:4] or "|", 3)
    return fields[0] == "OBX" and len(fields) > 2 and fields[2] in DOCUMENT


def parse(lines: Sequence[str]) -> "Message":
    """Parse the needed segments of a message. Raises BrokenError."""
    import hl7

    _check_separators(lines[0])
    separators = lines[0][3:8]
    for number, line in enumerate(lines, start=1):
        if not SEGMENT_NAME.fullmatch(line[:3]) or line[3:4] not in ("", separators[0]):
            raise BrokenError(f"line {number} is not a segment")
    try:
        message = hl7.parse("\r".join(line for line in lines if line[:3] in NEEDED))
    except Exception as error:  # for most faults the library has no exception of its own
        raise BrokenError("cannot be split into segments and fields") from error
    return message


def patient_segments(lines: Sequence[str]) -> Iterator["Segment"]:
    """Yield the PID segments of a message that cannot be read as a whole. Without a valid header, HL7's usual one."""
    try:
        _check_separators(lines[0])
        header = lines[0][: len(STANDARD_HEADER)]
    except BrokenError:
        header = STANDARD_HEADER
    for line in filter(_is_patient, lines):
        try:
            yield parse([header, f"PID{line[3:]}"])[1]
        except BrokenError:
            continue


def other_kind(message: "Message") -> str:
    """Return the kind of a message if it is not a patient's result (another type, or for training or debugging)."""
    msh = message[0]
    kind, event, processing = part(msh, 9), part(msh, 9, 2), part(msh, 11)
    if kind == "ORU" and event in ("R01", "") and processing in ("P", ""):
        return ""
    return f"{kind}^{event} ({processing})"


def other_charset(message: "Message", lines: Iterable[str], encoding: str) -> str:
    """Return MSH-18 if it names another encoding and the message contains characters outside ASCII, else ''."""
    declared = codecs.lookup(encoding).name.replace("utf-8-sig", "utf-8")
    named = part(message[0], 18)
    known = CHARSETS.get(named.upper())
    differs = known is not None and codecs.lookup(known).name != declared
    return named if differs and not all(line.isascii() for line in lines) else ""


# --- texts of fields --------------------------------------------------------------------------------------


def repetitions(segment: "Segment", number: int) -> int:
    return len(segment[number]) if number < len(segment) else 0


def part(segment: "Segment", number: int, component: int = 1, repetition: int = 1, sub: int | None = None) -> str:
    """Return a component or subcomponent of a field, unescaped and stripped; "" if it is absent or HL7's null.

    If a field has fewer levels than requested, its text is the first part of every lower level.
    """
    at = segment[number] if number < len(segment) else ""
    for index in (repetition, component, sub):
        if index is not None:
            pieces = [at] if isinstance(at, str) else at
            at = pieces[index - 1] if index <= len(pieces) else ""
    text = unescaped(str(at), segment).strip()
    return "" if text == '""' else text


def moment(segment: "Segment", number: int) -> str:
    """Return a time field: the start of a range, without the obsolete degree of precision."""
    return part(segment, number, sub=1)


def unescaped(text: str, segment: "Segment") -> str:
    r"""Decode escape sequences (HL7 v2.5.1, 2.7): separators, line breaks, hexadecimal ASCII.

    Other sequences are kept unchanged, so that the text does not match any word list.
    """
    escape, (_, fields, repetition, component, sub) = segment.esc, segment.separators
    plain = {"F": fields, "R": repetition, "S": component, "T": sub, "E": escape, ".br": " ", ".sp": " "}
    plain |= {"H": "", "N": ""}

    def stands_for(match: re.Match[str]) -> str:
        code = match[1]
        if code in plain:
            return plain[code]
        try:
            letters = bytes.fromhex(code[1:]).decode("ascii") if code.startswith("X") else ""
        except ValueError:
            return match[0]
        return " ".join(letters.split()) or " " if letters else match[0]

    mark = re.escape(escape)
    return re.sub(f"{mark}([^{mark}]*){mark}", stands_for, text)
