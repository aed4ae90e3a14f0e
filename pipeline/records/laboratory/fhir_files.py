"""Reads FHIR R4 resources: Bundles of any kind, single resources and arrays in JSON, NDJSON, and the fetched ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from pydantic import ValidationError

from models.refusal import Refusal
from pipeline.records import reasons
from pipeline.records.fhir_store import entries
from pipeline.records.laboratory.fhir_models import (
    DiagnosticReport,
    Observation,
    Patient,
    Resource,
    Specimen,
    Unreadable,
)
from pipeline.records.laboratory.results import files_of
from pipeline.system.json_text import parse_json

MODELS: dict[str, type[Resource]] = {
    model.__name__: model for model in (Patient, Specimen, Observation, DiagnosticReport)
}
NOT_JSON = "not a resource in JSON"
LINES = {".ndjson", ".jsonl"}
STORE = ".sqlite"  # what was fetched from a server
Name = tuple[int | None, str]  # valid in one document or (None) in all files
MAX_BYTES = 32_000_000  # of a JSON file or a line of NDJSON; parsed objects take ten times as much memory


@dataclass(frozen=True)
class Placed:
    """A resource and its place, which determines the meaning of references to it and in it.

    `document`: number of the file or line. `number`: number of the resource among all. `container`: number of the
    resource that contains it. `where`: location, shown only at the site.
    """

    resource: Resource
    document: int
    number: int
    full_url: str
    container: int | None
    where: str

    @property
    def base(self) -> str:
        """Address of the resource's server, the base of relative references; "" if unknown."""
        own = f"/{self.resource.resource_type}/{self.resource.id}"
        return self.full_url.removesuffix(own) if self.full_url.endswith(own) else ""

    def names(self) -> list[str]:
        """Return the names by which references can refer to it; a name that begins with ? matches any server."""
        own = f"{self.resource.resource_type}/{self.resource.id}"
        if self.container is not None:
            return [f"{self.container}#{self.resource.id}"]
        if not self.resource.id:
            return [self.full_url] if self.full_url else []
        return [self.full_url or own, f"?{own}"]

    def called(self, reference: str) -> list[str]:
        """Return the names to which a reference in this resource can refer, the most certain first."""
        if reference.startswith("#"):
            return [f"{self.number if self.container is None else self.container}{reference}"]
        name = reference.split("/_history/", maxsplit=1)[0]
        if not name:
            return []
        if "://" in name:
            return [name, "/".join(name.split("/")[-2:])]
        return [f"{self.base}/{name}", name] if self.base else [name, f"?{name}"]


class Sink(Protocol):
    """Where a reader counts resources, readable or not."""

    units: int


def read_resources(
    path: Path, sink: Sink, models: Mapping[str, type[Resource]] = MODELS, table: str = "laboratory"
) -> Iterator[Placed]:
    """Yield the resources of all files whose types are in `models`; an unreadable one as `Unreadable`.

    The caller makes the findings of these, when it knows all Patients. `table`: the table of site.toml that names
    `path`. Raises Refusal: E_TABLE_FILE, E_FILE_CUT.
    """
    numbers = count()
    for document, (where, content) in enumerate(_documents(path, table)):
        try:
            tree, is_json = parse_json(content), True
        except ValueError:
            tree, is_json = None, False
        for raw, full_url, container, number in _walk(tree, "", None, numbers, models):
            sink.units += 1
            resource = _resource(raw, models) if is_json else Unreadable.of_text(content, NOT_JSON)
            yield Placed(resource, document, number, full_url, container, where)


def _resource(raw: Any, models: Mapping[str, type[Resource]]) -> Resource:
    try:
        return models[raw["resourceType"]].model_validate(raw)
    except (TypeError, KeyError):
        return Unreadable.of(raw, NOT_JSON)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        element = ".".join(map(str, (error.title, *first["loc"])))
        return Unreadable.of(raw, f"{element}: {first['msg']}")


def _documents(path: Path, table: str) -> Iterator[tuple[str, bytes]]:
    """Yield the location and content of each JSON file and each non-blank line of NDJSON; oversized ones are empty."""
    try:
        for file in files_of(path):
            if file.suffix == STORE:
                yield from ((f"{file.name}, resource {number}", entry) for number, entry in enumerate(entries(file), 1))
                continue
            with file.open("rb") as stream:
                if file.suffix.lower() not in LINES:
                    content = stream.read(MAX_BYTES + 1)
                    yield file.name, content if len(content) <= MAX_BYTES else b""
                    continue
                yield from _lines(stream, file.name, table)
    except OSError as error:
        raise Refusal(reasons.TABLE_FILE, private=str(error), table=table) from error


def _lines(stream: BinaryIO, name: str, table: str) -> Iterator[tuple[str, bytes]]:
    """Yield the location and content of each non-blank line. A last line that is not JSON shows that the file was cut.

    Raises Refusal E_FILE_CUT.
    """
    last, is_start = b"", True
    for number, line in enumerate(iter(lambda: stream.readline(MAX_BYTES), b""), start=1):
        if not line.isspace():
            yield f"{name}, line {number}", line
            last = line if is_start else b""  # the end of an oversized line says nothing
        is_start = line.endswith(b"\n")
    try:
        parse_json(last or b"{}")
    except ValueError:
        fault = "its last line is not JSON"
        raise Refusal(reasons.FILE_CUT, private=name, table=table, fault=fault) from None


def _walk(
    tree: Any, full_url: str, container: int | None, numbers: Iterator[int], models: Mapping[str, type[Resource]]
) -> Iterator[tuple[Any, str, int | None, int]]:
    """Yield each resource with its fullUrl, the number of its container and its own number.

    The JSON parser limits the depth to 200.
    """
    kind = tree.get("resourceType") if isinstance(tree, dict) else None
    if isinstance(tree, list):
        for each in tree:
            yield from _walk(each, "", None, numbers, models)
    elif kind == "Bundle":
        for entry in _items(tree.get("entry")):
            if isinstance(entry, dict) and "resource" in entry:
                yield from _walk(entry["resource"], str(entry.get("fullUrl") or ""), None, numbers, models)
    elif not isinstance(kind, str) or kind in models:
        number = next(numbers)
        yield tree, full_url, container, number
        for each in _items(tree.get("contained")) if isinstance(tree, dict) else []:
            yield from _walk(each, "", number, numbers, models)


def scoped(placed: Placed, names: Sequence[str]) -> list[Name]:
    """Return each name with the scope of the resource's own document, then of all files."""
    return [(scope, name) for name in names for scope in (placed.document, None)]


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
