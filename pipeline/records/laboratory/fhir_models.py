"""Models the elements of FHIR R4 that a PCR result needs (hl7.org/fhir/R4); all other elements are ignored."""

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
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


class Unreadable(Resource):
    """What a resource that is not valid says about its patient.

    `references`: to the Patient. `identifiers`: of the Patient. `texts`: strings of a document that is not JSON, each
    of which may be an identifier. `fault`: what is wrong, without values.
    """

    model_config = ConfigDict(populate_by_name=True)

    references: list[str] = []
    identifiers: list[FhirIdentifier] = []
    texts: frozenset[str] = frozenset()
    fault: str

    @classmethod
    def of(cls, raw: Any, fault: str) -> "Unreadable":
        """Take from a resource what is valid of its subject; a Patient is its own subject."""
        tree = raw if isinstance(raw, dict) else {}
        kind, name = (_text(tree.get(key)) for key in ("resourceType", "id"))
        subjects = [each for each in _every(tree.get("subject")) if isinstance(each, dict)]
        given = [each.get("identifier") for each in (*subjects, *([tree] if kind == "Patient" else []))]
        return cls(
            resource_type=kind,
            id=name,
            references=[*filter(None, (_text(each.get("reference")) for each in subjects))],
            identifiers=[found for each in given for one in _every(each) if (found := _identifier(one))],
            fault=fault,
        )

    @classmethod
    def of_text(cls, content: bytes, fault: str) -> "Unreadable":
        """Take from a document that is not JSON, such as a file that was cut, all that may name a patient."""
        text = content.decode("utf-8", errors="replace").replace("\\/", "/")
        found: dict[str, set[str]] = {"reference": set(), "value": set()}
        for key, value in NAMES_PATIENT.findall(text):
            found[key].add(value)
        return cls(
            resource_type="", references=sorted(found["reference"]), texts=frozenset(found["value"]), fault=fault
        )


NAMES_PATIENT = re.compile(r'"(reference|value)"\s*:\s*"([^"\\]*)"')


def _identifier(raw: Any) -> FhirIdentifier | None:
    """Return an identifier with what is valid of it. A value that is a number may have lost leading zeros."""
    if not isinstance(raw, dict):
        return None
    try:
        return FhirIdentifier.model_validate(raw)
    except ValidationError:
        system, value, use = (_text(raw.get(key)) for key in ("system", "value", "use"))
        return FhirIdentifier(system=system, value=value, use=use)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _every(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
