"""The local audit: how often readers agree with the model, why they do not, and whether scans or figures drift.

It counts the newest decision of each answer, over the newest 2000 answers of the live model. Nothing leaves the clinic.
Where the node's records tell what became of the patients, it also compares probabilities and levels with that
(`calibration.py`). Three figures are compared with 3 standard errors, so that chance alone gives an alert in about 3 of
1000 looks:

familiarity    distance of the scans from those that the model was trained on, as a share of its limit: the newest
               answers against all before
pcr            mean probability of a positive PCR against the share of positive results, where one is known
severe         mean probability of a severe course against the share of severe courses, over patients with a positive
               PCR whose outcome is known

A scan that a reader rejected as the wrong scan, or for its image quality, has a decision but no outcome. A PCR
result whose specimen is of a day outside its window around the CT does not count (`pcr_day.py`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import fmean, variance
from typing import Any

from pipeline.clinic.calibration import LocalCalibration, Scored, first_of_each_patient, local_calibration
from pipeline.clinic.later_outcomes import LaterOutcomes
from pipeline.clinic.records import Answer, Verdict, WhyNot
from pipeline.clinic.review import is_not_their_scan, reviewed_levels
from pipeline.clinic.store import Store
from pipeline.scoring.verdict import withheld

MOST = 2000  # answers
NEWEST = 50  # answers whose familiarity is compared with all before
LEAST = 20  # answers on each side of a comparison, or with a known outcome
ALERT = 3.0  # standard errors


@dataclass(frozen=True)
class Drift:
    """A comparison. `before`, `now`: the two means. `errors`: their difference in standard errors; None: too few."""

    before: float | None
    now: float | None
    answers: int
    errors: float | None

    @property
    def is_alert(self) -> bool:
        return self.errors is not None and abs(self.errors) > ALERT


@dataclass(frozen=True)
class LocalAudit:
    """The audit of the live model.

    `answers`: of patients, without those that are withheld. `levels`: by label, pairs of the model's and the reader's
    level with their number, over accepted and corrected answers with a level of the model. `calibration`: by label,
    where outcomes are known. `outcomes_code`: why the node's outcomes cannot be read.
    """

    model_sha256: str
    answers: int
    verdicts: dict[Verdict, int]
    reasons: dict[WhyNot, int]
    levels: dict[str, dict[tuple[str, str], int]]
    drift: dict[str, Drift]
    calibration: dict[str, LocalCalibration]
    outcomes_code: str | None = None

    def agreement(self, label: str) -> float | None:
        """Return the share of levels that the reader left as they were; None without any."""
        pairs = self.levels.get(label, {})
        total = sum(pairs.values())
        return sum(count for (said, read), count in pairs.items() if said == read) / total if total else None

    def to_json(self) -> dict[str, Any]:
        return {
            "model_sha256": self.model_sha256,
            "answers": self.answers,
            "undecided": self.answers - sum(self.verdicts.values()),
            "verdicts": self.verdicts,
            "reasons": self.reasons,
            "levels": {
                label: {
                    "agreement": self.agreement(label),
                    "pairs": [
                        {"model": said, "reader": read, "answers": count}
                        for (said, read), count in sorted(pairs.items())
                    ],
                }
                for label, pairs in self.levels.items()
            },
            "drift": {name: {**asdict(each), "alert": each.is_alert} for name, each in self.drift.items()},
            "calibration": {label: each.to_json() for label, each in self.calibration.items()},
            "outcomes_code": self.outcomes_code,
        }


def local_audit(store: Store, later: LaterOutcomes | None = None) -> LocalAudit | None:
    """Audit the live model; None if there is none. `later`: what is known of outcomes. Raises Refusal E_CLINIC_FILE."""
    later = later or LaterOutcomes()
    live = store.models.with_role("live")
    if live is None:
        return None
    answers = [each for each in store.answers.of_model(live.sha256, MOST) if not withheld(each.score)]
    levels: dict[str, Counter[tuple[str, str]]] = {}
    for each in answers:
        if each.decision and each.decision.is_valid:
            for label, said in (each.score.get("level") or {}).items():
                if said:
                    levels.setdefault(label, Counter())[said, str(reviewed_levels(each)[label])] += 1
    decisions = [each.decision for each in answers if each.decision]
    theirs = [each for each in answers if not is_not_their_scan(each)]
    positive_pcr = _with_outcome(theirs, "pcr_positive", later.pcr_positive)
    severe = _with_outcome(theirs, "severe", lambda each: later.severe(each) if later.pcr_positive(each) else None)
    calibration = {"severe": local_calibration(severe), "pcr_positive": local_calibration(positive_pcr)}
    return LocalAudit(
        model_sha256=live.sha256,
        answers=len(answers),
        verdicts=dict(Counter(each.verdict for each in decisions)),
        reasons=dict(Counter(each.reason for each in decisions if each.reason)),
        levels={label: dict(pairs) for label, pairs in sorted(levels.items())},
        drift={
            "familiarity": _familiarity([each.score for each in answers]),
            "pcr": _against_outcomes(positive_pcr),
            "severe": _against_outcomes(first_of_each_patient(severe)),
        },
        calibration={label: found for label, found in calibration.items() if found},
        outcomes_code=later.refusal.code if later.refusal else None,
    )


def _with_outcome(answers: Sequence[Answer], label: str, outcome: Callable[[Answer], bool | None]) -> list[Scored]:
    """Return the answers whose outcome is known; one without a patient's key stands for a patient of its own."""
    found = []
    for each in answers:
        if label in each.score["probability"] and (has_event := outcome(each)) is not None:
            found.append(
                Scored(
                    patient=(each.patient.key if each.patient else "") or each.id,
                    probability=each.score["probability"][label],
                    has_event=has_event,
                    model=(each.score.get("level") or {}).get(label) or "",
                    reader=(reviewed_levels(each).get(label) or "") if each.decision and each.decision.is_valid else "",
                )
            )
    return found


def _familiarity(scores: Sequence[dict[str, Any]]) -> Drift:
    known = [each for score in scores if (each := score.get("familiarity"))]
    shares = [each["distance"] / each["limit"] for each in known if each["limit"]]
    before, now = shares[:-NEWEST], shares[-NEWEST:]
    if min(len(before), len(now)) < LEAST:
        return Drift(None, fmean(now) if now else None, len(shares), None)
    error = sqrt(variance(before) / len(before) + variance(now) / len(now))
    return Drift(fmean(before), fmean(now), len(shares), _errors(fmean(now) - fmean(before), error))


def _against_outcomes(known: Sequence[Scored]) -> Drift:
    """Compare expected and observed events, as if all probabilities were right."""
    if len(known) < LEAST:
        return Drift(None, None, len(known), None)
    expected, observed = fmean(each.probability for each in known), fmean(each.has_event for each in known)
    error = sqrt(sum(each.probability * (1 - each.probability) for each in known)) / len(known)
    return Drift(expected, observed, len(known), _errors(observed - expected, error))


def _errors(difference: float, error: float) -> float | None:
    return difference / error if error else None
