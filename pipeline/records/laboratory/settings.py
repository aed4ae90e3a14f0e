"""Defines the table [laboratory] of site.toml: files, tests and word lists; configs/site.toml explains each line."""

import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator, model_validator

from pipeline.records.csv_tables import MAX_FAULTY_PERCENT, TableFile, known_encoding, require_columns_apart
from pipeline.records.laboratory.listener_settings import ListenerTable


def canonical(word: str) -> str:
    """Return one spelling for words that differ only in case, surrounding spaces or the encoding of accents."""
    return unicodedata.normalize("NFC", word.strip().casefold())


class Interpretation(BaseModel, extra="forbid"):
    """How to interpret results of every format; the laboratory signs these lists.

    `tests`: the laboratory's own codes or names of the overall SARS-CoV-2 PCR result; LOINC codes are built in.
    `positive`, `negative` and `indeterminate` list every text and code that a result can have. Case is ignored;
    otherwise a result must match exactly. The defaults are English words, SNOMED CT codes and LOINC answers.
    """

    tests: list[str] = []
    positive: list[str] = ["positive", "detected", "10828004", "260373001", "LA6576-8", "LA11882-0"]
    negative: list[str] = ["negative", "not detected", "260385009", "260415000", "LA6577-6", "LA11883-8"]
    indeterminate: list[str] = [
        "indeterminate", "inconclusive", "equivocal", "invalid", "unsatisfactory", "presumptive positive",
        "82334004", "280416009", "419984006", "42425007", "455371000124106", "125154007", "720735008",
        "LA9663-1", "LA11885-3", "LA15841-2",
    ]  # fmt: skip
    max_unmapped_percent: float = Field(default=MAX_FAULTY_PERCENT, ge=0, le=100)

    @model_validator(mode="after")
    def each_word_means_one_thing(self) -> Self:
        lists = [{canonical(word) for word in words} for words in (self.positive, self.negative, self.indeterminate)]
        if sum(map(len, lists)) > len(set.union(*lists)):
            raise ValueError("a word is in more than one of positive, negative and indeterminate")
        if "" in set.union(*lists):
            raise ValueError("an empty result has no meaning; remove it from the word lists")
        return self

    def meanings(self) -> dict[str, bool | None]:
        """Map each canonical word to its meaning: True positive, False negative, None indeterminate."""
        lists = ((self.positive, True), (self.negative, False), (self.indeterminate, None))
        return {canonical(word): meaning for words, meaning in lists for word in words}


class CsvLaboratory(TableFile, Interpretation):
    """format = "csv": one row for each result.

    `collected` is the local time at which the specimen was taken, never the time of the report. Without the columns
    `test` and `status`, every row is a final overall result. With them, `tests` lists the tests that are overall
    results, `final` lists the statuses of released results, and `withdrawn` those of results that do not count any
    more. Results with other statuses may become final.
    """

    format: Literal["csv"] = "csv"
    collected: str = "collected"
    result: str = "result"
    date_format: str = "%Y-%m-%dT%H:%M"
    test: str = ""
    status: str = ""
    final: list[str] = ["final", "corrected", "amended", "F", "C"]
    withdrawn: list[str] = [
        "withdrawn", "cancelled", "canceled", "deleted", "entered in error", "entered-in-error", "D", "W", "X",
    ]  # fmt: skip

    @model_validator(mode="after")
    def columns_differ(self) -> Self:
        require_columns_apart(self, "patient_id", "collected", "result")
        return self

    @property
    def sources(self) -> list[Path]:
        """The existing files and folders with results."""
        return [self.file]


class Hl7Laboratory(Interpretation):
    """format = "hl7": a file of HL7 v2 messages, or a folder of such files; only ORU^R01 messages are read.

    With `listener`, messages that the laboratory sends over the network are read too; `file` is then optional.
    """

    format: Literal["hl7"]
    file: Path | None = None
    encoding: str = "utf-8-sig"  # of files, and of received messages that do not name a character set (MSH-18)
    listener: ListenerTable | None = None
    issuer: str = ""  # the name in PID-3.4, if it differs from [site]

    @field_validator("encoding")
    @classmethod
    def encoding_is_known(cls, encoding: str) -> str:
        return known_encoding(encoding)

    @model_validator(mode="after")
    def has_a_source(self) -> Self:
        if self.file is None and self.listener is None:
            raise ValueError("give `file`, or the table [laboratory.listener], or both")
        return self

    @property
    def sources(self) -> list[Path]:
        queue = self.listener.queue if self.listener and self.listener.queue.is_dir() else None
        return [path for path in (self.file, queue) if path]


class FhirLaboratory(Interpretation):
    """format = "fhir": a file of FHIR R4 JSON or NDJSON, or a folder of such files.

    With the table [fhir] of site.toml, `file` is optional: without it, the fetched resources are read.
    """

    format: Literal["fhir"]
    file: Path | None = None
    issuer: str = ""  # the name in Patient.identifier.system, if it differs from [site]

    @property
    def sources(self) -> list[Path]:
        return [self.file] if self.file else []


def _format(table: Any) -> Any:
    return table.get("format", "csv") if isinstance(table, dict) else getattr(table, "format", None)


Laboratory = Annotated[
    Annotated[CsvLaboratory, Tag("csv")]
    | Annotated[Hl7Laboratory, Tag("hl7")]
    | Annotated[FhirLaboratory, Tag("fhir")],
    Discriminator(
        _format,
        custom_error_type="laboratory_format",
        custom_error_message='must be a table with format = "csv", "hl7" or "fhir"',
    ),
]
