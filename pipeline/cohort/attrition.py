"""Counts how many series and patients each rule excludes, from the series found to patients with a known outcome.

The counts form a tree: the parts of a count add up to it, because every series and every patient is counted once.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.cohort.reasons import DUPLICATE_SCAN, SHARED_STUDY
from pipeline.cohort.selection import OTHER_EXAMINATION, OTHER_SERIES, USED
from pipeline.records.join import Labels
from pipeline.system.codes import BY_CODE

_UNLABELLED = "patients without a label, kept apart; only an approved pretraining uses them"
_AFTER_ACCEPTANCE = {DUPLICATE_SCAN.code, SHARED_STUDY.code}


@dataclass(frozen=True)
class Count:
    """One count; its `parts` add up to it. `key`: unique; for a refusal, it is the code.

    `stays`: the counted series or patients continue to the next rule. Other counts are omitted if they are 0.
    """

    key: str
    says: str
    count: int
    parts: tuple["Count", ...] = ()
    stays: bool = False

    @property
    def code(self) -> str:
        """The code of the reason, '' if it is not a refusal."""
        code = self.key.removeprefix("positive_").removeprefix("untested_")
        return code if code in BY_CODE else ""

    def walk(self, depth: int = 0) -> Iterator[tuple[int, "Count"]]:
        """Yield every count with its depth, in reading order."""
        yield depth, self
        for part in self.parts:
            yield from part.walk(depth + 1)

    def to_json(self) -> dict[str, Any]:
        parts = [part.to_json() for part in self.parts]
        return {"key": self.key, "says": self.says, "count": self.count, "stays": self.stays, "parts": parts}


def plain(text: str) -> str:
    """Return the text of a reason without the numbers of one case."""
    without_asides = re.sub(r" \([^()]*\{\w+\}[^()]*\)", "", text)
    return re.sub(r"\{\w+\}", "…", re.sub(r"^\{\w+\} (?!%)", "", without_asides))


def waterfall(
    fates: Counter[str], labels: Sequence[Labels] | None, *, keeps_unlabelled: bool = False, has_labels: bool = True
) -> Count:
    """Make the tree of counts from the `fates` of all series and the `labels` of the used ones (None if unknown).

    `keeps_unlabelled`: whether the site keeps patients without a label; they get a line of their own. `has_labels`:
    False for a site with chest CT only, whose patients need no reason for a missing label.
    """
    refused = Counter({code: n for code, n in fates.items() if code in BY_CODE and code not in _AFTER_ACCEPTANCE})
    shared = Counter({code: n for code, n in fates.items() if code in _AFTER_ACCEPTANCE})
    parts = _labelled(labels or (), keeps_unlabelled) if has_labels else _all_unlabelled(labels or ())
    patients = Count("patients", "patients with a usable CT", fates[USED], parts, stays=True)
    accepted = Count(
        "accepted",
        "series accepted",
        fates.total() - refused.total(),
        (
            *_reasons(shared),
            *_unused("other_series", "other series of the same examination", fates[OTHER_SERIES]),
            *_unused("later", "series of other examinations", fates[OTHER_EXAMINATION]),
            patients,
        ),
        stays=True,
    )
    return Count("found", "series found", fates.total(), (*_reasons(refused), accepted), stays=True)


def _reasons(counts: Counter[str], of: str = "") -> Iterator[Count]:
    """Yield counts sorted by code; an order by count would reveal something about suppressed counts."""
    for code, count in sorted(counts.items()):
        yield Count(of + code, plain(BY_CODE[code].says), count)


def _unused(key: str, says: str, count: int) -> Iterator[Count]:
    if count:
        yield Count(key, says, count)


def _labelled(labels: Sequence[Labels], keeps_unlabelled: bool) -> tuple[Count, ...]:
    if not labels:
        return ()
    refused = Counter(each.reason.code for each in labels if each.reason)
    kept = [each for each in labels if each.reason is None]
    # Only public data sets have patients without PCR result; in some of them no patient has one.
    untested = [each for each in kept if each.pcr_positive is None]
    tested = (("positive", True), ("negative", False)) if len(untested) < len(kept) or not kept else ()
    parts = tuple(_class(key, [each for each in kept if each.pcr_positive is label]) for key, label in tested)
    if untested:
        parts += (_class("untested", untested),)
    without = tuple(_reasons(refused))
    if keeps_unlabelled:
        without = (Count("unlabelled", _UNLABELLED, refused.total(), without, stays=True),)
    return (*without, Count("labelled", "patients labelled", len(kept), parts, stays=True))


def _all_unlabelled(labels: Sequence[Labels]) -> tuple[Count, ...]:
    return (Count("unlabelled", _UNLABELLED, len(labels), stays=True),) if labels else ()


def _class(key: str, labels: Sequence[Labels]) -> Count:
    """Make the count of one class of the PCR label; the outcome of negative patients is not used."""
    if key == "negative":
        return Count(key, "PCR-negative", len(labels), stays=True)
    unknown = Counter(each.severe_reason.code for each in labels if each.severe_reason)
    course = (
        Count(f"{key}_severe", "severe course", sum(each.severe is True for each in labels), stays=True),
        Count(f"{key}_mild", "no severe course", sum(each.severe is False for each in labels), stays=True),
        *_reasons(unknown, f"{key}_"),
    )
    says = "PCR-positive" if key == "positive" else "without PCR result"
    return Count(key, says, len(labels), course if labels else (), stays=True)
