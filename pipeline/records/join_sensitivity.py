"""How the cohort would change with the windows of the join: the same labelling, once for each window."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from pipeline.records.join import JoinRules, Records, label

# Which rule is varied over which days, the others staying as they are.
VARIED = {
    "positive_from_days": range(-14, 1),
    "positive_to_days": range(8),
    "negative_to_days": range(15),
}


@dataclass(frozen=True)
class Variant:
    """How many patients would be what, if `rule` were `days`."""

    rule: str
    days: int
    positive: int
    negative: int
    undecided: int


def vary(cts: Sequence[tuple[str, datetime]], records: Records, rules: JoinRules) -> list[Variant]:
    """Label all CTs (pseudonym, time) anew for each window; what [join] would not allow is left out."""
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
