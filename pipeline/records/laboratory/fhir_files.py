"""FHIR R4 resources from files: Bundles of any kind, single resources and arrays as JSON, and NDJSON."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from models.refusal import Refusal
from pipeline.records import reasons
from pipeline.records.csv_tables import note
from pipeline.records.laboratory.fhir_models import DiagnosticReport, Observation, Patient, Resource, Specimen
from pipeline.records.laboratory.results import Reading, files_of

MODELS: dict[str, type[Resource]] = {
    model.__name__: model for model in (Patient, Specimen, Observation, DiagnosticReport)
}
LINES = {".ndjson", ".jsonl"}
MAX_BYTES = 32_000_000  # of a JSON file, or of a line of NDJSON; as objects it takes ten times that


@dataclass(frozen=True)
class Placed:
    """A resource and where it stands, on which it depends what references to it and in it mean.

    `document`: number of the file or line. `number`: of the resource among all; `container`: of the resource that
    contains it. `where`: for the site's screen.
    """

    resource: Resource
    document: int
    number: int
    full_url: str
    container: int | None
    where: str

    @property
    def base(self) -> str:
        """The address of its server, which completes relative references; "" if unknown."""
        own = f"/{self.resource.resource_type}/{self.resource.id}"
        return self.full_url.removesuffix(own) if self.full_url.endswith(own) else ""

    def names(self) -> list[str]:
        """What references may call it; the name that begins with ? leaves open whose server's it is."""
        own = f"{self.resource.resource_type}/{self.resource.id}"
        if self.container is not None:
            return [f"{self.container}#{self.resource.id}"]
        if not self.resource.id:
            return [self.full_url] if self.full_url else []
        return [self.full_url or own, f"?{own}"]

    def called(self, reference: str) -> list[str]:
        """The names that a reference in this resource may mean, the surest first."""
        if reference.startswith("#"):
            return [f"{self.number if self.container is None else self.container}{reference}"]
        name = reference.split("/_history/", maxsplit=1)[0]
        if not name:
            return []
        if "://" in name:
            return [name, "/".join(name.split("/")[-2:])]
        return [f"{self.base}/{name}", name] if self.base else [name, f"?{name}"]


def read_resources(path: Path, reading: Reading) -> Iterator[Placed]:
    """The patients, specimens, observations and reports of all files; what cannot be read becomes a finding.

    Raises Refusal E_TABLE_FILE.
    """
    numbers = count()
    for document, (where, content) in enumerate(_documents(path)):
        try:
            tree = from_json(content.removeprefix(codecs.BOM_UTF8), allow_inf_nan=False)
        except ValueError:
            tree = None
        for raw, full_url, container, number in _walk(tree, "", None, numbers):
            reading.units += 1
            try:
                resource = MODELS[raw["resourceType"]].model_validate(raw)
            except (TypeError, KeyError):
                reading.findings.append(note(reasons.FHIR, "", f"{where}: no resource in JSON"))
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False, include_context=False)[0]
                element = ".".join(map(str, (error.title, *first["loc"])))
                reading.findings.append(note(reasons.FHIR, "", f"{where}: {element}: {first['msg']}"))
            else:
                yield Placed(resource, document, number, full_url, container, where)


def _documents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each JSON file and each line of NDJSON that is not blank, and where it is; oversized ones come empty."""
    try:
        for file in files_of(path):
            with file.open("rb") as stream:
                if file.suffix.lower() not in LINES:
                    content = stream.read(MAX_BYTES + 1)
                    yield file.name, content if len(content) <= MAX_BYTES else b""
                    continue
                for number, line in enumerate(iter(lambda: stream.readline(MAX_BYTES), b""), start=1):
                    if not line.isspace():
                        yield f"{file.name}, line {number}", line
    except OSError as error:
        raise Refusal(reasons.TABLE_FILE, private=str(error), table="laboratory") from error


def _walk(
    tree: Any, full_url: str, container: int | None, numbers: Iterator[int]
) -> Iterator[tuple[Any, str, int | None, int]]:
    """Each resource with its fullUrl, the number of what contains it, and its own number. JSON is 200 deep at most."""
    kind = tree.get("resourceType") if isinstance(tree, dict) else None
    if isinstance(tree, list):
        for each in tree:
            yield from _walk(each, "", None, numbers)
    elif kind == "Bundle":
        for entry in _items(tree.get("entry")):
            if isinstance(entry, dict) and "resource" in entry:
                yield from _walk(entry["resource"], str(entry.get("fullUrl") or ""), None, numbers)
    elif not isinstance(kind, str) or kind in MODELS:
        number = next(numbers)
        yield tree, full_url, container, number
        for each in _items(tree.get("contained")) if isinstance(tree, dict) else []:
            yield from _walk(each, "", number, numbers)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
