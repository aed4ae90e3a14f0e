"""Rebuild from the ledger what the gateway's folder has forgotten, as after a backup that is older than the ledger.

The gateway remembers which questions it has answered, which sums it has helped to reveal and over which hospitals,
which studies were private, when it trained and pretrained, and what the privacy budget was charged for. Before an
answer leaves, a line of the ledger names what is to be remembered. At its start the gateway reads the ledger, and what
its folder lacks counts as done: the budgets are spent, and a question whose answer is lost is refused for ever
(E_MEMORY_LOST). If the ledger itself was restored, see `federation.ledger.restored`.

Not rebuilt: the models of runs (`lineage`). A site that lost them takes part in the next run.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

from federation.gateway.masked_memory import MaskedMemory
from federation.gateway.questions import Question, Questions
from federation.gateway.spool import Spool
from federation.ledger import reasons as ledger_reasons
from federation.ledger.chain import PASSED, Line, ledger_file, read_lines
from federation.ledger.restored import is_mark, is_restored, mark_if_copied
from federation.protocol.metric_allowlist import TRAINING
from models.refusal import Refusal
from pipeline.site.folder import Site
from pipeline.training.privacy_budget import Charge, PrivateRound, charge_missing
from pipeline.training.reasons import PRIVACY_FILE

ANSWERED, PRIVATE = "answered: ", "private study"
PRETRAINED = "round of pretraining"
CHARGED = "private round: "
_CHARGED = re.compile(rf"{CHARGED}noise ([0-9.e+-]+), rate ([0-9.e+-]+), steps ([0-9]+)")


def answered(question: Question) -> tuple[str, str]:
    """Return kind and digest of the line that names an answer."""
    return f"{ANSWERED}{question.kind}", question.key


def charged(planned: PrivateRound) -> tuple[str, str]:
    """Return kind and digest of the line that names a private round, which the budget was charged for."""
    return f"{CHARGED}noise {planned.noise_multiplier!r}, rate {planned.sample_rate!r}, steps {planned.steps}", ""


def private(study: str) -> tuple[str, str]:
    """Return kind and digest of the line that names a private study."""
    return PRIVATE, hashlib.sha256(study.encode()).hexdigest()


def pretrained() -> tuple[str, str]:
    """Return kind and digest of the line that names a round of pretraining, which has a budget of its own."""
    return PRETRAINED, ""


class Memory:
    """The memory of a site's gateway. Its functions read and write files: call them in a thread."""

    def __init__(self, site: Site, spool: Spool) -> None:
        self._site, self._spool, self._path = site, spool, ledger_file(site)
        self._is_restored = True  # until the ledger was read

    def rebuild(self) -> None:
        """Complete the folder from the ledger. Raises Refusal: those of `read_lines`, E_LEDGER_WRITE,
        E_PRIVACY_SETTINGS, E_APPROVALS; OSError.
        """
        mark_if_copied(self._path)
        questions = Questions(self._spool.folder / "answers", a_month=0)
        private_studies, rounds, pretraining, masked = set(), [], [], MaskedMemory()
        charges: Counter[Charge] = Counter()
        for line in self._remembered():
            if line.kind.startswith(ANSWERED):
                questions.mark_lost(line.digest, line.run, line.kind.removeprefix(ANSWERED), at=_seconds(line))
            elif charge := _CHARGED.fullmatch(line.kind):
                charges[line.run, float(charge[1]), float(charge[2]), int(charge[3])] += 1
            elif line.kind == PRIVATE:
                private_studies.add(line.digest)
            elif line.kind == PRETRAINED:
                pretraining.append(_seconds(line))
            elif line.direction == "in":
                rounds.append(_seconds(line))
            else:
                masked.read(line)
        self._spool.add_rounds(rounds, pretraining)
        self._spool.add_private(private_studies)
        try:
            charge_missing(self._site, charges)
        except Refusal as refusal:
            if refusal.reason is not PRIVACY_FILE:  # with such a file no private round is accepted anyway
                raise
        masked.complete(self._site)

    def _remembered(self) -> Iterator[Line]:
        """Yield the lines to remember; a ledger can be long, so only the few marks of restores are kept."""
        marks = []
        for line in read_lines(self._path):
            if is_mark(line):
                marks.append(line)
            elif line.verdict == PASSED and (
                line.direction == "here" or (line.direction == "in" and line.kind in TRAINING)
            ):
                yield line
        self._is_restored = is_restored(marks)

    def check_restored(self) -> None:
        """Raises Refusal E_RESTORED if the site was restored, and the hospital has not accepted this."""
        if self._is_restored:  # a command may have accepted it meanwhile
            self._is_restored = is_restored(read_lines(self._path))
        if self._is_restored:
            raise Refusal(ledger_reasons.RESTORED)


def _seconds(line: Line) -> float:
    return datetime.fromisoformat(line.time).timestamp()
