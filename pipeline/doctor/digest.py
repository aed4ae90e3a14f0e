"""The hash of the data contract: two sites with the same hash check their data with the same rules."""

import hashlib
import json
from collections import Counter
from pathlib import Path

from pipeline.cohort.attrition import waterfall
from pipeline.cohort.ingest import Assessment, Material
from pipeline.doctor import contract, reasons
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.records.join import JoinRules
from pipeline.site.folder import Site

# Rules that refuse nobody and came later than others. Sites of two versions keep one contract with and without them.
LATER = {reasons.IDENTIFIER_SPELLING, reasons.CT_ONLY}
_WORDS = {"intubated": "intubated", "icu": "in intensive care", "died": "dead"}


def contract_digest(site: Site) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of rules, limits, [join], and the definition of severe.

    A site with published labels joins nothing itself: [join] then states the rules that its publisher is assumed to
    have used, and `severe_means` in [labels] defines severe. Another definition gives another digest. A site with chest
    CT only has the digest of a site with laboratory, outcomes and the same [join].
    """
    settings = site.settings
    # The rules of a site without patients.
    nobody = Assessment(Material([], None, [], []), [], [], [], [], waterfall(Counter(), None), 0)
    rules = contract.contract(contract.Facts(site, Preprocessing(), nobody, Path(), ()))
    limits = {name: value for name, value in vars(contract).items() if name.isupper() and type(value) in (int, float)}
    held_against = {
        "rules": {rule.reason.code: [rule.area, rule.severity] for rule in rules if rule.reason not in LATER},
        "limits": limits,
        "join": {**settings.join.model_dump(), "severe_events": sorted(settings.join.severe_events)},
        "severe": settings.labels.severe_means if settings.labels else severe_means(settings.join),
    }
    return hashlib.sha256(json.dumps(held_against, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def severe_means(rules: JoinRules) -> str:
    """Define severe according to [join], in the words of `severe_means` in [labels]."""
    events = [word for event, word in _WORDS.items() if event in rules.severe_events]
    return f"{' or '.join(events)} within {rules.horizon_days} days of the CT"
