"""The handshake before round 1: what each site is, told by itself, and whether all of them are alike enough to begin.

A site tells four things: the version of its software, the digest of its data contract, the digest of the golden volume
that its own preprocessing makes, and about how many patients it may learn from. Sites that differ in one of the
first three would learn from different data under one name. Light where it is imported: the gateway has no torch.
"""

import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from flwr.app import Message, RecordDict

from federation import reasons
from federation.gateway.patients import count_patients
from federation.rounds.replies import ABOUT, Expected
from models.refusal import Refusal
from pipeline.site import Site

if TYPE_CHECKING:
    from federation.rounds.sites import Sites
    from federation.studies.results import SiteAbout
    from federation.study import Study

KEYS = ("version", "contract", "golden", "patients")
UNTOLD = "not told"
_BOUNDS = (20, 50, 100, 200, 500, 1000)  # patients
BANDS = frozenset(
    (
        *(f"under {bound}" for bound in _BOUNDS),
        *(f"{low}-{high - 1}" for low, high in pairwise(_BOUNDS)),
        f"{_BOUNDS[-1]} or more",
        UNTOLD,
    )
)
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+]{0,39}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIFFERS = {"contract": "the data contract", "golden": "the golden volume"}


# --- at the site ------------------------------------------------------------------------------------------


def answer(site: Site, study: "Study") -> dict[str, str]:
    """What this site tells of itself, by KEYS.

    Raises Refusal E_NO_LUNGS or E_NOT_A_WHOLE_CHEST where its preprocessing does not know the golden volume.
    """
    from pipeline.doctor.digest import contract_digest
    from pipeline.golden import golden_digest

    learnt_from = count_patients(site).of_split.get("train", 0)
    return {
        "version": version("fedthorax"),
        "contract": contract_digest(site),
        "golden": golden_digest(study.preprocessing),
        "patients": band(learnt_from, site.settings.site.min_patients),
    }


def band(count: int, min_patients: int) -> str:
    """About how many patients: one of BANDS. None of them parts numbers below `min_patients` from each other."""
    bounds = [bound for bound in _BOUNDS if bound >= min_patients]
    if not bounds:
        return UNTOLD
    if count < bounds[0]:
        return f"under {bounds[0]}"
    below = (f"{low}-{high - 1}" for low, high in pairwise(bounds) if count < high)
    return next(below, f"{bounds[-1]} or more")


def is_answer(record: Mapping[str, object]) -> bool:
    """Whether a record holds what `answer` gives, as far as its form tells, and nothing else."""
    fits: dict[str, Callable[[str], object]] = {
        "version": _VERSION.fullmatch,
        "contract": _SHA256.fullmatch,
        "golden": _SHA256.fullmatch,
        "patients": BANDS.__contains__,
    }
    return set(record) == set(KEYS) and all(
        isinstance(value, str) and fits[key](value) for key, value in record.items()
    )


EXPECTED = Expected({}, {}, {}, 0, about=is_answer)


# --- at the server ----------------------------------------------------------------------------------------


def shake_hands(sites: "Sites", study: "Study") -> tuple[dict[str, "SiteAbout"], dict[str, Any]]:
    """What each site that is online tells of itself, by its name, and what the history keeps of the question.

    Raises Refusal: E_SITES_UNLIKE; E_HANDSHAKE_QUORUM where fewer than the study's quorum answer as they should.
    """
    timeout_s = study.study.round_timeout_s
    sifted = sites.ask("query.handshake", lambda _: RecordDict(), EXPECTED, nodes=sites.nodes(), timeout_s=timeout_s)
    about = {sites.name(node): read(reply) for node, reply in sifted.valid.items()}
    entry = sites.entry("handshake", sifted)
    judge(about)
    if len(about) < study.study.quorum:
        refused = ", ".join(f"{site}: {code}" for site, code in entry["refused"].items())
        others = refused or "no other is online"
        raise Refusal(reasons.HANDSHAKE_QUORUM, quorum=study.study.quorum, present=len(about), others=others)
    return about, entry


def read(reply: Message) -> "SiteAbout":
    """What a site told in a reply that is as EXPECTED."""
    from federation.studies.results import SiteAbout

    return SiteAbout.model_validate(dict(reply.content.config_records[ABOUT]))


def judge(answers: Mapping[str, "SiteAbout"]) -> None:
    """Whether these sites, by name, are alike. Raises Refusal E_SITES_UNLIKE, which names who differs in what.

    The version that counts is this server's own. In the rest nobody knows who is right: where most sites agree the
    others are named, and else all groups.
    """
    own = version("fedthorax")
    other = [f"{site} ({about.version})" for site, about in answers.items() if about.version != own]
    found = [f"the version of {_all(other)} is not the server's ({own})"] if other else []
    for key, what in _DIFFERS.items():
        groups: dict[str, list[str]] = {}
        for site, about in answers.items():
            groups.setdefault(getattr(about, key), []).append(site)
        if len(groups) > 1:
            found.append(_told(what, sorted(groups.values(), key=len, reverse=True)))
    if found:
        raise Refusal(reasons.SITES_UNLIKE, differences="; ".join(found))


def _told(what: str, groups: list[list[str]]) -> str:
    """`groups`: the sites that agree with each other, most first."""
    most, *rest = groups
    if len(most) > len(rest[0]):
        others = [site for group in rest for site in group]
        return f"{what} of {_all(others)} is another than that of {len(most)} other sites"
    return f"{what} differs between " + " / ".join(map(_all, groups))


def _all(sites: list[str]) -> str:
    return ", ".join(sorted(sites))
