"""The report of a round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from federation.protocol.reply_validation import LedgerHead
from federation.strategy import reasons

FEW = 4  # up to this many sites are listed one by one; of more, their number and some names


@dataclass(frozen=True)
class RoundReport:
    """What happened in one round.

    `sampled` and `valid`: node ids. `refused`: the code of each node that was asked and did not count. `metrics`: those
    of each valid reply, with the number of examples that counts; for nodes in `capped`, which claimed more, this is the
    enrolled number. `clipped`: nodes whose updates were longer than the round's limit and count at that length.
    `aggregated`: the figures of all, weighted by examples; empty if the round was lost. `lost_for`: the code for which
    it was lost, or None. `ledger`: the ledger head that each node reported, if it has one. `bytes_up` and `bytes_down`:
    the size of the arrays as sent, all sites together; the `Wire` sets them, not the strategy.
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
    """List the sites that did not count and their codes: "south: E_SITE_MISSING", or many sites per code."""
    sites: dict[str, list[str]] = {}
    for site, code in sorted(refused.items()):
        sites.setdefault(code, []).append(site)
    lines = []
    for code, each in sites.items():
        lines += [f"{site}: {code}" for site in each] if len(each) <= FEW else [f"{some(each)}: {code}"]
    return lines


def flags(entry: Mapping[str, Any]) -> list[str]:
    """List the remarks on single sites in a round's history: those that did not count, or counted differently."""
    capped = dict.fromkeys(entry.get("capped", []), reasons.EXAMPLES_CAPPED.code)
    clipped = dict.fromkeys(entry.get("clipped", []), reasons.UPDATE_CLIPPED.code)
    return by_code(entry.get("refused", {})) + by_code(capped) + by_code(clipped)


def some(sites: Sequence[str]) -> str:
    """Return the sites' names; of many sites, their number and the first names."""
    if len(sites) <= FEW:
        return ", ".join(sites)
    return f"{len(sites)} sites ({', '.join(sites[: FEW - 1])} and {len(sites) - FEW + 1} more)"
