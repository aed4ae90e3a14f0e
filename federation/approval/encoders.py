"""A site's decisions about frozen encoders, by each encoder's name.

SITE_DIR/encoders/<sha256>/     an approved encoder: encoder.json, whose SHA-256 is its name, and its weights
SITE_DIR/encoders/approvals.json, <sha256>.json   the decisions, and the descriptions decided on (`decisions`)

Works without torch, for the gateway.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from federation.approval import reasons
from federation.approval.decisions import Decision, Decisions
from federation.ledger.chain import ledger_file
from federation.protocol.release_files import ENCODER_FILES, ENCODERS, copy_release
from federation.system.digests import SHA256
from models.encoder_layers import encoded_name
from models.refusal import Refusal
from pipeline.cohort.store import Cohort
from pipeline.site.folder import Site

_MAX_CARD_BYTES = 2**16


def encoder_of(study: str) -> str:
    """Return the name of a study's encoder (the study as JSON); "" if it has none. Raises Refusal E_RUN_CONFIG."""
    table = json.loads(study).get("network", {})
    name = table.get("encoder", "") if isinstance(table, dict) else None
    if not isinstance(name, str) or (name and not SHA256.fullmatch(name)):
        raise Refusal(reasons.RUN_CONFIG, private="the encoder is not a SHA-256")
    return name


def tuned_of(study: str) -> tuple[int, object]:
    """Return how many stages of its encoder a study (JSON) tunes, and the layers that it says the encoder has.

    Raises Refusal E_RUN_CONFIG.
    """
    table = json.loads(study).get("network", {})
    stages = table.get("tuned_stages", 0)
    if type(stages) is not int or stages < 0:
        raise Refusal(reasons.RUN_CONFIG, private="tuned_stages is not a number of stages")
    return stages, table.get("encoder_layers")


def is_private(study: str) -> bool:
    """Whether a study (JSON) promises differential privacy."""
    return json.loads(study).get("privacy") is not None


class EncoderApprovals:
    """A site's decisions about encoders."""

    def __init__(self, site: Site) -> None:
        self._site, self.folder = site, site.folder / ENCODERS
        self._decisions = Decisions(
            self.folder, ledger_file(site), suffix=".json", max_bytes=_MAX_CARD_BYTES, what="encoder"
        )

    def check(self, study: str) -> None:
        """Check that a study (JSON) may use its encoder here now, and that what its frozen layers compute is there.

        Raises Refusal: E_ENCODER_REFUSED, E_ENCODER_LEARNT, E_NOT_ENCODED, E_RUN_CONFIG, E_APPROVALS, E_COHORT_FILE.
        """
        name = encoder_of(study)
        if not name:
            return
        if not self.may_use(name):
            raise Refusal(reasons.ENCODER_REFUSED, private=name)
        if is_private(study) and self._site.name in self._card(name).get("learnt_at", ()):
            raise Refusal(reasons.ENCODER_LEARNT, private=name)
        stages, layers = tuned_of(study)
        if stages and not self.has_layers(name, layers):
            raise Refusal(reasons.ENCODER_REFUSED, private="the study says that the encoder has other layers")
        with Cohort.read(self._site) as cohort:
            cohort.require_encoded(encoded_name(name, stages))

    def has_layers(self, sha256: str, layers: object) -> bool:
        """Tell whether the card of an encoder describes these layers (as JSON)."""
        described = self._card(sha256).get("layers")
        return described is not None and layers == described

    def _card(self, sha256: str) -> dict[str, Any]:
        """Return the card of an encoder with a decision; {} if it cannot be found."""
        card: dict[str, Any] = json.loads(self._decisions.content(sha256) or b"{}")
        return card

    def may_use(self, sha256: str) -> bool:
        """Tell whether studies may use this encoder now. Raises Refusal E_APPROVALS."""
        decision = self._decisions.last(sha256)
        return decision is not None and decision.decided == "approved"

    def decisions(self) -> list[Decision]:
        """Return the last decision about each encoder, the newest first. Raises Refusal E_APPROVALS."""
        last = {decision.sha256: decision for decision in self._decisions.all()}
        return sorted(last.values(), key=lambda decision: decision.at, reverse=True)

    def approved(self) -> list[Path]:
        """Return the folders of the approved encoders, the newest first. Raises Refusal E_APPROVALS."""
        return [self.folder / each.sha256 for each in self.decisions() if each.decided == "approved"]

    def approve(self, encoder: Path, *, by: str, note: str = "") -> str:
        """Let studies use an encoder, and return its name. The caller has verified its files (`load_encoder`).

        Raises OSError, and Refusal as `Decisions.approve` does.
        """
        sha256 = copy_release(encoder, self.folder, ENCODER_FILES)
        return self._decisions.approve((self.folder / sha256 / ENCODER_FILES[1]).read_bytes(), by=by, note=note)

    def revoke(self, sha256: str, *, by: str, note: str = "") -> None:
        """Forbid an encoder and delete its copy. Raises Refusal as `Decisions.revoke` does."""
        self._decisions.revoke(sha256, by=by, note=note)
        shutil.rmtree(self.folder / sha256, ignore_errors=True)
