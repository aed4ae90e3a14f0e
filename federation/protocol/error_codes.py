"""The codes that may stand in a site's error: closed tables, so that a code can spell nothing.

A code is read at the beginning of an error's text and looked up. What is not in the table becomes E_SITE_FAILED; the
rest of the text is never passed on.
"""

import re

import federation.system.reasons
import models.reasons
import pipeline.system.reasons
from federation.system.refusals_page import table

_CODE = re.compile(r"E_[A-Z_]{2,40}(?=\Z|[:\s])")
FAILED = federation.system.reasons.SITE_FAILED.code

# What the release's own app raises for a site whose gateway is at work. A private round's budget is not among them:
# the gateway charges it before the app has the task.
OF_APPS: frozenset[str] = frozenset(
    reason.code
    for reason in (
        federation.system.reasons.SITE_FAILED,
        federation.system.reasons.EMBEDDINGS,
        models.reasons.SETTINGS_FILE,
        models.reasons.SETTINGS_KEY,
        models.reasons.SETTINGS_SYNTAX,
        pipeline.system.reasons.COHORT_FILE,
        pipeline.system.reasons.NO_LUNGS,
        pipeline.system.reasons.NO_SITE,
        pipeline.system.reasons.NOT_A_WHOLE_CHEST,
        pipeline.system.reasons.PREPROCESSING,
        pipeline.system.reasons.SITE_KEY,
        pipeline.system.reasons.TOO_FEW_PATIENTS,
    )
)
# What a gateway refuses for, its app's codes included. Also of simulated sites, which have no gateway.
OF_SITES: frozenset[str] = frozenset(
    reason.code
    for module in (federation.system.reasons, pipeline.system.reasons, models.reasons)
    for reason in table(module)
    if reason.refuses
)


def code_in(text: str | None, allowed: frozenset[str] = OF_SITES) -> str:
    """The code at the beginning of an error's text if it is one of the `allowed`; else E_SITE_FAILED."""
    match = _CODE.match(text or "")
    return match.group() if match and match.group() in allowed else FAILED
