"""A site's decisions about studies, by each study's digest, in SITE_DIR/studies.

A study's digest covers every setting that decides what is learnt from patients and what is asked about them: network,
preprocessing, training, strategy, privacy, evaluation, wire, and the length of the training. It does not cover the
study's name, its seeds, the number of sites, or how long to wait for them.

The release ships its own studies (`configs/presets`). A hospital approves those by name in site.toml. A study with two
names, such as "masked+standard-gpu", needs both.

Works without torch, for the gateway.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from configs import AND
from federation.approval import reasons
from federation.approval.decisions import Decision, Decisions
from federation.ledger.chain import ledger_file
from federation.secure_aggregation.roster import MAX_PEERS, MIN_PEERS
from federation.system.digests import SHA256
from models.refusal import Refusal
from pipeline.site.folder import Site
from pipeline.system.json_text import parse_json

MAX_BYTES = 64 * 1024
# The tables, and the keys of [study], that the digest does not cover.
_FREE_TABLES = {"stopping"}
FREE_KEYS = {"name", "seed", "seeds", "sites", "quorum", "wait_s", "round_timeout_s", "synthetic"}


Verdict = Literal["preset", "approved", "revoked", "unknown"]


def canonical(study: str) -> bytes:
    """Return the settings of a study that its digest covers, in canonical JSON; `study` is JSON from the server.

    Raises Refusal E_RUN_CONFIG if it is not a JSON object, or repeats a key: two readers could then see two studies.
    """
    if len(study.encode()) > MAX_BYTES:
        raise Refusal(reasons.RUN_CONFIG, private="the study is too long")
    try:
        parse_json(study)  # refuses all but JSON that is not nested too deeply; it would accept a repeated key
        tables = json.loads(study, object_pairs_hook=_without_repeats)
        table = {key: value for key, value in tables["study"].items() if key not in FREE_KEYS}
        covered = {name: content for name, content in tables.items() if name not in _FREE_TABLES} | {"study": table}
        return json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Refusal(reasons.RUN_CONFIG, private=f"{type(error).__name__}: {error}") from error


def study_digest(study: str) -> str:
    """Return the SHA-256 by which a study is approved. Raises Refusal E_RUN_CONFIG as `canonical` does."""
    return hashlib.sha256(canonical(study)).hexdigest()


def is_listed(presets: Sequence[str], listed: Collection[str]) -> bool:
    """Whether a list of names covers a shipped study that has these names. A joined name needs each of its parts."""
    return any(set(name.split(AND)) <= set(listed) for name in presets)


def begins_from(study: str) -> str:
    """Return the name of the release that a study (JSON) starts from; "" if it starts from its seed.

    Raises Refusal E_RUN_CONFIG if it is not a valid name: it is used as the name of a folder.
    """
    name = json.loads(study)["study"].get("begin_from", "")
    if name != "" and not (isinstance(name, str) and SHA256.fullmatch(name)):
        raise Refusal(reasons.RUN_CONFIG, private="begin_from is not the name of a release")
    return name


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is repeated")
    return table


class StudyApprovals:
    """A site's decisions about studies. `presets`: the names that site.toml approves."""

    def __init__(self, site: Site) -> None:
        self.presets = frozenset(site.settings.gateway.studies)
        self._decisions = Decisions(
            site.folder / "studies", ledger_file(site), suffix=".json", max_bytes=MAX_BYTES, what="study"
        )

    def verdict(self, digest: str, presets: Sequence[str]) -> Verdict:
        """Return a study's status: "preset" and "approved" may run, "revoked" and "unknown" may not.

        `presets`: the names of the shipped studies that have this digest. Raises Refusal E_APPROVALS (then no study may
        run).
        """
        decision = self.decision(digest)
        if decision is not None:
            return decision.decided
        return "preset" if is_listed(presets, self.presets) else "unknown"

    def decision(self, digest: str) -> Decision | None:
        """Return the last decision about a study. Raises Refusal E_APPROVALS."""
        return self._decisions.last(digest)

    def decisions(self) -> list[Decision]:
        """Return all decisions, the oldest first. Raises Refusal E_APPROVALS."""
        return self._decisions.all()

    def approve(self, study: str, *, by: str, note: str = "") -> str:
        """Allow a study (JSON) to run here, and return its digest.

        Raises Refusal: E_RUN_CONFIG, E_APPROVALS, E_APPROVALS_BUSY, E_LEDGER_WRITE, E_LEDGER_BROKEN.
        """
        return self._decisions.approve(canonical(study), by=by, note=note)

    def revoke(self, digest: str, *, by: str, note: str = "") -> None:
        """Forbid a study to run. Raises Refusal as `Decisions.revoke` does."""
        self._decisions.revoke(digest, by=by, note=note)

    def keep(self, study: str) -> str:
        """Keep a study for a later review; return its digest. Raises Refusal: E_RUN_CONFIG, E_APPROVALS."""
        return self._decisions.keep(canonical(study))

    def kept(self) -> list[Path]:
        """Return the files of the studies that can be reviewed, the newest first."""
        return self._decisions.kept()

    def content(self, digest: str) -> dict[str, Any] | None:
        """Return the settings of a kept study; None if it is not kept."""
        found = self._decisions.content(digest)
        return None if found is None else json.loads(found)


def as_study(settings: Mapping[str, Any]) -> str:
    """Return a study (JSON) with the settings that a digest covers, and placeholders for the others.

    There are as many sites as any study needs, and as masks allow; masked rounds need a quorum of three.
    """
    sites, quorum = (MAX_PEERS, MIN_PEERS) if settings["aggregation"]["secure"] else (1000, 1)
    free = {"name": "a-study", "sites": sites, "quorum": quorum}
    return json.dumps({**settings, "study": {**settings["study"], **free}})
