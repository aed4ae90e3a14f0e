"""Reads a CSV table that the hospital declares in site.toml, and refuses a file with too many faulty rows."""

import csv
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, Field, field_validator

from models.refusal import Reason, Refusal
from pipeline.records import reasons
from pipeline.system.findings import Finding

# If more than this share of the rows has the same fault, the file or its declaration is wrong. For example, swapped day
# and month make 60 % of the dates unreadable and the others false.
MAX_FAULTY_PERCENT = 20
FILE_REASONS = {
    reasons.ROW: reasons.ROWS,
    reasons.NO_IDENTIFIER: reasons.IDENTIFIERS,
    reasons.IDENTIFIER_AMBIGUOUS: reasons.IDENTIFIERS,
    reasons.DATE: reasons.DATES,
    reasons.PCR_UNMAPPED_FLAGGED: reasons.PCR_UNMAPPED,
    reasons.LABEL: reasons.LABELS,
    reasons.HL7: reasons.HL7_FILES,
    reasons.FHIR: reasons.FHIR_FILES,
}
MAX_DETAIL_CHARACTERS = 80


def known_encoding(encoding: str) -> str:
    """Return the encoding's name unchanged. Raises ValueError if Python has no text encoding of this name."""
    try:
        "".encode(encoding)
    except LookupError as error:
        raise ValueError("no text encoding has this name; utf-8-sig, latin-1 and cp1252 are common") from error
    return encoding


EARLY_DAYS, MONTHS = 10, 12  # so many different days raise a doubt


class CsvTable(BaseModel, extra="forbid"):
    """A CSV file that a hospital declares; its columns may have any order, and other columns are ignored."""

    file: Path
    encoding: str = "utf-8-sig"
    separator: str = Field(default=",", pattern=r'^[^"\r\n\x00]$')
    patient_id: str = "patient_id"

    @field_validator("encoding")
    @classmethod
    def encoding_is_known(cls, encoding: str) -> str:
        return known_encoding(encoding)


def require_columns_apart(table: CsvTable, *keys: str) -> None:
    """Raise ValueError if two of these settings name the same column: it cannot hold both."""
    of_column: dict[str, str] = {}
    for key in keys:
        column = getattr(table, key)
        if (other := of_column.setdefault(column, key)) != key:
            raise ValueError(f"{other} and {key} name the same column, {column!r}")


class TableFile(CsvTable):
    """A CSV file with dates.

    `may_lack_late_days`: accept a file in which no date is later in its month than the 12th.
    """

    date_format: str
    may_lack_late_days: bool = False

    @field_validator("date_format")
    @classmethod
    def date_format_holds_a_day(cls, date_format: str) -> str:
        """Refuse a format that cannot read back the day that it writes, and %z, because times are local."""
        moment = datetime(2020, 12, 31, 23, 59)
        try:
            complete = datetime.strptime(moment.strftime(date_format), date_format).date() == moment.date()
        except (ValueError, re.error):
            complete = False
        if not complete:
            raise ValueError("must hold day, month and year and no time zone, as in %d/%m/%Y %H:%M")
        return date_format


def read_rows(table: CsvTable, name: str, columns: Sequence[str]) -> tuple[list[list[str]], list[Finding]]:
    """Return the stripped cells of `columns`, row by row; the first column is the patient's identifier.

    Blank rows do not count. A row with another length than the header, one that a stray quotation mark joined with
    others, and one without identifier is a finding. The first two name the patient, if it can be told: the row may have
    held the patient's only positive result, or the death.
    Raises Refusal: E_TABLE_FILE, E_ENCODING, E_FILE_CUT, E_SCHEMA.
    """
    (_, header, _), *rows = read_lines(table, name) or [(1, [], [])]
    for column in columns:
        if header.count(column) != 1:
            fault = f"column {column!r} occurs {header.count(column)} times"
            raise Refusal(reasons.SCHEMA, private=f"first row: {str(header)[:1000]}", table=name, fault=fault)
    positions = [header.index(column) for column in columns]
    whole, torn, findings = [], [], []
    for line, row, parts in rows:
        if sum(len(part) >= len(header) for part in parts) > 1:
            torn += [(number, part) for number, part in enumerate(parts, line - len(parts) + 1) if any(part)]
        elif len(row) != len(header):
            torn.append((line, row))
        elif not row[positions[0]]:
            findings.append(note(reasons.NO_IDENTIFIER, "", f"line {line}"))
        else:
            whole.append([row[position] for position in positions])
    known = {patient_id for patient_id, *_ in whole}
    for line, row in torn:
        findings += unreadable(reasons.ROW, _owners(row, positions[0], len(header), known), f"line {line}")
    return whole, findings


def _owners(row: Sequence[str], position: int, width: int, known: Collection[str]) -> set[str]:
    """Return whose row it may be: mostly one with more or fewer cells than the `width` of the header.

    Cells before the fault keep their place counted from the left, those after it counted from the right. So an
    identifier in the first or last column is certain. In between it is one of several cells. Of these only a patient
    with other rows matters: nobody else has a result or an outcome that this row could change.
    """
    extra = len(row) - width
    if not extra:
        return {row[position]} - {""}
    left, right = sorted((position, position + extra))
    candidates = {cell for cell in row[max(left, 0) : right + 1] if cell in known}
    if 0 < position < width - 1:
        return candidates
    certain = row[0] if position == 0 else row[-1]
    return {certain} if certain in known else {certain, *candidates} - {""}


