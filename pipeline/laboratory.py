"""PCR results from the laboratory's CSV file.

What a result means is never guessed from its text: the laboratory signs lists of words, and a word in none of
them is reported. The reading of a declared table lives here too, because the outcome file is one as well.
"""

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, field_validator, model_validator

from models.refusal import Reason, Refusal
from pipeline import reasons
from pipeline.findings import Finding

# Above this share of its rows, what is a finding at one row means that the file or its declaration is wrong:
# a day and a month that are swapped, for instance, leave 60 % of dates unreadable and the others false.
MAX_FAULTY_SHARE = 0.2
FILE_REASONS = {
    reasons.ROW: reasons.ROWS,
    reasons.DATE: reasons.DATES,
    reasons.PCR_UNMAPPED_ROW: reasons.PCR_UNMAPPED,
}
MAX_DETAIL_CHARACTERS = 80


class TableFile(BaseModel, extra="forbid"):
    """A CSV file as a hospital declares it; columns may come in any order and among others."""

    file: Path
    encoding: str = "utf-8-sig"
    separator: str = Field(default=",", pattern=r'^[^"\r\n\x00]$')
    patient_id: str = "patient_id"
    date_format: str

    @field_validator("encoding")
    @classmethod
    def encoding_is_known(cls, encoding: str) -> str:
        try:
            "".encode(encoding)
        except LookupError as error:
            raise ValueError("no text encoding has this name; utf-8-sig, latin-1 and cp1252 are common") from error
        return encoding

    @field_validator("date_format")
    @classmethod
    def date_format_holds_a_day(cls, date_format: str) -> str:
        """Only a format that reads back the day that it wrote is complete. %z is refused: times are local."""
        moment = datetime(2020, 12, 31, 23, 59)
        try:
            complete = datetime.strptime(moment.strftime(date_format), date_format).date() == moment.date()
        except (ValueError, re.error):
            complete = False
        if not complete:
            raise ValueError("must hold day, month and year and no time zone, as in %d/%m/%Y %H:%M")
        return date_format


class LaboratoryFile(TableFile):
    """The table [laboratory] of site.toml: one row for each overall PCR result.

    `collected` is the time at which the specimen was taken, local to the site, never the time of the report.
    `positive`, `negative` and `indeterminate` list every text that the column `result` may hold. Upper and
    lower case do not matter; nothing else is bent. The defaults are English words and SNOMED CT codes.
    """

    collected: str = "collected"
    result: str = "result"
    date_format: str = "%Y-%m-%dT%H:%M"
    positive: list[str] = ["positive", "detected", "10828004", "260373001"]
    negative: list[str] = ["negative", "not detected", "260385009", "260415000"]
    indeterminate: list[str] = [
        "indeterminate",
        "inconclusive",
        "invalid",
        "unsatisfactory",
        "82334004",
        "419984006",
        "455371000124106",
        "125154007",
    ]

    @model_validator(mode="after")
    def each_word_means_one_thing(self) -> Self:
        lists = [{canonical(word) for word in words} for words in (self.positive, self.negative, self.indeterminate)]
        if sum(map(len, lists)) > len(set.union(*lists)):
            raise ValueError("a word stands in more than one of positive, negative and indeterminate")
        if "" in set.union(*lists):
            raise ValueError("an empty result means nothing; take it out of the word lists")
        return self

    def meanings(self) -> dict[str, bool | None]:
        """Canonical word to its meaning: True positive, False negative, None indeterminate."""
        lists = ((self.positive, True), (self.negative, False), (self.indeterminate, None))
        return {canonical(word): meaning for words, meaning in lists for word in words}


@dataclass(frozen=True)
class PcrResult:
    """The overall PCR result of one specimen; `positive` is None when the laboratory could not decide."""

    patient_id: str
    collected: datetime
    positive: bool | None


