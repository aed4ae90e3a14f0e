"""`make audit`: known vulnerabilities of the locked libraries, from a database that was downloaded before.

The database is an export of OSV, a zip with one JSON file for each vulnerability; osv.dev publishes one for each
ecosystem (PyPI/all.zip, npm/all.zip). It is read where it lies, so the audit works without a network. The audit fails
if a vulnerability is high or critical, or of unknown severity, and has no answer that is still valid.

    configs/locks/answers.toml     [GHSA-1234-5678-9abc]
                                   answer = "why it does not concern this release"
                                   until = 2027-03-01

https://ossf.github.io/osv-schema/; https://www.first.org/cvss/v3.1/specification-document
"""

import argparse
import json
import sys
import tomllib
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from federation.delivery.cvss import base_score
from federation.delivery.locks import ROLES, lock_file, locked

ANSWERS = Path("configs") / "locks" / "answers.toml"
_HIGH = 7.0  # CVSS: high and critical
_OF_WORDS = {"low": 3.9, "moderate": 6.9, "medium": 6.9, "high": 8.9, "critical": 10.0}
_OLD_DAYS = 14

Library = tuple[str, str]  # ecosystem and name
Libraries = Mapping[Library, Collection[str]]  # the versions of each: bundles may hold other ones than the locks


@dataclass(frozen=True)
class Found:
    """A vulnerability of a library that a release holds. `score`: of CVSS; None if it is not known."""

    identifier: str
    aliases: frozenset[str]
    library: str
    version: str
    score: float | None
    summary: str

    @property
    def needs_answer(self) -> bool:
        return self.score is None or self.score >= _HIGH

    @property
    def names(self) -> frozenset[str]:
        return self.aliases | {self.identifier}


