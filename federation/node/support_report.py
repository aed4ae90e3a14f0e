"""A report on a node for whoever helps the hospital: states, counts, times and codes, and no word of a log.

Logs and the app's output can name patients or files, so only known codes in them are counted. Of the ledger, kinds that
contain a person's note are left out.
"""

import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from federation.ledger.chain import PASSED, Ledger, ledger_file, read_lines
from federation.ledger.restored import is_restored
from federation.node.start import node_status
from federation.system.refusals_page import REASONS
from models.refusal import Refusal
from pipeline.site.folder import Site

_CODE = re.compile(rb"\b[EW]_[A-Z_]+\b")
# Of the node's status; its other fields can hold an app's words, a name of the hospital or a path.
_STATUS = (
    *("running", "since", "connection", "last_contact", "rounds", "last_refusal", "last_refusal_at", "masked_rounds"),
    *("processor", "version", "certificate_until", "last_ingest"),
)
_READ_BYTES = 16 * 2**20  # of the end of each log


def support_report(site: Site) -> dict[str, Any]:
    """Return the report as JSON values. Raises Refusal E_COHORT_FILE."""
    status = node_status(site)
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "node": {name: status[name] for name in _STATUS},
        "refusals_at_ingest": _refusals(site),
        "gateway": site.settings.gateway.model_dump(mode="json"),
        "sandbox": site.settings.sandbox.kind,
        "ledger": _ledger(site),
        "codes_in_logs": {log.name: _codes(log.read_bytes()) for log in sorted(site.logs.glob("*.log*"))},
    }


def _codes(content: bytes) -> dict[str, int]:
    """Count the codes that this release knows; others could be chosen by an app."""
    found = Counter(code.decode() for code in _CODE.findall(content[-_READ_BYTES:]))
    return {code: count for code, count in sorted(found.items()) if code in REASONS}


def _refusals(site: Site) -> Mapping[str, int]:
    """Count the findings of the last ingest by code."""
    from pipeline.cohort.store import Cohort

    with Cohort(site) as cohort:
        return dict(Counter(row.code for row in cohort.findings()))


def _ledger(site: Site) -> dict[str, Any]:
    """Return the number of the ledger's lines, and how many messages passed and were refused; or why it is damaged."""
    try:
        Ledger(ledger_file(site))  # sets an incomplete last line aside
        lines = list(read_lines(ledger_file(site)))
    except Refusal as refusal:
        return {"problem": refusal.code}
    codes = Counter(line.verdict for line in lines if line.verdict != PASSED)
    return {
        "lines": len(lines),
        "passed": Counter(line.direction for line in lines if line.verdict == PASSED),
        "refused": {code: count for code, count in sorted(codes.items()) if code in REASONS},
        "restored": is_restored(lines),
    }
