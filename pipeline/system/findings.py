"""Defines a finding: one reason found for one patient or file; only counts of findings leave the site."""

from dataclasses import dataclass

from models.refusal import Reason


@dataclass(frozen=True)
class Finding:
    """One reason, and where it was found.

    `patient_id` and `detail` (a path, the text of a cell) are shown only on the site's own screen. A stored finding has
    a pseudonym instead of the first and nothing instead of the second. `series` is the start of the series'
    fingerprint; `says` is the reason's text with its numbers, if it has any.
    """

    reason: Reason
    patient_id: str = ""
    detail: str = ""
    series: str = ""
    says: str = ""
