"""What masked rounds and masked questions of a run have in common: its hospitals, its notes, and how replies arrive."""

import json
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flwr.app import Message

from federation.coordinator.masked_reply import read_reply
from federation.coordinator.masked_round import LAST_STEPS_SECONDS
from federation.protocol import reasons as protocol_reasons
from federation.protocol.error_codes import code_in
from federation.protocol.masked_replies import SUMMED_OVER
from federation.protocol.reply_validation import LedgerHead, ledger_head
from federation.secure_aggregation.masking import Words
from federation.secure_aggregation.messages import Header
from federation.secure_aggregation.roster import Roster
from models.refusal import Refusal
from pipeline.system.atomic_files import write_durably

TRAINING_SHARE = 0.8  # of a round's time limit: then the hospitals that are there mask without the others
WATCH_SECONDS = 5.0
_NO_APP = "0" * 64  # until the first hospital names its app
log = logging.getLogger(__name__)


class Nodes(Protocol):
    """What lists the nodes that are online."""

    def get_node_ids(self) -> Iterable[int]: ...


class Summing(Protocol):
    """A masked round, or the rounds of several groups."""

    def upload(self, site: str, words: Words) -> None: ...

    def left(self, site: str) -> None: ...


@dataclass(frozen=True)
class MaskedStudy:
    """What masked rounds need to know of a run. `study`: digest of its settings. `folder`: for the state of a round.

    `patients`: of all hospitals together. `names`: of the nodes. `round_seconds`: the time limit of a round.
    `last_seconds`: how long to wait for signatures, and then for shares. `groups`: how many groups of hospitals are
    summed apart in a round; 0: one sum. `fixed`: ranges of the packed weights that training does not change.
    `is_private`: whether hospitals train with differential privacy.
    """

    run: str
    study: str
    roster: Roster
    patients: int
    folder: Path
    names: Mapping[int, str]
    round_seconds: float
    server_folder: Path
    last_seconds: float = LAST_STEPS_SECONDS
    groups: int = 0
    fixed: tuple[tuple[int, int], ...] = ()
    is_private: bool = False

    def on_roster(self, nodes: Iterable[int], kind: str = "") -> list[int]:
        """Return the nodes of hospitals on the roster; with a kind, of those over which it was summed before."""
        members = self.summed_over(kind) or self.roster.by_name
        return [node for node in nodes if self.names.get(node) in members]

    # --- over which hospitals figures and answers were summed, in any run of this server --------------------

    def summed_over(self, kind: str) -> tuple[str, ...] | None:
        """Return the hospitals over which figures or answers of a kind were summed; None if they never were.

        The hospitals sum them over these or not at all: the difference of two sums would be one hospital's.
        """
        found = self._summed().get(self.roster.digest, {}).get(kind)
        return tuple(found) if found else None

    def note_summed(self, kind: str, present: Collection[str]) -> None:
        """Note the hospitals of a sum, durably. Raises OSError."""
        summed = self._summed()
        summed.setdefault(self.roster.digest, {}).setdefault(kind, sorted(present))
        write_durably(self.server_folder / SUMMED_OVER, json.dumps(summed).encode())

    def _summed(self) -> dict[str, dict[str, list[str]]]:
        try:
            summed: dict[str, dict[str, list[str]]] = json.loads((self.server_folder / SUMMED_OVER).read_bytes())
            return summed
        except FileNotFoundError:
            return {}

    # --- numbers that outlive the process -------------------------------------------------------------------

    def noted(self) -> dict[str, Any]:
        """Return what was noted in this run."""
        try:
            noted: dict[str, Any] = json.loads((self.folder / "notes.json").read_bytes())
            return noted
        except FileNotFoundError:
            return {}

    def note(self, **values: Any) -> None:
        """Note values, durably. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durably(self.folder / "notes.json", json.dumps({**self.noted(), **values}).encode())

    def next_header(self, number: int, *, kind: str, model: str, asked: str, settings: str) -> Header:
        """Return the header of the next attempt at a round; its app is not known yet.

        `kind`, `model`, `asked` and `settings`: as in `Header`.
        """
        return Header(
            study=self.study,
            run=self.run,
            round=number,
            attempt=self._next_attempt(number),
            roster=self.roster.digest,
            kind=kind,
            model=model,
            asked=asked,
            settings=settings,
            app=_NO_APP,
        )

    def _next_attempt(self, number: int) -> int:
        """Return the number of the next attempt at a round: a killed server must not repeat one."""
        attempts: dict[str, int] = self.noted().get("attempts", {})
        attempt = attempts.get(str(number), 0) + 1
        self.note(attempts={str(number): attempt})
        return attempt


def take(
    replies: Iterable[Message],
    current: Summing,
    asked: Mapping[int, str],
    words: int,
    last_heads: Mapping[int, LedgerHead],
    epsilon: dict[str, float] | None = None,
) -> tuple[dict[int, str], dict[int, LedgerHead]]:
    """Add masked replies to the sum as they arrive; return the code of each other node, and the new ledger heads.

    `asked`: the names of the nodes that were asked. `words`: the length of a masked reply. `epsilon`: where to put the
    hospitals' ε; None if replies hold none.
    """
    refused = dict.fromkeys(asked, protocol_reasons.SITE_MISSING.code)
    heads: dict[int, LedgerHead] = {}
    for reply in replies:
        node = reply.metadata.src_node_id
        if node not in refused:
            continue
        last, head = last_heads.get(node), ledger_head(reply)
        try:
            read = read_reply(reply, words=words, is_private=epsilon is not None)
            current.upload(asked[node], read.words)
            if epsilon is not None and read.epsilon is not None:
                epsilon[asked[node]] = read.epsilon
            if head is None or (last is not None and not head.follows(last)):
                raise Refusal(protocol_reasons.REPLY_LEDGER_CUT)
        except Refusal as refusal:
            refused[node] = code_in(reply.error.reason) if reply.has_error() else refusal.code
            current.left(asked[node])
        else:
            del refused[node]
        if head and head.lines and (last is None or head.follows(last)):
            heads[node] = head
        for record in reply.content.values() if reply.has_content() else ():
            record.clear()
    return refused, heads


def watch(current: Summing, is_current: Callable[[], bool], asked: Mapping[int, str], nodes: Nodes) -> None:
    """Tell a round, in a thread, which hospitals went offline, so that the others do not wait for them."""

    def look() -> None:
        pause = threading.Event()
        while is_current():
            pause.wait(WATCH_SECONDS)
            try:
                online: Collection[int] = set(nodes.get_node_ids())
            except Exception:  # whatever Flower raises when the server is busy or ends
                log.info("the nodes that are online could not be listed", exc_info=True)
                continue
            for node in set(asked) - set(online):
                current.left(asked[node])

    threading.Thread(target=look, daemon=True).start()
