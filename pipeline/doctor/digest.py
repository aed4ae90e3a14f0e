"""The data contract as one hash: two sites that share it hold their data against the same rules."""

import hashlib
import json
from collections import Counter
from pathlib import Path

from pipeline.cohort.attrition import waterfall
from pipeline.cohort.ingest import Assessment, Material
from pipeline.doctor import contract
from pipeline.preprocessing.preprocess import Preprocessing
from pipeline.records.join import JoinRules
from pipeline.site.folder import Site

_WORDS = {"intubated": "intubated", "icu": "in intensive care", "died": "dead"}


def contract_digest(site: Site) -> str:
    """SHA-256 (hex) over the canonical JSON of the contract's rules and limits, of [join], and of what severe means.

    Published labels are joined by nobody here: for such a site [join] says by which rules its publisher is taken to
    have worked, and `severe_means` in [labels] what severe is. It is another digest where those words are others.
    """
    settings = site.settings
    # The rules as they are listed for a site that has no patient yet.
    nobody = Assessment(Material([], None, [], []), [], [], [], [], waterfall(Counter(), None), 0)
    rules = contract.contract(contract.Facts(site, Preprocessing(), nobody, Path(), ()))
    limits = {name: value for name, value in vars(contract).items() if name.isupper() and type(value) in (int, float)}
    held_against = {
        "rules": {rule.reason.code: [rule.area, rule.severity] for rule in rules},
        "limits": limits,
        "join": {**settings.join.model_dump(), "severe_events": sorted(settings.join.severe_events)},
        "severe": settings.labels.severe_means if settings.labels else severe_means(settings.join),
    }
    return hashlib.sha256(json.dumps(held_against, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def severe_means(rules: JoinRules) -> str:
    """What severe is by [join], in the words of `severe_means` in [labels]."""
    events = [word for event, word in _WORDS.items() if event in rules.severe_events]
    return f"{' or '.join(events)} within {rules.horizon_days} days of the CT"