def libraries_of(source: Path, requirements: Iterable[Path] = ()) -> dict[Library, set[str]]:
    """Return the versions of all libraries: of the locks, of the viewer, and of bundles' requirements.txt."""
    files = [*(lock_file(source, role) for role in ROLES), *requirements]
    texts = [path.read_text(encoding="utf-8") for path in files]
    found: dict[Library, set[str]] = {}
    for name, version in [pin for text in texts for pin in locked(text).items()]:
        found.setdefault(("PyPI", canonicalize_name(name)), set()).add(version)
    viewer = json.loads((source / "viewer" / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    for place, package in viewer.items():
        if place and not package.get("dev"):
            found.setdefault(("npm", place.rpartition("node_modules/")[2]), set()).add(package["version"])
    return found


def vulnerabilities(libraries: Libraries, databases: Iterable[Path]) -> list[Found]:
    """Return the known vulnerabilities of these versions, sorted by library. Withdrawn entries do not count."""
    found = {}
    for entry in _entries(databases):
        if entry.get("withdrawn"):
            continue
        for affected in entry.get("affected", ()):
            package = affected.get("package", {})
            name = str(package.get("name", ""))
            key = (
                str(package.get("ecosystem")),
                name if package.get("ecosystem") == "npm" else canonicalize_name(name),
            )
            for version in libraries.get(key, ()):
                if not _affects(affected, version.partition("+")[0]):  # 2.13.0+cpu is a build of 2.13.0
                    continue
                found[entry["id"], key, version] = Found(
                    identifier=entry["id"],
                    aliases=frozenset(entry.get("aliases", ())),
                    library=name,
                    version=version,
                    score=_score(entry, affected),
                    summary=str(entry.get("summary") or entry.get("details", ""))[:100].replace("\n", " "),
                )
    return sorted(found.values(), key=lambda each: (each.library.lower(), each.identifier, each.version))


def unanswered(found: Iterable[Found], answers: Mapping[str, Mapping[str, Any]], today: date) -> list[Found]:
    """Return the vulnerabilities that need an answer and have none, or one whose day has passed."""
    valid = {name for name, answer in answers.items() if answer["answer"].strip() and answer["until"] >= today}
    return [each for each in found if each.needs_answer and not valid & each.names]


def newest_entry(databases: Iterable[Path]) -> datetime | None:
    """Return when the newest entry was changed."""
    dates = [datetime.fromisoformat(entry["modified"]) for entry in _entries(databases) if "modified" in entry]
    return max(dates, default=None)


def _entries(databases: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for database in databases:
        with zipfile.ZipFile(database) as archive:
            for name in archive.namelist():
                if name.endswith(".json"):
                    yield json.loads(archive.read(name))


def _affects(affected: Mapping[str, Any], version: str) -> bool:
    if version in affected.get("versions", ()):
        return True
    ranges = [each for each in affected.get("ranges", ()) if each.get("type") in {"ECOSYSTEM", "SEMVER"}]
    try:
        return any(_in_range(each.get("events", ()), Version(version)) for each in ranges)
    except InvalidVersion:
        return True  # it cannot be excluded


def _in_range(events: Iterable[Mapping[str, str]], version: Version) -> bool:
    """Return whether a version is affected by the events introduced, fixed and last_affected."""
    inside = False
    ordered = sorted(((_event(event), *next(iter(event.items()))) for event in events), key=lambda item: item[0])
    for at, kind, _ in ordered:
        if kind == "introduced" and version >= at:
            inside = True
        elif (kind == "fixed" and version >= at) or (kind == "last_affected" and version > at):
            inside = False
    return inside


def _event(event: Mapping[str, str]) -> Version:
    return Version(next(iter(event.values())))


def _score(entry: Mapping[str, Any], affected: Mapping[str, Any]) -> float | None:
    """Return the highest score that the entry states, by CVSS 3 or in words; None if it states none."""
    vectors = [each["score"] for each in (*entry.get("severity", ()), *affected.get("severity", ()))]
    scores = [score for vector in vectors if (score := base_score(vector)) is not None]
    word = str(entry.get("database_specific", {}).get("severity", "")).lower()
    scores += [_OF_WORDS[word]] if word in _OF_WORDS else []
    return max(scores, default=None)


def audit(source: Path, databases: Sequence[Path], requirements: Sequence[Path] = ()) -> tuple[str, bool]:
    """Audit the locks, the viewer and bundles' requirements.txt.

    Returns a line for each vulnerability, and whether none of them lacks an answer that it needs.
    """
    libraries = libraries_of(source, requirements)
    found = vulnerabilities(libraries, databases)
    answers = tomllib.loads((source / ANSWERS).read_text(encoding="utf-8"))
    open_ones = unanswered(found, answers, datetime.now(UTC).date())
    said = ""
    for each in found:
        score = "severity unknown" if each.score is None else f"CVSS {each.score}"
        mark = "NEEDS AN ANSWER" if each in open_ones else "answered" if each.needs_answer else "below high"
        said += f"{each.library} {each.version}  {each.identifier}  {score}  {mark}: {each.summary}\n"
    newest = newest_entry(databases)
    age = (datetime.now(UTC) - newest).days if newest else None
    said += f"{len(libraries)} libraries, {len(found)} vulnerabilities, {len(open_ones)} without an answer\n"
    if age is None or age > _OLD_DAYS:
        old = "unknown" if age is None else f"{age} days old"
        said += f"the database is old: its newest entry is {old}\n"
    return said, not open_ones


def main() -> int:
    """Print the vulnerabilities, and return 1 if one of them needs an answer."""
    parser = argparse.ArgumentParser(prog="make audit", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("databases", type=Path, nargs="+", help="exports of OSV (zip)")
    parser.add_argument("--requirements", type=Path, action="append", default=[], help="requirements.txt of a bundle")
    options = parser.parse_args()
    said, is_well = audit(Path(__file__).resolve().parents[2], options.databases, options.requirements)
    sys.stdout.write(said)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
