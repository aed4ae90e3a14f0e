"""Defines the table [outcomes] of site.toml for sources with codes, and the union of all formats."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from pipeline.records.csv_tables import MAX_FAULTY_PERCENT
from pipeline.records.outcomes.event_codes import EventCodes
from pipeline.records.outcomes.outcome_file import OutcomeFile
from pipeline.system.days import Day


class CodedOutcomes(BaseModel, extra="forbid"):
    """The settings that all sources with codes share.

    `from_date`: earlier events belong to another illness and are ignored. `max_unmapped_percent`: largest share of
    events whose codes are in a watched range and in no list. `may_lack_events`: accept a source without a single event
    of a kind.
    """

    from_date: Day
    codes: EventCodes
    max_unmapped_percent: float = Field(default=MAX_FAULTY_PERCENT, ge=0, le=100)
    may_lack_events: bool = False

    @model_validator(mode="after")
    def codes_are_given(self) -> Self:
        if not self.codes.intubated:
            raise ValueError("[outcomes.codes] needs the codes of intubation in `intubated`")
        return self

    @property
    def names_icu(self) -> bool:
        """Whether the source tells when a patient was in intensive care."""
        return bool(self.codes.icu)


class FhirOutcomes(CodedOutcomes):
    """format = "fhir": Encounters, Procedures, Conditions and Patients in files; without `file`, the fetched ones."""

    format: Literal["fhir"]
    file: Path | None = None
    issuer: str = ""  # the name in Patient.identifier.system, if it differs from [site]


class OmopOutcomes(CodedOutcomes):
    """format = "omop": the events that were fetched from the database in [omop]."""

    format: Literal["omop"]
    file: Path | None = None  # what was fetched; `Site.open` sets it


def _format(table: Any) -> Any:
    return table.get("format", "csv") if isinstance(table, dict) else getattr(table, "format", None)


Outcomes = Annotated[
    Annotated[OutcomeFile, Tag("csv")] | Annotated[FhirOutcomes, Tag("fhir")] | Annotated[OmopOutcomes, Tag("omop")],
    Discriminator(
        _format,
        custom_error_type="outcome_format",
        custom_error_message='must be a table with format = "csv", "fhir" or "omop"',
    ),
]
