"""What is told of a round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from federation.protocol.reply_validation import LedgerHead
from federation.strategy import reasons

FEW = 4  # sites that are told one by one; more are told by their number and some names


@dataclass(frozen=True)
class RoundReport:
    """What happened in one round.

    `sampled` and `valid` are node ids; `refused` gives the code for each node that was asked and did not
    count. `metrics` are those of each valid reply (with the number of examples that counts; of the nodes in
    `capped`, which claimed more, it is the enrolled number). The updates of the nodes in `clipped` were longer than the
    round's bound and count at that length. `aggregated` are the figures of all, weighted by examples; empty
    if the round was lost. `lost_for` is the code for which it was, or None. `ledger` gives the head that each node
    told of its ledger, if it has one. `bytes_up` and `bytes_down` count the arrays alone, all sites together, as they
    travelled: the `Wire` knows, not the strategy.
    """

    round: int
    sampled: tuple[int, ...]
    valid: tuple[int, ...]
    refused: Mapping[int, str]
    metrics: Mapping[int, Mapping[str, float]]
    capped: tuple[int, ...]
    aggregated: Mapping[str, float]
    lost_for: str | None
    ledger: Mapping[int, LedgerHead]
    seconds: float
    clipped: tuple[int, ...] = ()
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def lost(self) -> bool:
        return self.lost_for is not None


def by_code(refused: Mapping[str, str]) -> list[str]:
    """Who did not count and why, for a line of text: "south: E_SITE_MISSING", or many sites of one code together."""
    sites: dict[str, list[str]] = {}
    for site, code in sorted(refused.items()):
        sites.setdefault(code, []).append(site)
    told = []
    for code, each in sites.items():
        told += [f"{site}: {code}" for site in each] if len(each) <= FEW else [f"{some(each)}: {code}"]
    return told


def flags(entry: Mapping[str, Any]) -> list[str]:
    """What a round's entry in the history tells of single sites: who did not count, or not as it wished."""
    capped = dict.fromkeys(entry.get("capped", []), reasons.EXAMPLES_CAPPED.code)
    clipped = dict.fromkeys(entry.get("clipped", []), reasons.UPDATE_CLIPPED.code)
    return by_code(entry.get("refused", {})) + by_code(capped) + by_code(clipped)


def some(sites: Sequence[str]) -> str:
    """Names of sites; of many their number and the first ones."""
    if len(sites) <= FEW:
        return ", ".join(sites)
    return f"{len(sites)} sites ({', '.join(sites[: FEW - 1])} and {len(sites) - FEW + 1} more)"
