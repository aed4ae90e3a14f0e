"""Summarise what left this hospital in a month, from its ledger; and compare a run's record with the ledger.

Months are in UTC, like the ledger's times.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from federation.ledger import reasons
from federation.ledger.chain import PASSED, Head, Line
from federation.system.refusals_page import REASONS
from models.refusal import Reason, Refusal
from pipeline.system.json_text import parse_json


@dataclass
class Passage:
    """Messages of one kind in one direction, in one round of a run. Times are ISO 8601, UTC."""

    run: str
    round: int | None
    direction: str
    kind: str
    app: str
    verdict: str
    first: str
    last: str
    count: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Month:
    """A month of the ledger. `left` and `came`: messages that passed. `refused`: messages in either direction."""

    month: str
    left: list[Passage]
    came: list[Passage]
    refused: list[Passage]
    here: list[Passage]

    @property
    def totals(self) -> dict[str, dict[str, int]]:
        """The number of messages and bytes in each group."""
        groups = {"left": self.left, "came": self.came, "refused": self.refused}
        return {
            name: {"count": sum(p.count for p in group), "bytes": sum(p.bytes for p in group)}
            for name, group in groups.items()
        }

    @property
    def codes(self) -> dict[str, int]:
        """How often each code was the reason of a refusal."""
        counts: dict[str, int] = {}
        for passage in self.refused:
            counts[passage.verdict] = counts.get(passage.verdict, 0) + passage.count
        return dict(sorted(counts.items()))

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "totals": self.totals,
            "codes": [
                {"code": code, "count": count, "says": reason.says if reason else "", "remedy": remedy(reason)}
                for code, count in self.codes.items()
                for reason in [reason_of(code)]
            ],
        }


def month_of(lines: Iterable[Line], month: str) -> Month:
    """Summarise the lines of a month ("2026-11"): equal ones of a round are added up, ordered by their first times."""
    passages: dict[tuple[object, ...], Passage] = {}
    for line in lines:
        if not line.time.startswith(month):
            continue
        key = (line.run, line.round, line.direction, line.kind, line.app, line.verdict)
        if key not in passages:
            passages[key] = Passage(
                line.run, line.round, line.direction, line.kind, line.app, line.verdict, line.time, line.time
            )
        passage = passages[key]
        passage.last = max(passage.last, line.time)
        passage.count += 1
        passage.bytes += line.bytes
    found = list(passages.values())
    passed = [p for p in found if p.verdict == PASSED]
    return Month(
        month=month,
        left=[p for p in passed if p.direction == "out"],
        came=[p for p in passed if p.direction == "in"],
        refused=[p for p in found if p.direction != "here" and p.verdict != PASSED],
        here=[p for p in found if p.direction == "here"],
    )


def reason_of(code: str) -> Reason | None:
    """Return the reason of this code; None if the installed release does not know it."""
    return REASONS.get(code)


def remedy(reason: Reason | None) -> str:
    """Return the remedy of a reason that `reason_of` returned."""
    return reason.remedy if reason else "Another release of fedthorax wrote this code; look it up there."


# --- a run's record ---------------------------------------------------------------------------------------


class _Told(BaseModel, strict=True):
    """The end of a site's ledger, as the server received it."""

    head: str
    lines: int


class _Round(BaseModel):
    """The part of a round in a run's history.json that is needed here."""

    ledger: dict[str, _Told] = {}


_RECORD = TypeAdapter(list[_Round])


def heads_in_record(record: Path, site_name: str) -> list[Head]:
    """Return the heads of a site's ledger in a run's record (history.json), as the server received them.

    Heads from before a cut that the study's office accepted are left out. Raises Refusal E_LEDGER_RECORD if the file is
    not a record, or contains no head of this site.
    """
    try:
        rounds = _RECORD.validate_python(parse_json(record.read_bytes()))
    except (OSError, ValueError) as error:
        problem = "not a record" if isinstance(error, ValidationError) else str(error)
        raise Refusal(reasons.LEDGER_RECORD, private=f"{record}: {problem}") from error
    heads: list[Head] = []
    for told in (one.ledger[site_name] for one in rounds if site_name in one.ledger):
        heads = [*heads, Head(told.lines, told.head)] if told.lines else []
    if not heads:
        raise Refusal(reasons.LEDGER_RECORD, private=str(record))
    return heads
