"""The report of a round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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

    Only if the hospitals judge the models: `votes`: how many gave which answer about the model that the round began
    with; empty if they are not known. `undone`: the earlier rounds whose steps were taken back. `unjudged`: the rounds
    whose steps are in the model after this round, and were not judged yet.
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
    votes: Mapping[str, int] = field(default_factory=dict)
    undone: tuple[int, ...] = ()
    unjudged: tuple[int, ...] = ()

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
    """List the remarks on a round of the history: sites that did not count or counted differently, the judgement."""
    capped = dict.fromkeys(entry.get("capped", []), reasons.EXAMPLES_CAPPED.code)
    clipped = dict.fromkeys(entry.get("clipped", []), reasons.UPDATE_CLIPPED.code)
    return by_code(entry.get("refused", {})) + by_code(capped) + by_code(clipped) + judgement(entry)


def judgement(entry: Mapping[str, Any]) -> list[str]:
    """Say what the hospitals found about the model that a round of the history began with, if anything was found."""
    votes, undone = entry.get("votes") or {}, entry.get("undone") or []
    lines = []
    if votes.get("worse"):
        voters = votes["worse"] + votes["not_worse"]
        lines.append(f"{votes['worse']} of {voters} hospitals that vote find the model before it much worse")
    if undone:
        lines.append(f"back to the model before round {min(undone)}")
    return lines


def kept_rounds(rounds: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the rounds of a history whose steps are in the released model.

    Not those that were lost or taken back, nor the last ones, if the hospitals judge models and did not judge these.
    """
    undone = {number for entry in rounds for number in entry.get("undone") or ()}
    unjudged = set(rounds[-1].get("unjudged") or ()) if rounds else set()
    counted = [entry["round"] for entry in rounds if not entry["lost"]]
    return [number for number in counted if number not in undone | unjudged]


def some(sites: Sequence[str]) -> str:
    """Return the sites' names; of many sites, their number and the first names."""
    if len(sites) <= FEW:
        return ", ".join(sites)
    return f"{len(sites)} sites ({', '.join(sites[: FEW - 1])} and {len(sites) - FEW + 1} more)"
