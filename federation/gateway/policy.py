"""The digest of the site's rules, which every line of the ledger holds."""

import hashlib
import json
from dataclasses import asdict

from federation.protocol.metric_allowlist import EXAMPLES_OF, FIGURES
from pipeline.site.folder import SiteSettings


def policy_digest(settings: SiteSettings) -> str:
    """Return the SHA-256 over the canonical JSON of all rules: site.toml's tables and the figures that may leave."""
    rules = {
        "min_patients": settings.site.min_patients,
        "gateway": settings.gateway.model_dump(mode="json"),
        "privacy": settings.privacy.model_dump(mode="json"),
        "figures": {kind: {name: asdict(figure) for name, figure in table.items()} for kind, table in FIGURES.items()},
        "examples_of": EXAMPLES_OF,
    }
    return hashlib.sha256(json.dumps(rules, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
