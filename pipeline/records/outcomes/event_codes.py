"""The site's table of codes: which codes of procedures, conditions, measurements and encounters are events.

The hospital signs this table. A code in none of its lists is never interpreted: if it is in a watched range, its
patient has no outcome; all other codes are of no interest.
"""

from functools import cached_property
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from pipeline.records.laboratory.codes import LOINC_NAMES
from pipeline.records.laboratory.settings import canonical

# "unknown": in a watched range and in no list, or in several that contradict each other.
Meaning = Literal["intubated", "icu", "died", "neither", "unknown"]
Coded = tuple[str, str]  # code system and code, as the source names them
_SOURCE = "source"

# Names of code systems in FHIR (URIs) and OMOP (vocabulary_id). "source" stands for OMOP's columns *_source_value,
# and "discharge" also for discharged_to_source_value.
SYSTEMS = {
    "sct": {"http://snomed.info/sct", "urn:oid:2.16.840.1.113883.6.96", "SNOMED"},
    "icd-10": {"http://hl7.org/fhir/sid/icd-10", "urn:oid:2.16.840.1.113883.6.3", "ICD10"},
    "icd-10-gm": {
        "http://fhir.de/CodeSystem/bfarm/icd-10-gm", "http://fhir.de/CodeSystem/dimdi/icd-10-gm", "ICD10GM",
    },
    "icd-10-cm": {"http://hl7.org/fhir/sid/icd-10-cm", "ICD10CM"},
    "ops": {"http://fhir.de/CodeSystem/bfarm/ops", "http://fhir.de/CodeSystem/dimdi/ops", "OPS"},
    "ccam": {"urn:oid:1.2.250.1.213.2.5", "https://mos.esante.gouv.fr/NOS/CCAM_2/FHIR/CCAM", "CCAM"},
    "loinc": LOINC_NAMES,
    "discharge": {"http://terminology.hl7.org/CodeSystem/discharge-disposition"},
    "visit": {"Visit"},
    "source": {"source"},
}  # fmt: skip


class EventCodes(BaseModel):
    """[outcomes.codes]: lists of SYSTEM|CODE, or SYSTEM|BEGINNING* for all codes that begin so.

    `neither`: codes that are no event, within the ranges in `watched`. `systems`: further names of code systems.
    """

    model_config = ConfigDict(extra="forbid", ignored_types=(cached_property,))

    intubated: list[str] = []
    icu: list[str] = []
    died: list[str] = []
    neither: list[str] = []
    watched: list[str] = []
    systems: dict[str, list[str]] = {}

    @model_validator(mode="after")
    def each_code_means_one_thing(self) -> Self:
        known = {*SYSTEMS, *self.systems}
        found: set[tuple[str, str]] = set()
        for pattern in (each for codes in self._lists.values() for each in codes):
            if self._split(pattern) in found:
                raise ValueError(f"{pattern!r} is in two lists of codes")
            found.add(self._split(pattern))
        for pattern in (*(each for codes in self._lists.values() for each in codes), *self.watched):
            system, code = self._split(pattern)
            if system not in known:
                raise ValueError(f"{pattern!r} must begin with a code system and |: {', '.join(sorted(known))}")
            if not code or "*" in code[:-1] or (code == "*" and pattern not in self.watched):
                raise ValueError(f"{pattern!r} must name a code, or the beginning of codes with * at its end")
        return self

    @property
    def _lists(self) -> dict[Meaning, list[str]]:
        return {"intubated": self.intubated, "icu": self.icu, "died": self.died, "neither": self.neither}

    @staticmethod
    def _split(pattern: str) -> tuple[str, str]:
        system, _, code = pattern.partition("|")
        return canonical(system), canonical(code)

    @cached_property
    def _by_code(self) -> dict[tuple[str, str], Meaning]:
        return {self._split(each): meaning for meaning, codes in self._lists.items() for each in codes}

    @cached_property
    def _watched(self) -> set[tuple[str, str]]:
        return {self._split(each) for each in self.watched}

    @cached_property
    def _names(self) -> dict[str, str]:
        """The name in this table of each code system."""
        every = {
            name: {*SYSTEMS.get(name, ()), *self.systems.get(name, ()), name} for name in (*SYSTEMS, *self.systems)
        }
        return {canonical(alias): canonical(name) for name, aliases in every.items() for alias in aliases}

    def patterns(self) -> list[tuple[str, str, bool]]:
        """Return each pattern as any name of its system, the code or its beginning, and whether it is a beginning."""
        patterns = {*self._by_code, *self._watched}
        return [
            (alias, code.removesuffix("*"), code.endswith("*"))
            for system, code in sorted(patterns)
            for alias, name in self._names.items()
            if name == system
        ]

    def meaning(self, codes: tuple[Coded, ...]) -> Meaning | None:
        """Return the meaning of an event by all of its codes, which mean the same; None if it is of no interest."""
        found = {self._meaning(system, code) for system, code in codes} - {None}
        known = found - {"unknown"}
        if len(known) > 1:
            return "unknown"
        return next(iter(known or found), None)

    def _meaning(self, system: str, code: str) -> Meaning | None:
        """Return what a code means by its own system's patterns.

        A source value that only another system's pattern matches is unknown: the database has no concept for it, and
        the hospital's own codes can look like those of a code system.
        """
        name, plain = self._names.get(canonical(system)), canonical(code)
        if name is None or not plain:
            return None
        found = self._listed(name, plain)
        if found is None and name == _SOURCE:
            others = {self._listed(each, plain, shortest=1) for each in set(self._names.values()) - {_SOURCE}}
            return "unknown" if others - {None, "neither"} else None
        return found

    def _listed(self, name: str, plain: str, *, shortest: int = 0) -> Meaning | None:
        """The longest matching pattern counts; a whole code is longer than each of its beginnings.

        `shortest`: the fewest characters of a beginning that counts.
        """
        candidates = [plain, *(f"{plain[:length]}*" for length in range(len(plain), shortest - 1, -1))]
        for each in candidates:
            if (name, each) in self._by_code:
                return self._by_code[name, each]
        return "unknown" if any((name, each) in self._watched for each in candidates) else None
