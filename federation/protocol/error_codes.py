"""The codes that an error from a site may contain: closed tables, so that a code cannot carry a message.

A code is read at the beginning of an error's text and looked up. A code that is not in the table becomes E_SITE_FAILED;
the rest of the text is discarded.
"""

import re

import models.reasons
import pipeline.feeds.reasons
from federation.protocol.reasons import COMPUTE_NEED, EMBEDDINGS, SITE_FAILED
from models.reason_tables import reasons_in, tables
from pipeline.cohort.reasons import COHORT_FILE, PREPROCESSING
from pipeline.doctor.reasons import TOO_FEW_PATIENTS
from pipeline.preprocessing.reasons import NO_LUNGS, NOT_A_WHOLE_CHEST
from pipeline.site.reasons import NO_SITE, SITE_KEY
from pipeline.system.codes import BY_CODE

_CODE = re.compile(r"E_[A-Z_]{2,40}(?=\Z|[:\s])")
FAILED = SITE_FAILED.code

# The codes that this release's own app can raise at a site with a gateway. A private round's budget is not among them:
# the gateway charges it before the app receives the task. Nor are the codes of wrong settings in [compute], to keep the
# table short: the site's log has them.
OF_APPS: frozenset[str] = frozenset(
    reason.code
    for reason in (
        SITE_FAILED,
        EMBEDDINGS,
        COMPUTE_NEED,
        models.reasons.COMPUTE_DEVICE,
        models.reasons.COMPUTE_FAILED,
        models.reasons.COMPUTE_MEMORY,
        models.reasons.SETTINGS_FILE,
        models.reasons.SETTINGS_KEY,
        models.reasons.SETTINGS_SYNTAX,
        COHORT_FILE,
        NO_LUNGS,
        NO_SITE,
        NOT_A_WHOLE_CHEST,
        PREPROCESSING,
        SITE_KEY,
        TOO_FEW_PATIENTS,
    )
)
# The codes with which a gateway refuses, including its app's; also those of simulated sites, which have no gateway. The
# codes of receiving and fetching records are raised only by commands of hospital IT.
_OF_FEEDS = reasons_in(pipeline.feeds.reasons)
OF_SITES: frozenset[str] = frozenset(
    reason.code
    for reason in (*reasons_in(models.reasons, *tables("federation").values()), *BY_CODE.values())
    if reason.refuses and reason not in _OF_FEEDS
)


def code_in(text: str | None, allowed: frozenset[str] = OF_SITES) -> str:
    """Return the code at the beginning of an error's text if it is `allowed`; else E_SITE_FAILED."""
    match = _CODE.match(text or "")
    return match.group() if match and match.group() in allowed else FAILED
