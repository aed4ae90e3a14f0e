"""Shows how the cohort depends on the windows of the join, by labelling it once for each window."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from pipeline.records.join import JoinRules, Records, label

# The rules that are varied, and over which days. The other rules keep their values.
VARIED = {
    "positive_from_days": range(-14, 1),
    "positive_to_days": range(8),
    "negative_to_days": range(15),
}


@dataclass(frozen=True)
class Variant:
    """Number of positive, negative and undecided patients if `rule` were `days`."""

    rule: str
    days: int
    positive: int
    negative: int
    undecided: int


def vary(cts: Sequence[tuple[str, datetime]], records: Records, rules: JoinRules) -> list[Variant]:
    """Label all CTs (pseudonym, time) again for each window; windows that [join] does not allow are skipped."""
    variants = []
    for rule, usual in VARIED.items():
        for days in sorted({*usual, getattr(rules, rule)}):
            try:
                changed = JoinRules.model_validate({**rules.model_dump(), rule: days})
            except ValidationError:
                continue
            found = [label(pseudonym, ct, records, changed) for pseudonym, ct in cts]
            positive = sum(each.pcr_positive is True for each in found)
            negative = sum(each.pcr_positive is False for each in found)
            variants.append(Variant(rule, days, positive, negative, len(cts) - positive - negative))
    return variants
