"""Turns raw results from CSV rows, HL7 messages and FHIR resources into PCR results, with the same rules for all.

The meaning of a result is never guessed from its text: the laboratory signs lists of words, and a word in none of them
is reported. The newest version of a result counts. Results for single genes decide nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from pathlib import Path
from typing import Literal

from models.refusal import Reason, Refusal
from pipeline.records import reasons
from pipeline.records.csv_tables import note
from pipeline.records.laboratory.codes import Code, Kind, kind_of
from pipeline.records.laboratory.settings import Interpretation, canonical
from pipeline.records.laboratory.times import LONG_AGO
from pipeline.system.findings import Finding

# The last two give no result: "withdrawn" removes an older result, "pending" may become a result later.
Status = Literal["final", "corrected", "withdrawn", "pending"]
NO_RESULT: dict[Status, Reason] = {"withdrawn": reasons.PCR_WITHDRAWN, "pending": reasons.PCR_PRELIMINARY}
RANK: dict[Status, int] = {"pending": 0, "final": 1, "corrected": 2, "withdrawn": 3}


@dataclass(frozen=True)
class PcrResult:
    """The overall PCR result of one specimen; `positive` is None if the laboratory could not decide.

    `collected`: local time of collection without zone; midnight if only the day is known.
    """

    patient_id: str
    collected: datetime
    positive: bool | None


@dataclass(frozen=True)
class Identifier:
    """One identifier of a patient; `authorities` holds all names of the authority that issued it."""

    value: str
    authorities: tuple[str, ...] = ()
    kind: str = ""  # code from HL7 table 0203; MR is the medical record number


@dataclass(frozen=True)
class RawResult:
    """One result of one test, as stated in a row, message or resource, before interpretation."""

    patient: Identifier | Reason  # or the reason why the patient is unknown
    key: tuple[str, ...]  # order, specimen and test; a newer version has the same key
    version: tuple[datetime, datetime, int]  # when it changed (LONG_AGO if unknown) and was sent; larger means newer
    test: tuple[Code, ...]  # all names of one test
    value: tuple[str, ...]  # codes and words with the same meaning
    status: Status
    collected: datetime | None  # local time without zone
    collected_text: str
    where: str = field(default="", compare=False)  # shown only at the site
    changed_until: datetime = LONG_AGO  # later than the time of change if that is only a day, an hour or a minute


@dataclass
class Reading:
    """The results and findings of a reader so far.

    `units`: number of rows, messages or resources, valid or not. `others`: number of results of each other test.
    """

    words: Interpretation
    results: list[RawResult] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    units: int = 0
    others: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._declared = frozenset(canonical(test) for test in self.words.tests)

    def kind(self, test: Iterable[Code]) -> Kind:
        return kind_of(test, self._declared)

    def wants(self, test: Sequence[Code]) -> bool:
        """Whether results of this test are needed; results of other tests are only counted."""
        kind = self.kind(test)
        if kind == "other":
            self.others[" ".join(f"{name.code} {name.text}".strip() for name in test)] += 1
        return kind in ("overall", "gene")


def of_site(identifiers: Iterable[Identifier], issuer: str) -> list[Identifier]:
    """Return the identifiers that the site's authority issued; all of them if none names an authority."""
    given = [identifier for identifier in identifiers if identifier.value]
    ours = [each for each in given if not issuer or issuer in each.authorities]
    return ours if ours or any(each.authorities for each in given) else given


def choose(identifiers: Iterable[Identifier], issuer: str) -> Identifier | Reason:
    """Choose the identifier that the site's authority issued; of several, the medical record number.

    If no identifier names an authority, a single identifier is the site's, as in a CSV file. Identifiers are never
    changed: leading zeros and case are kept. Reasons: E_NO_IDENTIFIER, E_IDENTIFIER_AMBIGUOUS.
    """
    ours = of_site(identifiers, issuer)
    if len({each.value for each in ours}) > 1:
        ours = [each for each in ours if each.kind == "MR"] or ours
    if len({each.value for each in ours}) > 1:
        return reasons.IDENTIFIER_AMBIGUOUS
    return replace(ours[0], kind="") if ours else reasons.NO_IDENTIFIER


def candidates(identifiers: Iterable[Identifier], issuer: str) -> set[str]:
    """Return the identifiers of a patient whose record cannot be read: the chosen one, else all that it may be."""
    given = list(identifiers)
    chosen = choose(given, issuer)
    return {chosen.value} if isinstance(chosen, Identifier) else {each.value for each in of_site(given, issuer)}


def interpret(reading: Reading, today: date) -> tuple[list[PcrResult], list[Finding], int]:
    """Return the PCR results, the findings for skipped results, and the number of overall results.

    Equal results count once. Raises Refusal E_NO_PCR_TEST, E_LABORATORY_ISSUERS.
    """
    raw = list(dict.fromkeys(reading.results))
    overall = _newest([each for each in raw if reading.kind(each.test) == "overall"])
    genes = _newest([each for each in raw if reading.kind(each.test) == "gene"])
    if reading.others and not raw:
        private = "; ".join(f"{test}: {count}" for test, count in reading.others.most_common(20))
        raise Refusal(reasons.NO_PCR_TEST, private=private, results=reading.others.total())
    _check_authorities(overall)
    meanings = reading.words.meanings()
    judged = [_judge(each, meanings, today) for each in overall]
    results = [each for each in judged if isinstance(each, PcrResult)]
    findings = [each for each in judged if isinstance(each, Finding)]
    return list(dict.fromkeys(results)), findings + _genes_only(genes, overall), len(overall)


