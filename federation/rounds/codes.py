"""The codes that may stand in a site's error: closed tables, so that a code can spell nothing.

A code is read at the beginning of an error's text and looked up. What is not in the table becomes E_SITE_FAILED; the
rest of the text is never passed on.
"""

import re

import federation.reasons
import models.reasons
import pipeline.reasons
from federation.refusals_page import table

_CODE = re.compile(r"E_[A-Z_]{2,40}(?=\Z|[:\s])")
FAILED = federation.reasons.SITE_FAILED.code

# What the release's own app raises for a site whose gateway is at work. A private round's budget is not among them:
# the gateway charges it before the app has the task.
OF_APPS: frozenset[str] = frozenset(
    reason.code
    for reason in (
        federation.reasons.SITE_FAILED,
        federation.reasons.EMBEDDINGS,
        models.reasons.SETTINGS_FILE,
        models.reasons.SETTINGS_KEY,
        models.reasons.SETTINGS_SYNTAX,
        pipeline.reasons.COHORT_FILE,
        pipeline.reasons.NO_LUNGS,
        pipeline.reasons.NO_SITE,
        pipeline.reasons.NOT_A_WHOLE_CHEST,
        pipeline.reasons.PREPROCESSING,
        pipeline.reasons.SITE_KEY,
        pipeline.reasons.TOO_FEW_PATIENTS,
    )
)
# What a gateway refuses for, its app's codes included. Also of simulated sites, which have no gateway.
OF_SITES: frozenset[str] = frozenset(
    reason.code
    for module in (federation.reasons, pipeline.reasons, models.reasons)
    for reason in table(module)
    if reason.refuses
)


def code_in(text: str | None, allowed: frozenset[str] = OF_SITES) -> str:
    """The code at the beginning of an error's text if it is one of the `allowed`; else E_SITE_FAILED."""
    match = _CODE.match(text or "")
    return match.group() if match and match.group() in allowed else FAILED
