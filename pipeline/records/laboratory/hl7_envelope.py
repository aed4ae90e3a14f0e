"""Checks that a file of HL7 v2 messages is whole: by the envelope of its batches, and by its last segment.

A file is [FHS] { [BHS] messages [BTS] } [FTS] (HL7 v2.5.1, 2.10.3). Header and trailer are optional in the standard,
but a sender that writes a header writes the trailer too: if it is missing, the transfer ended early.
"""

import re

from models.refusal import Refusal
from pipeline.records import reasons

TRAILERS = {"FHS": "FTS", "BHS": "BTS"}  # by their headers
ENVELOPE = {*TRAILERS, *TRAILERS.values()}  # only the messages inside are results
SEGMENT_NAME = re.compile(r"[A-Z][A-Z0-9]{2}")
START, END = "\x0b", "\x1c"  # of a block in MLLP
FRAMING = f" \t\n{START}{END}\ufeff"  # around a segment
# The last field that the standard requires of a segment, from HL7 v2.3 on.
LAST_REQUIRED = {"MSH": 12, "PID": 3, "OBR": 4, "OBX": 11, "SPM": 4}
_COUNT = re.compile(r"\d{1,9}", re.ASCII)


def is_envelope(line: str) -> bool:
    """Whether a line is a header or trailer of a file or batch, and not a text that begins with the same letters."""
    return line[:3] in ENVELOPE and not line[3:4].isalnum() and not line[3:4].isspace()


class WholeFile:
    """Looks at all lines of a file, and refuses one that was cut. `name`: of the file, shown only at the site."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._open: list[str] = []  # headers whose trailers are still to come
        self._messages = 0  # of the batch
        self._batches = 0  # of the file
        self._separator = ""  # of the last message's fields
        self._last, self._is_ended = "", True  # the last line, and whether it has a line end
        self._is_framed, self._in_block = False, False  # whether there are MLLP blocks, and one without its end

    def see(self, raw: str) -> None:
        """Look at the next line, or at the next part of a very long one. Raises Refusal E_FILE_CUT."""
        is_start, self._is_ended = self._is_ended, raw.endswith(("\n", END))
        if START in raw or END in raw:
            self._is_framed |= END in raw
            self._in_block = raw.rfind(START) > raw.rfind(END)
        line = self._last = raw.strip(FRAMING) if is_start else ""
        if line.startswith("MSH"):
            self._messages += 1
            self._separator = line[3:4] or self._separator
        elif not is_envelope(line):
            return
        elif line[:3] in TRAILERS:
            self._begin(line[:3])
        else:
            self._end(line)

    def finish(self) -> None:
        """Look at the end of the file. Raises Refusal E_FILE_CUT."""
        if self._open:
            self._missing(self._open[-1])
        if self._is_framed and self._in_block:
            self._refuse("its last MLLP block has no end")
        if not self._is_ended and self._separator and _is_cut(self._last, self._separator):
            self._refuse("its last segment has no end")

    def _begin(self, header: str) -> None:
        if header in self._open or "BHS" in self._open:
            self._missing(self._open[-1])
        self._open.append(header)
        self._messages = 0
        if header == "FHS":
            self._batches = 0
        else:
            self._batches += 1

    def _end(self, line: str) -> None:
        """Close a batch or a file; one without header is one that began where the last one ended."""
        trailer = line[:3]
        if trailer == "FTS":
            if "BHS" in self._open:
                self._missing("BHS")
            if self._batches or not self._messages:  # messages without BHS are in no batch that could be counted
                self._compare(line, self._batches, "batches")
            self._batches = self._messages = 0
        else:
            self._compare(line, self._messages, "messages")
            self._batches += "BHS" not in self._open
            self._messages = 0
        self._open = [header for header in self._open if TRAILERS[header] != trailer]

    def _compare(self, line: str, there: int, what: str) -> None:
        """Compare the count in a trailer's first field, if it has one, with what is there."""
        field = [*line.split(line[3:4] or None), ""][1].strip()
        if field in ("", '""'):
            return
        if not _COUNT.fullmatch(field):
            self._refuse(f"{line[:3]}-1 is not a number")
        if int(field) != there:
            self._refuse(f"{line[:3]}-1 counts {int(field)} {what}, but the file has {there}")

    def _missing(self, header: str) -> None:
        self._refuse(f"{TRAILERS[header]} is missing after {header}")

    def _refuse(self, fault: str) -> None:
        raise Refusal(reasons.FILE_CUT, private=self._name, table="laboratory", fault=fault)


def _is_cut(line: str, separator: str) -> bool:
    """Whether a last line without line end is not a whole segment. Many systems write no line end after the last one.

    A segment that is cut after its last required field cannot be told from a whole one.
    """
    if not line or is_envelope(line):
        return False
    if not SEGMENT_NAME.fullmatch(line[:3]) or line[3:4] not in ("", separator):
        return True
    fields = line.count(separator) + (line[:3] == "MSH")  # MSH-1 is the first separator itself
    return fields < LAST_REQUIRED.get(line[:3], 0)
