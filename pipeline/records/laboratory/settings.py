"""The table [laboratory] of site.toml: which files, which tests, which words; configs/site.toml explains each line."""

import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator, model_validator

from pipeline.records.csv_tables import MAX_FAULTY_PERCENT, TableFile, known_encoding


def canonical(word: str) -> str:
    """One spelling for words that differ in case, outer blanks or the coding of accents alone."""
    return unicodedata.normalize("NFC", word.strip().casefold())


class Interpretation(BaseModel, extra="forbid"):
    """What every format needs to be understood, signed by the laboratory.

    `tests`: the laboratory's own codes, or names, of the overall SARS-CoV-2 PCR result; LOINC's are known.
    `positive`, `negative` and `indeterminate` list every text and code that a result may be. Upper and lower case
    do not matter; nothing else is bent. The defaults are English words, SNOMED CT codes and LOINC answers.
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
            raise ValueError("a word stands in more than one of positive, negative and indeterminate")
        if "" in set.union(*lists):
            raise ValueError("an empty result means nothing; take it out of the word lists")
        return self

    def meanings(self) -> dict[str, bool | None]:
        """Canonical word to its meaning: True positive, False negative, None indeterminate."""
        lists = ((self.positive, True), (self.negative, False), (self.indeterminate, None))
        return {canonical(word): meaning for words, meaning in lists for word in words}


class CsvLaboratory(TableFile, Interpretation):
    """format = "csv": one row for each result.

    `collected` is the time at which the specimen was taken, local to the site, never the time of the report.
    Without the columns `test` and `status`, every row is a final overall result. With them, `tests` says which rows
    are overall results, and `final` which statuses are those of a released result.
    """

    format: Literal["csv"] = "csv"
    collected: str = "collected"
    result: str = "result"
    date_format: str = "%Y-%m-%dT%H:%M"
    test: str = ""
    status: str = ""
    final: list[str] = ["final", "corrected", "amended", "F", "C"]


class Hl7Laboratory(Interpretation):
    """format = "hl7": a file of HL7 v2 messages, or a folder of such files; ORU^R01 is read."""

    format: Literal["hl7"]
    file: Path
    encoding: str = "utf-8-sig"
    issuer: str = ""  # as PID-3.4 names it, if otherwise than [site] does

    @field_validator("encoding")
    @classmethod
    def encoding_is_known(cls, encoding: str) -> str:
        return known_encoding(encoding)


class FhirLaboratory(Interpretation):
    """format = "fhir": a file of FHIR R4 JSON or NDJSON, or a folder of such files."""

    format: Literal["fhir"]
    file: Path
    issuer: str = ""  # as Patient.identifier.system names it, if otherwise than [site] does


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
