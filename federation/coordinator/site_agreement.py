"""The handshake before round 1: check that the sites agree on version, data contract and golden volume."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from flwr.app import Message, RecordDict

from federation.coordinator import reasons
from federation.coordinator.connected_sites import Sites
from federation.protocol.handshake import EXPECTED, SiteAbout
from federation.protocol.reply_validation import ABOUT
from federation.protocol.study_config import Study
from models.refusal import Refusal

_DIFFERS = {"contract": "the data contract", "golden": "the golden volume"}


def shake_hands(sites: Sites, study: Study) -> tuple[dict[str, SiteAbout], dict[str, Any]]:
    """Return what each online site reports about itself, by name, and the history entry of this request.

    Raises Refusal: E_SITES_UNLIKE; E_HANDSHAKE_QUORUM if fewer sites than the study's quorum give a valid answer.
    """
    timeout_s = study.study.round_timeout_s
    sifted = sites.ask("query.handshake", lambda _: RecordDict(), EXPECTED, nodes=sites.nodes(), timeout_s=timeout_s)
    about = {sites.name(node): read(reply) for node, reply in sifted.valid.items()}
    entry = sites.entry("handshake", sifted)
    judge(about)
    if len(about) < study.study.quorum:
        refused = ", ".join(f"{site}: {code}" for site, code in entry["refused"].items())
        others = refused or "no other site is online"
        raise Refusal(reasons.HANDSHAKE_QUORUM, quorum=study.study.quorum, present=len(about), others=others)
    return about, entry


def read(reply: Message) -> SiteAbout:
    """Read a site's report from a reply in the format EXPECTED."""
    return SiteAbout.model_validate(dict(reply.content.config_records[ABOUT]))


def judge(answers: Mapping[str, SiteAbout]) -> None:
    """Check that these sites agree. Raises Refusal E_SITES_UNLIKE, which names the sites and the differences.

    The version must be this server's own. For the other values no site is the reference: if most sites agree, the
    others are named, and otherwise all groups are named.
    """
    own = version("fedthorax")
    other = [f"{site} ({about.version})" for site, about in answers.items() if about.version != own]
    found = [f"the version of {_all(other)} is not the server's ({own})"] if other else []
    for key, what in _DIFFERS.items():
        groups: dict[str, list[str]] = {}
        for site, about in answers.items():
            groups.setdefault(getattr(about, key), []).append(site)
        if len(groups) > 1:
            found.append(_difference(what, sorted(groups.values(), key=len, reverse=True)))
    if found:
        raise Refusal(reasons.SITES_UNLIKE, differences="; ".join(found))


def _difference(what: str, groups: list[list[str]]) -> str:
    """Describe a difference. `groups`: the sites that agree with each other, the largest group first."""
    most, *rest = groups
    if len(most) > len(rest[0]):
        others = [site for group in rest for site in group]
        return f"{what} of {_all(others)} differs from that of {len(most)} other sites"
    return f"{what} differs between " + " / ".join(map(_all, groups))


def _all(sites: list[str]) -> str:
    return ", ".join(sorted(sites))
