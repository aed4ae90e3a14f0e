"""The local audit: how often readers agree with the model, why they do not, and whether scans or figures drift.

It counts the newest decision of each answer, over the newest 2000 answers of the live model. Nothing leaves the clinic.
Two figures are compared with 3 standard errors, so that chance alone gives an alert in about 3 of 1000 looks:

familiarity    distance of the scans from those that the model was trained on, as a share of its limit: the newest
               answers against all before
pcr            mean probability of a positive PCR against the share of positive results, where one is known
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import fmean, variance
from typing import Any

from pipeline.clinic.records import Correction, Verdict, WhyNot
from pipeline.clinic.store import Store
from pipeline.scoring.verdict import redecided, withheld

MOST = 2000  # answers
NEWEST = 50  # answers whose familiarity is compared with all before
LEAST = 20  # answers on each side of a comparison, or with a PCR result
ALERT = 3.0  # standard errors
_ANSWERS = """
    SELECT answers.score, model_sha256, result, verdict, reason, correction FROM answers
    LEFT JOIN pcr ON pcr.answer_id = answers.id
    LEFT JOIN decisions ON decisions.number = (SELECT max(number) FROM decisions WHERE answer_id = answers.id)
    WHERE role = 'live' AND model_sha256 = ? ORDER BY answers.number DESC LIMIT ?
"""


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
    level with their number, over accepted and corrected answers with a level of the model.
    """

    model_sha256: str
    answers: int
    verdicts: dict[Verdict, int]
    reasons: dict[WhyNot, int]
    levels: dict[str, dict[tuple[str, str], int]]
    drift: dict[str, Drift]

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
        }


def local_audit(store: Store) -> LocalAudit | None:
    """Audit the live model; None if there is none. Raises Refusal E_CLINIC_FILE."""
    live = store.models.with_role("live")
    if live is None:
        return None
    found = reversed(store.database.rows(_ANSWERS, live.sha256, MOST))
    rows = [(redecided(json.loads(row["score"])), row) for row in found]
    rows = [(score, row) for score, row in rows if not withheld(score)]
    levels: dict[str, Counter[tuple[str, str]]] = {}
    for score, row in rows:
        if row["verdict"] in ("accepted", "corrected"):
            corrected = Correction(**json.loads(row["correction"])).levels
            for label, said in (score.get("level") or {}).items():
                if said:
                    levels.setdefault(label, Counter())[said, corrected.get(label, said)] += 1
    scores = [score for score, _ in rows]
    return LocalAudit(
        model_sha256=live.sha256,
        answers=len(rows),
        verdicts=dict(Counter(row["verdict"] for _, row in rows if row["verdict"])),
        reasons=dict(Counter(row["reason"] for _, row in rows if row["reason"])),
        levels={label: dict(pairs) for label, pairs in sorted(levels.items())},
        drift={
            "familiarity": _familiarity(scores),
            "pcr": _pcr([(score, row["result"]) for score, row in rows]),
        },
    )


def _familiarity(scores: Sequence[dict[str, Any]]) -> Drift:
    known = [each for score in scores if (each := score.get("familiarity"))]
    shares = [each["distance"] / each["limit"] for each in known if each["limit"]]
    before, now = shares[:-NEWEST], shares[-NEWEST:]
    if min(len(before), len(now)) < LEAST:
        return Drift(None, fmean(now) if now else None, len(shares), None)
    error = sqrt(variance(before) / len(before) + variance(now) / len(now))
    return Drift(fmean(before), fmean(now), len(shares), _errors(fmean(now) - fmean(before), error))


def _pcr(answers: Sequence[tuple[dict[str, Any], str | None]]) -> Drift:
    """Compare expected and observed positive results, as if all probabilities were right."""
    known = [
        (score["probability"]["pcr_positive"], result == "positive")
        for score, result in answers
        if result in ("positive", "negative") and "pcr_positive" in score["probability"]
    ]
    if len(known) < LEAST:
        return Drift(None, None, len(known), None)
    expected, observed = fmean(p for p, _ in known), fmean(is_positive for _, is_positive in known)
    error = sqrt(sum(p * (1 - p) for p, _ in known)) / len(known)
    return Drift(expected, observed, len(known), _errors(observed - expected, error))


def _errors(difference: float, error: float) -> float | None:
    return difference / error if error else None
