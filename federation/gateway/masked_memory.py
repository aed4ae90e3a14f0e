"""What the ledger knows of masked rounds, after the gateway's folder was lost or replaced by an older one.

Rebuilt are the sums that may have been revealed, over which hospitals figures and answers were summed, and for each run
its last confirmed round, the hospitals in it and how often these changed. Earlier versions noted no hospitals. So after
such lines, which the folder has forgotten, the hospitals count as unknown: the next sum of the run is a change, and
figures and answers of the kind are summed no more with the list of hospitals that was approved then.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from federation.approval.peers import PeerApprovals, identity_file
from federation.ledger.chain import Line
from federation.secure_aggregation.groups import lists_of
from federation.secure_aggregation.keys import Identity
from federation.secure_aggregation.messages import TRAIN
from federation.secure_aggregation.notes import CHANGED, MAY_REVEAL, read_summed
from federation.secure_aggregation.store import UNKNOWN, Known, Store, revealed_key, witness_folder
from pipeline.site.folder import Site

MASKED_LINE = "masked: "
_SUM, _APPROVAL = "sum of ", "peers approval"


def summed(model: str, kind: str) -> tuple[str, str]:
    """Return kind and digest of the line that names a sum."""
    return f"{MASKED_LINE}{_SUM}{kind}", revealed_key(model, kind)


@dataclass
class _Run:
    """What the lines read so far tell of a run. `changed`: the headers of the attempts in which hospitals changed."""

    round: int = 0
    uploaded: str = ""
    study: str = ""
    changed: set[str] = field(default_factory=set)


class MaskedMemory:
    """What the ledger knows of masked rounds, from its lines in order."""

    def __init__(self) -> None:
        self._list = ""  # digest of the list of hospitals that is approved at this line
        self._runs: dict[str, _Run] = {}
        self._revealed: set[str] = set()
        self._summed: dict[tuple[str, str], str] = {}  # by list and kind
        self._signed: set[tuple[str, int | None, str]] = set()  # runs, rounds and kinds whose hospitals were noted
        self._unsigned: dict[str, tuple[str, str]] = {}  # of other sums, by their key: list and kind

    def read(self, line: Line) -> None:
        """Take in a line about an event at this site; lines about other things are ignored."""
        if line.kind == _APPROVAL:
            self._list = line.app
        if not line.kind.startswith(MASKED_LINE):
            return
        note = line.kind.removeprefix(MASKED_LINE)
        if note.startswith(_SUM):
            self._revealed.add(line.digest)
            kind = note.removeprefix(_SUM)
            if (line.run, line.round, kind) not in self._signed:
                self._unsigned[line.digest] = (self._list, kind)
        elif note in (CHANGED, MAY_REVEAL):
            run = self._run(line)
            if note == CHANGED:
                run.changed.add(line.digest)
            if note == CHANGED or not run.uploaded:
                run.uploaded = UNKNOWN  # until the next line says it
        elif signed := read_summed(note):
            run = self._run(line)
            run.uploaded, run.study = signed.hospitals, signed.study
            self._signed.add((line.run, line.round, signed.kind))
            if signed.figures:
                self._summed.setdefault((line.digest, signed.kind), signed.hospitals)

    def _run(self, line: Line) -> _Run:
        run = self._runs.setdefault(line.run, _Run())
        run.round = max(run.round, line.round or 0)
        return run

    def complete(self, site: Site) -> None:
        """Add to the site's store what it has forgotten. Raises OSError."""
        if not (self._runs or self._revealed):
            return
        store = Store(site.folder / "gateway" / "secagg", witness_folder(site.folder))
        known = store.revealed_keys()
        forgotten = {found for key, found in self._unsigned.items() if key not in known}
        unknown = {
            (each, kind): UNKNOWN
            for of, kind in forgotten
            for each in (_lists(site, of) if kind == TRAIN else {of})  # only updates are summed over groups
        }
        runs = {name: Known(run.round, run.uploaded, len(run.changed), run.study) for name, run in self._runs.items()}
        store.add(revealed=self._revealed, runs=runs, summed={**unknown, **self._summed})
        store.close()


def _lists(site: Site, digest: str) -> Collection[str]:
    """Return the digests of a list and of this hospital's groups of it; of a former list only its own digest."""
    roster = PeerApprovals(site).current()
    if roster is None or roster.digest != digest:
        return {digest}
    return lists_of(roster, Identity.kept(identity_file(site)).public)
