"""Models the elements of FHIR R4 that a PCR result needs (hl7.org/fhir/R4); all other elements are ignored."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Element(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore")


class Coding(Element):
    system: str = ""
    code: str = ""
    display: str = ""


class Concept(Element):
    coding: list[Coding] = []
    text: str = ""

    def words(self) -> Iterator[str]:
        """Yield codes, their names and the text, which all mean the same."""
        for coding in self.coding:
            yield from filter(None, (coding.code, coding.display))
        if self.text:
            yield self.text


class Period(Element):
    start: str = ""
    end: str = ""


class FhirIdentifier(Element):
    system: str = ""
    value: str = ""
    use: str = ""
    type: Concept = Concept()


class Reference(Element):
    reference: str = ""
    identifier: FhirIdentifier | None = None


class Meta(Element):
    last_updated: str = ""
    version_id: str = ""


class Resource(Element):
    resource_type: str
    id: str = ""
    meta: Meta = Meta()


class Patient(Resource):
    identifier: list[FhirIdentifier] = []


class Collection(Element):
    collected_date_time: str = ""
    collected_period: Period = Period()


class Specimen(Resource):
    collection: Collection = Collection()

    @property
    def collected(self) -> str:
        return self.collection.collected_date_time or self.collection.collected_period.start


class Valued(Element):
    """An element with a code and a value: an Observation or one of its components."""

    code: Concept = Concept()
    value_codeable_concept: Concept | None = None
    value_string: str | None = None
    value_boolean: bool | None = None
    value_integer: int | None = None
    value_quantity: dict[str, Any] | None = None
    data_absent_reason: Concept | None = None

    def words(self) -> tuple[str, ...]:
        """Return the value as codes and words; empty if there is none. Numbers are included only for display."""
        if self.value_codeable_concept is not None:
            return tuple(self.value_codeable_concept.words())
        plain = (self.value_string, self.value_boolean, self.value_integer)
        words = [str(value).lower() if isinstance(value, bool) else str(value) for value in plain if value is not None]
        if self.value_quantity is not None:
            words.append(" ".join(str(self.value_quantity.get(key, "")) for key in ("comparator", "value", "unit")))
        return tuple(words)


class Event(Resource):
    """The common elements of Observation and DiagnosticReport."""

    identifier: list[FhirIdentifier] = []
    status: str = ""
    code: Concept = Concept()
    subject: Reference = Reference()
    effective_date_time: str = ""
    effective_instant: str = ""
    effective_period: Period = Period()
    issued: str = ""

    @property
    def effective(self) -> str:
        return self.effective_date_time or self.effective_instant or self.effective_period.start

    @property
    def specimens(self) -> list[Reference]:
        return []

    @property
    def children(self) -> list[Reference]:
        """References to the Observations that belong to this event."""
        return []


class Observation(Event, Valued):
    specimen: Reference = Reference()
    component: list[Valued] = []
    has_member: list[Reference] = []

    @property
    def specimens(self) -> list[Reference]:
        return [self.specimen]

    @property
    def children(self) -> list[Reference]:
        return self.has_member


class DiagnosticReport(Event):
    specimen: list[Reference] = []
    result: list[Reference] = []
    conclusion: str = ""
    conclusion_code: list[Concept] = []

    @property
    def specimens(self) -> list[Reference]:
        return self.specimen

    @property
    def children(self) -> list[Reference]:
        return self.result