def read_pcr(table: LaboratoryFile, *, today: date | None = None) -> tuple[list[PcrResult], list[Finding]]:
    """Read the laboratory's file: its results in the file's order, equal ones once, and what was left out.

    Raises Refusal: E_TABLE_FILE, E_ENCODING, E_SCHEMA, and, above `MAX_FAULTY_SHARE` of the rows, E_ROWS,
    E_DATES or E_PCR_UNMAPPED.
    """
    today = today or date.today()
    meanings = table.meanings()
    rows, findings = read_rows(table, "laboratory", (table.patient_id, table.collected, table.result))
    row_count = len(rows) + len(findings)
    results = []
    for patient_id, collected_text, result_text in rows:
        collected = read_moment(collected_text, table.date_format)
        if collected is None:
            findings.append(note(reasons.DATE, patient_id, collected_text))
        elif collected.date() > today:
            findings.append(note(reasons.PCR_DATE, patient_id, collected_text))
        elif canonical(result_text) not in meanings:
            findings.append(note(reasons.PCR_UNMAPPED_ROW, patient_id, result_text))
        else:
            results.append(PcrResult(patient_id, collected, meanings[canonical(result_text)]))
    refuse_when_many(findings, row_count, "laboratory")
    return list(dict.fromkeys(results)), findings


def canonical(word: str) -> str:
    """One spelling for words that differ in case, outer blanks or the coding of accents alone."""
    return unicodedata.normalize("NFC", word.strip().casefold())


# --- reading a declared table -----------------------------------------------------------------------------


def read_rows(table: TableFile, name: str, columns: Sequence[str]) -> tuple[list[list[str]], list[Finding]]:
    """The stripped cells of `columns`, row by row; `columns` starts with the patient's identifier.

    Blank rows do not count. A row of another length than the header, or without identifier, is a finding.
    Raises Refusal: E_TABLE_FILE, E_ENCODING, E_SCHEMA.
    """
    (_, header), *rows = read_lines(table, name) or [(1, [])]
    for column in columns:
        if header.count(column) != 1:
            fault = f"column {column!r} is there {header.count(column)} times"
            raise Refusal(reasons.SCHEMA, private=f"first row: {str(header)[:1000]}", table=name, fault=fault)
    positions = [header.index(column) for column in columns]
    whole, findings = [], []
    for line, row in rows:
        if len(row) != len(header):
            findings.append(note(reasons.ROW, "", f"line {line}"))
        elif not row[positions[0]]:
            findings.append(note(reasons.NO_IDENTIFIER, "", f"line {line}"))
        else:
            whole.append([row[position] for position in positions])
    return whole, findings


def read_lines(table: TableFile, name: str) -> list[tuple[int, list[str]]]:
    """The rows that are not blank: the number of the line on which each ends, and its cells, stripped."""
    try:
        with table.file.open(encoding=table.encoding, newline="") as stream:
            reader = csv.reader(stream, delimiter=table.separator, strict=True)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except OSError as error:
        raise Refusal(reasons.TABLE_FILE, private=str(error), table=name) from error
    except UnicodeError as error:
        raise Refusal(reasons.ENCODING, private=f"{table.file}: {error}", table=name) from error
    except csv.Error as error:
        fault = "a quotation mark is out of place or a cell is oversized"
        raise Refusal(reasons.SCHEMA, private=f"{table.file}: {error}", table=name, fault=fault) from error
    return [(line, row) for line, row in rows if any(row)]


def read_moment(text: str, date_format: str) -> datetime | None:
    """The moment that `text` names in exactly this format, or None."""
    try:
        return datetime.strptime(text, date_format)
    except ValueError:
        return None


def note(reason: Reason, patient_id: str, detail: str) -> Finding:
    """A finding whose detail is short enough to be read."""
    return Finding(reason, patient_id, detail[:MAX_DETAIL_CHARACTERS])


def refuse_when_many(findings: Sequence[Finding], row_count: int, name: str) -> None:
    """Refuse the whole file when more than `MAX_FAULTY_SHARE` of its rows have the same fault."""
    for row_reason, file_reason in FILE_REASONS.items():
        details = Counter(finding.detail for finding in findings if finding.reason == row_reason)
        share = details.total() / max(row_count, 1)
        if share > MAX_FAULTY_SHARE:
            private = "; ".join(f"{detail!r} {count} times" for detail, count in details.most_common(10))
            raise Refusal(file_reason, private=private, table=name, percent=round(100 * share))