def count_rows(whole: Sequence[object], findings: Iterable[Finding]) -> int:
    """Return the number of rows that `read_rows` saw, valid or not."""
    return len(whole) + sum(finding.reason is not reasons.UNREAD_RECORD for finding in findings)


def read_lines(table: CsvTable, name: str) -> list[tuple[int, list[str], list[list[str]]]]:
    """Return the rows that are not blank: the number of the line on which each ends, its stripped cells, its parts.

    A row with a line break inside quotation marks has a part for each of its lines: the cells that this line would have
    as a row without quotation marks. Other rows have no parts. A text of several lines is usual. But if several parts
    are as long as a row, then one stray quotation mark opened a cell, and another one some rows later closed it.
    """
    check_file(table.file, name)
    rows, lines = [], list[str]()
    try:
        with table.file.open(encoding=table.encoding, newline="") as stream:
            reader = csv.reader(_noted(stream, lines), delimiter=table.separator, strict=True)
            for row in reader:
                parts = [_cells(line.replace('"', "").split(table.separator)) for line in lines]
                rows.append((reader.line_num, _cells(row), parts if len(parts) > 1 else []))
                last = lines[-1]
                lines.clear()
    except OSError as error:
        raise Refusal(reasons.TABLE_FILE, private=str(error), table=name) from error
    except UnicodeError as error:
        raise Refusal(reasons.ENCODING, private=f"{table.file}: {error}", table=name) from error
    except csv.Error as error:
        fault = "a quotation mark is misplaced or a cell is too large"
        raise Refusal(reasons.SCHEMA, private=f"{table.file}: {error}", table=name, fault=fault) from error
    filled = [row for row in rows if any(row[1])]
    if filled and _is_cut(last, len(rows[-1][1]), len(filled[0][1])):
        raise Refusal(
            reasons.FILE_CUT, private=f"{table.file}, line {rows[-1][0]}", table=name, fault="its last row has no end"
        )
    return filled


def _is_cut(last: str, cells: int, width: int) -> bool:
    """Whether a file ends within its last line, whose row has fewer cells than the `width` of the header.

    Many programs write no line end after the last row, so a row that is as long as the others is whole.
    """
    is_empty = not last.strip(" \x1a")  # DOS marks the end of a file with this character
    return not last.endswith(("\n", "\r")) and not is_empty and cells < width


def _noted(stream: Iterable[str], lines: list[str]) -> Iterator[str]:
    """Yield the lines of a stream, and note each: csv reads as many of them as a row has."""
    for line in stream:
        lines.append(line)
        yield line


def _cells(row: Iterable[str]) -> list[str]:
    return [cell.strip() for cell in row]


def check_file(path: Path, name: str) -> None:
    """Refuse a pipe or a device, because reading it might never end.

    Raises Refusal E_TABLE_FILE unless `path` is a regular file.
    """
    if not path.is_file():
        raise Refusal(reasons.TABLE_FILE, private=f"not a file: {path}", table=name)


def read_moment(text: str, date_format: str) -> datetime | None:
    """Return the time that `text` states in exactly this format, or None."""
    try:
        return datetime.strptime(text, date_format)
    except ValueError:
        return None


def refuse_early_days(moments: Iterable[datetime], table: TableFile, name: str) -> None:
    """Refuse dates that could as well be read with day and month exchanged, if there are many of them.

    Of ten days at random, all are in the first twelve of their months once in ten thousand. A format that begins with
    the year is not doubted: nobody writes the day after it. Raises Refusal E_EARLY_DAYS.
    """
    parts = re.findall(r"%[dmYy]", table.date_format)
    days = {moment.date() for moment in moments}
    if sorted(parts[:2]) != ["%d", "%m"] or table.may_lack_late_days or len(days) < EARLY_DAYS:
        return
    if all(day.day <= MONTHS for day in days):
        raise Refusal(reasons.EARLY_DAYS, table=name, days=len(days))


def note(reason: Reason, patient_id: str, detail: str) -> Finding:
    """Make a finding with a short, printable detail, so that it cannot send control characters to a terminal."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in detail[:MAX_DETAIL_CHARACTERS])
    return Finding(reason, patient_id, shown)


def unreadable(reason: Reason, patients: Collection[str], detail: str) -> list[Finding]:
    """Make the finding of a record that cannot be read, and one more for each of several patients whose it may be."""
    if len(patients) == 1:
        return [note(reason, next(iter(patients)), detail)]
    return [note(reason, "", detail), *(note(reasons.UNREAD_RECORD, each, detail) for each in sorted(patients))]


def refuse_when_many(
    findings: Sequence[Finding], row_count: int, name: str, *, max_unmapped_percent: float = MAX_FAULTY_PERCENT
) -> None:
    """Refuse the whole file if more than MAX_FAULTY_PERCENT of its rows have the same fault.

    For results in none of the word lists, the hospital can set another limit, `max_unmapped_percent`.
    """
    for row_reason, file_reason in FILE_REASONS.items():
        details = Counter(finding.detail for finding in findings if finding.reason == row_reason)
        percent = 100 * details.total() / max(row_count, 1)
        if percent > (max_unmapped_percent if row_reason == reasons.PCR_UNMAPPED_FLAGGED else MAX_FAULTY_PERCENT):
            private = "; ".join(f"{detail!r} {count} times" for detail, count in details.most_common(10))
            raise Refusal(file_reason, private=private, table=name, percent=round(percent))
