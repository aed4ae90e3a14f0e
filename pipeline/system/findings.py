"""A finding: one reason met at one patient or file, for the site's own eyes until it is counted."""

from dataclasses import dataclass

from models.refusal import Reason


@dataclass(frozen=True)
class Finding:
    """One reason, where it was met.

    `patient_id` and `detail` (a path, the text of a cell) are for the site's own screen: what is stored has a
    pseudonym in place of the first and nothing in place of the second. `series` is the start of the series'
    fingerprint, `says` the reason's text with its numbers, where it has any. Only counts of findings are ever shown
    elsewhere.
    """

    reason: Reason
    patient_id: str = ""
    detail: str = ""
    series: str = ""
    says: str = ""