def _newest(raw: Sequence[RawResult]) -> list[RawResult]:
    """Return the newest version of each result in order; at equal times, the version with the higher RANK.

    Two final versions with the same time are both kept: if they differ, the specimen is contradictory.
    """
    versions: dict[tuple[str, ...], list[RawResult]] = defaultdict(list)
    for each in raw:
        versions[each.key].append(each)
    changes = {key: _changes(of_key) for key, of_key in versions.items()}
    best = {key: max(_age(each, changes[key]) for each in of_key) for key, of_key in versions.items()}
    return [each for each in raw if _age(each, changes[each.key]) == best[each.key]]


def _changes(versions: Iterable[RawResult]) -> dict[datetime, tuple[datetime, bool]]:
    """Map the times of change of a result's versions to those that sort them, and whether these are uncertain.

    Times are compared at the precision that both have: all times in a day, hour or minute that another version has as
    its time become the beginning of it. If only some versions have a time, it says nothing. The time of a message is no
    such time: an export or a repetition has a later one.
    """
    spans = sorted({(each.version[0], max(each.version[0], each.changed_until)) for each in versions})
    times = {changed for changed, _ in spans}
    if LONG_AGO in times and len(times) > 1:
        return dict.fromkeys(times, (LONG_AGO, True))
    begins, ends = dict[datetime, datetime](), dict[datetime, datetime]()
    begin = end = LONG_AGO
    for changed, until in spans:
        begin = changed if changed >= end else begin
        end = max(end, until)
        begins[changed], ends[begin] = begin, end
    return {changed: (begin, ends[begin] > begin) for changed, begin in begins.items()}


def _age(raw: RawResult, changes: Mapping[datetime, tuple[datetime, bool]]) -> tuple[datetime, int, datetime, int, int]:
    """Return what sorts the versions of a result, the newest last.

    If the order of the changes is uncertain, the status comes before the time of the message: a final result "can only
    be changed with a corrected result", and a correction "replaces a final result" (HL7 v2.3.1, table 0085, of OBX-11).
    """
    changed, is_uncertain = changes[raw.version[0]]
    rank = RANK[raw.status]
    return changed, min(rank, RANK["corrected"]) if is_uncertain else 0, *raw.version[1:], rank


def _judge(raw: RawResult, meanings: dict[str, bool | None], today: date) -> PcrResult | Finding:
    if not isinstance(raw.patient, Identifier):
        return note(raw.patient, "", raw.where)
    patient_id = raw.patient.value
    if raw.status in NO_RESULT:
        return note(NO_RESULT[raw.status], patient_id, raw.where)
    if raw.collected is None:
        return note(reasons.DATE, patient_id, raw.collected_text)
    if raw.collected.date() > today:
        return note(reasons.PCR_DATE, patient_id, raw.collected_text)
    results = {meanings[word] for word in map(canonical, raw.value) if word in meanings}
    if len(results) != 1:  # no known word, or a code and a word that contradict each other
        return note(reasons.PCR_UNMAPPED_FLAGGED, patient_id, " / ".join(raw.value))
    return PcrResult(patient_id, raw.collected, results.pop())


def _genes_only(genes: Iterable[RawResult], overall: Iterable[RawResult]) -> list[Finding]:
    """Return a finding for each specimen (patient and time) with results only for single genes."""
    decided = {_specimen(each) for each in overall}
    alone = dict.fromkeys(_specimen(each) for each in genes if each.status in ("final", "corrected"))
    return [
        note(reasons.PCR_GENES_ONLY, patient_id, str(collected or ""))
        for patient_id, collected in alone
        if patient_id and (patient_id, collected) not in decided
    ]


def _specimen(raw: RawResult) -> tuple[str, datetime | None]:
    return raw.patient.value if isinstance(raw.patient, Identifier) else "", raw.collected


def counted(reason: Reason, counts: Counter[str]) -> list[Finding]:
    """Return a finding with the count for each key of `counts`, the most frequent first."""
    return [
        replace(note(reason, "", f"{name}: {count}"), says=f"{reason.says} ({count} times)")
        for name, count in counts.most_common()
    ]


def _check_authorities(raw: Iterable[RawResult]) -> None:
    """Refuse identifiers of two authorities, which may give one number to two people.

    One authority may have several names.
    """
    authorities = {each.patient.authorities for each in raw if isinstance(each.patient, Identifier)} - {()}
    if authorities and not set.intersection(*map(set, authorities)):
        named = "; ".join(sorted(" or ".join(names) for names in authorities))
        raise Refusal(reasons.LABORATORY_ISSUERS, private=named, issuers=len(authorities))


def files_of(path: Path) -> list[Path]:
    """Return the file itself, or the folder's files at any depth, sorted, without hidden ones.

    Raises Refusal E_TABLE_FILE.
    """
    try:
        if path.is_dir():
            return sorted(
                each
                for each in path.rglob("*")
                if each.is_file() and not any(part.startswith(".") for part in each.relative_to(path).parts)
            )
        if path.is_file():
            return [path]
    except OSError as error:
        raise Refusal(reasons.TABLE_FILE, private=str(error), table="laboratory") from error
    raise Refusal(reasons.TABLE_FILE, private=f"neither file nor folder: {path}", table="laboratory")
