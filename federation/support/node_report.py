"""The report on a node. Of the ledger, kinds that contain a person's note are left out."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from federation.ledger.chain import PASSED, Ledger, ledger_file, read_lines
from federation.ledger.restored import is_restored
from federation.node.start import node_status
from federation.node.state import APP_LOG
from federation.support.log_summary import log_summary
from federation.support.sections import databases, disk, head, section, tally
from federation.support.settings_summary import settings_summary
from federation.system.refusals_page import REASONS
from federation.upgrade.sites import stores
from models.refusal import Refusal
from pipeline.cohort.workers import FAILURES
from pipeline.site.folder import Site
from pipeline.site.reasons import NO_SITE

# Of the node's status; its other fields can hold an app's words, a name of the hospital or a path.
_STATUS = (
    *("running", "since", "connection", "last_contact", "rounds", "last_refusal", "last_refusal_at", "masked_rounds"),
    *("processor", "certificate_until", "last_ingest"),
)
_LOGS, _LOGS_OF_APP = ("node.log", "gateway.log", FAILURES), (APP_LOG, "sandbox.log")
_PARTS = ("cohort", "pacs", "pull", "fhir", "omop", "results", "gateway", "ledger", "logs", "flower_home", "networks")


def node_report(folder: Path) -> dict[str, Any]:
    """Return the report as JSON values; of wrong settings only the code. Raises Refusal E_NO_SITE."""
    try:
        site = Site.open(folder)
    except Refusal as refusal:
        if refusal.reason is NO_SITE:
            raise
        return {**head(folder), "settings": {"problem": refusal.code}, **_files(folder)}
    return {
        **head(folder),
        "settings": settings_summary(site.settings),
        "node": section(lambda: _status(site)),
        "refusals_at_ingest": section(lambda: _refusals(site)),
        "ledger": section(lambda: _ledger(site)),
        "databases": section(lambda: databases(stores(site))),
        **_files(folder),
    }


def _files(folder: Path) -> dict[str, Any]:
    return {
        "disk": section(lambda: disk(folder, _PARTS)),
        "logs": section(lambda: log_summary(folder / "logs", _LOGS, of_app=_LOGS_OF_APP)),
    }


def _status(site: Site) -> dict[str, Any]:
    status = node_status(site)
    return {name: status[name] for name in _STATUS}


def _refusals(site: Site) -> Mapping[str, int]:
    """Count the findings of the last ingest by code."""
    from pipeline.cohort.store import Cohort

    with Cohort(site) as cohort:
        return tally((row.code for row in cohort.findings()), REASONS)


def _ledger(site: Site) -> dict[str, Any]:
    """Return the number of the ledger's lines, and how many messages passed and were refused; or why it is damaged."""
    Ledger(ledger_file(site))  # sets an incomplete last line aside
    lines = list(read_lines(ledger_file(site)))
    codes = Counter(line.verdict for line in lines if line.verdict != PASSED)
    return {
        "lines": len(lines),
        "passed": Counter(line.direction for line in lines if line.verdict == PASSED),
        "refused": {code: count for code, count in sorted(codes.items()) if code in REASONS},
        "restored": is_restored(lines),
    }
