"""The handshake before round 1: check that the sites agree on version, data contract and golden volume."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from flwr.app import Message, RecordDict

from federation.coordinator import reasons
from federation.coordinator.connected_sites import Sites
from federation.protocol.handshake import EXPECTED, SiteAbout
from federation.protocol.reasons import SITE_OUTDATED, SITE_UNLABELLED
from federation.protocol.reply_validation import ABOUT
from federation.protocol.study_config import Study
from federation.protocol.versions import who_must_upgrade
from models.refusal import Reason, Refusal

_DIFFERS = {"contract": "the data contract", "golden": "the golden volume"}


@dataclass(frozen=True)
class Agreement:
    """The result of the handshake. `about`: what the sites that may take part report, by name.

    `entry`: for the history. `left_out`: why a node takes no part in the run, by node: the server does not accept its
    version, or it has no labels.
    """

    about: dict[str, SiteAbout]
    entry: dict[str, Any]
    left_out: dict[int, str]


def shake_hands(sites: Sites, study: Study) -> Agreement:
    """Ask each online site to describe itself, and check that those that can take part agree.

    Sites of another version and sites without labels are left out.

    Raises Refusal: E_SITES_UNLIKE; E_HANDSHAKE_QUORUM if fewer sites than the study's quorum may take part.
    """
    timeout_s = study.study.round_timeout_s
    sifted = sites.ask("query.handshake", lambda _: RecordDict(), EXPECTED, nodes=sites.nodes(), timeout_s=timeout_s)
    told = {node: read(reply) for node, reply in sifted.valid.items()}
    own = version("fedthorax")
    outdated = {node: why for node, each in told.items() if (why := who_must_upgrade(each.version, own))}
    left_out = {node: _explain(sites.name(node), told[node].version, own, why) for node, why in outdated.items()}
    unlabelled = [node for node, code in sifted.refused.items() if code == SITE_UNLABELLED.code]
    left_out |= {node: f"{sites.name(node)}: {SITE_UNLABELLED.says}" for node in unlabelled}
    about = {sites.name(node): each for node, each in told.items() if node not in left_out}
    entry = sites.entry("handshake", sifted)
    entry["sites"] = sorted(about)
    entry["refused"] |= {sites.name(node): why.code for node, why in outdated.items()}
    entry["versions"] = {sites.name(node): each.version for node, each in sorted(told.items())}
    judge(about)
    if len(about) < study.study.quorum:
        refused = ", ".join(f"{site}: {code}" for site, code in entry["refused"].items())
        others = "; ".join([refused, *left_out.values()]) if refused else "no other site is online"
        raise Refusal(reasons.HANDSHAKE_QUORUM, quorum=study.study.quorum, present=len(about), others=others)
    return Agreement(about, entry, left_out)


def _explain(site: str, theirs: str, own: str, why: Reason) -> str:
    who = site if why is SITE_OUTDATED else "the server"
    return f"{site} has version {theirs}, the server {own}: {who} must upgrade ({why.code})"


def read(reply: Message) -> SiteAbout:
    """Read a site's report from a reply in the format EXPECTED."""
    return SiteAbout.model_validate(dict(reply.content.config_records[ABOUT]))


def judge(answers: Mapping[str, SiteAbout]) -> None:
    """Check that these sites agree. Raises Refusal E_SITES_UNLIKE, which names the sites and the differences.

    No site is the reference: if most sites agree, the others are named, and otherwise all groups are named.
    """
    found = []
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
