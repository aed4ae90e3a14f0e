"""Questions about a model in a study with secure aggregation: the server learns the sums, and no hospital's answer.

Each question is a masked round after the last round of training, with a fixed number. A sum that is lost before any
share was revealed is asked for again; the hospitals mask the answers that they have kept. What was learnt is kept too,
because the hospitals answer nothing about an earlier question once a later one has begun:

RUN/masked/questions/<kind>.json             a question, its sums or that they are lost, and its history entry
RUN/masked/questions/round.json, total.npy   the attempt whose shares the hospitals may be revealing
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord

from federation.coordinator.connected_sites import Records, Sites, to_all
from federation.coordinator.masked_round import MaskedRound
from federation.coordinator.masked_service import MaskedService
from federation.coordinator.masked_study import TRAINING_SHARE, MaskedStudy, take, watch
from federation.coordinator.summed_questions import SumsAndMoments
from federation.gateway import reasons as gateway_reasons
from federation.gateway.first_model import write_chunks
from federation.gateway.flower_objects import Content
from federation.gateway.questions import Question
from federation.protocol import reasons as protocol_reasons
from federation.protocol.masked_replies import MOST_PATIENTS, round_of
from federation.protocol.metric_allowlist import Kind
from federation.protocol.reply_validation import LedgerHead, Sifted, decode
from federation.protocol.summed_answers import SUMMED, Summed
from federation.secure_aggregation import reasons
from federation.secure_aggregation.answer_vector import AnswerSettings, AnswerSum, sum_of
from federation.secure_aggregation.server_round import ServerRound
from federation.strategy.round_report import by_code
from models.familiarity import Moments
from models.refusal import Refusal
from pipeline.system.atomic_files import write_durably

TRIES = 3  # attempts at a question, and how often to wait for the shares of one
SPARE = 4  # validation and test patients may be more than those trained on, by which a study's patients are counted
# A hospital that refuses with one of these refuses the next attempt as well.
_FOR_GOOD = {
    reason.code
    for reason in (
        protocol_reasons.EMBEDDINGS,
        gateway_reasons.ASKED_ALREADY,
        gateway_reasons.COHORT_ALMOST_SAME,
        gateway_reasons.QUESTIONS_MONTH,
        gateway_reasons.QUESTIONS_RUN,
        reasons.SECAGG_CHANGES,
        reasons.SECAGG_MODEL_USED,
        reasons.SECAGG_NOT_SAME,
        reasons.SECAGG_ROUND_OLD,
    )
}


def question_of(run: str, kind: Kind, records: Records) -> Question:
    """Return the question that these records ask."""
    arrays = {name: decode(record) for name, record in records.items() if isinstance(record, ArrayRecord)}
    configs = {name: dict(record) for name, record in records.items() if isinstance(record, ConfigRecord)}
    content = Content(arrays=write_chunks(arrays), configs={"config": {}, **configs})
    return Question.of(run, kind, content, masked=True)


@dataclass
class _Found:
    """What came of a question. `present`: the hospitals in the sum. `refused`: the codes of the other nodes."""

    sums: SumsAndMoments | None = None
    present: tuple[str, ...] = ()
    refused: Mapping[int, str] = field(default_factory=dict)
    heads: dict[int, LedgerHead] = field(default_factory=dict)


@dataclass
class MaskedSums:
    """Asks questions about the model of a run. `rounds`: of the study.

    `lengths`: how many numbers the records of `SUMMED`'s moments have. `current`: the question that gateways ask about.
    Each question appends an entry to `history`.
    """

    masked: MaskedStudy
    sites: Sites
    rounds: int
    lengths: Mapping[str, int]
    say: Callable[[str], None]
    history: list[Mapping[str, Any]]
    current: MaskedRound | None = None

    @property
    def folder(self) -> Path:
        return self.masked.folder / "questions"

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Answer the gateways of the hospitals while the block runs, also about the question before."""
        with MaskedService(self.masked.server_folder, lambda: self.current):
            yield
        if self.current is not None:
            self.current.forget()  # a hospital that was late may have written it again

    def ask(self, kind: Kind, records: Records, what: str) -> SumsAndMoments | None:
        """Return the sums of the hospitals' answers, and the pooled moments of array records; None if they are lost.

        `records`: the model, the settings and what else the message holds. `what`: names the question in the history.
        Call it inside `serving`. Raises OSError if the state cannot be stored.
        """
        question = question_of(self.masked.run, kind, records)
        if (kept := self._kept(kind)) is not None:
            if kept["question"] == [question.model, question.asked]:
                self.history.append(kept["entry"])
                return _sums_of(kept)
            self.say(f"{what} is left out: the hospitals have answered a different question of this kind")
            return None
        found = self._finished(question) or self._asked(kind, question, records)
        nodes = {name: node for node, name in self.masked.names.items()}
        valid = dict.fromkeys(nodes[name] for name in found.present)
        entry = self.sites.entry(what, Sifted(valid, dict(found.refused), found.heads))
        self.history.append(entry)
        self._keep(question, found.sums, entry)
        if self.current is not None:
            self.current.forget()
        for line in by_code({self.masked.names[node]: code for node, code in found.refused.items()}):
            self.say(f"{what} without {line}")
        self.say(f"{what}: " + (f"sum over {len(found.present)} hospitals" if found.sums else "the sum is lost"))
        return found.sums

    # --- attempts -------------------------------------------------------------------------------------------

    def _finished(self, question: Question) -> _Found | None:
        """Finish the attempt at this question that a killed server left, if hospitals may have revealed shares."""
        begun = ServerRound.resumed(self.folder)
        if begun is None:
            return None
        header = begun.header
        same = (header.kind, header.model, header.asked) == (question.kind, question.model, question.asked)
        if begun.confirmations is None or not same:
            begun.forget()
            return None
        settings = AnswerSettings.model_validate(self.masked.noted()["answers"])
        self.current = MaskedRound(header, None, lambda _: begun, (), seconds=0.0, server=begun)
        return self._unmasked(self.current, settings, _Found())

    def _asked(self, kind: Kind, question: Question, records: Records) -> _Found:
        """Ask the hospitals, again if the sum is lost and a new attempt can succeed."""
        for _ in range(TRIES):
            found = self._attempt(kind, question, records)
            assert self.current is not None
            for_good = [node for node, code in found.refused.items() if code in _FOR_GOOD]
            left = len(self.masked.roster.members) - len(for_good)
            if found.sums or self.current.may_be_revealed or left < self.masked.roster.threshold:
                break
        return found

    def _attempt(self, kind: Kind, question: Question, records: Records) -> _Found:
        asked, number = self._online(kind), round_of(kind, self.rounds)
        settings = self._settings(kind)
        self.masked.note(answers=settings.model_dump(mode="json"))
        header = self.masked.next_header(
            number, kind=kind, model=question.model, asked=question.asked, settings=settings.digest
        )
        current = self.current = MaskedRound(
            header,
            settings,
            lambda header: ServerRound(self.masked.roster, header, self.folder, words=settings.words),
            asked.values(),
            seconds=TRAINING_SHARE * self.masked.round_seconds,
        )
        watch(current, lambda: self.current is current, asked, self.sites.grid)
        messages = self.sites.messages(kind, to_all(records), list(asked))
        replies = self.sites.wire.send_and_receive(messages, timeout=self.masked.round_seconds)
        refused, heads = take(replies, current, asked, settings.words, self.sites.heads)
        self.sites.heads.update(heads)
        return self._unmasked(current, settings, _Found(refused=refused, heads=heads))

    def _online(self, kind: Kind) -> dict[int, str]:
        """Return the names of the nodes to ask that are online, by node; wait for enough of them.

        If the hospitals have summed such answers before, these are the same ones, and all of them.
        """
        until = time.monotonic() + self.masked.last_seconds
        needed = len(self.masked.summed_over(kind) or ()) or self.masked.roster.threshold
        while True:
            nodes = self.masked.on_roster(self.sites.nodes(), kind)
            if len(nodes) >= needed or time.monotonic() > until:
                return {node: self.masked.names[node] for node in nodes}
            time.sleep(1)

    def _settings(self, kind: Kind) -> AnswerSettings:
        table, sites = SUMMED[kind], len(self.masked.roster.members)
        return AnswerSettings(
            kind=kind,
            counts=table.counts,
            means=table.means,
            moments={record: self.lengths[record] for record in table.moments},
            patients=min(SPARE * self.masked.patients, MOST_PATIENTS * sites),
            sites=sites,
        )

    def _unmasked(self, current: MaskedRound, settings: AnswerSettings, so_far: _Found) -> _Found:
        """Add the sums, if the hospitals reveal them. Once they may have begun to, wait for the others repeatedly."""
        for _ in range(TRIES):
            try:
                total, present = current.unmask(self.masked.last_seconds)
                sums = _to_sums(sum_of(total, settings, len(present)))
            except Refusal as refusal:
                self.say(f"{current.header.kind}: {refusal}")
                if not current.may_be_revealed or refusal.reason is reasons.SECAGG_RANGE:
                    break
            else:
                self.masked.note_summed(current.header.kind, present)
                return replace(so_far, sums=sums, present=present)
        return so_far

    # --- what outlives the process --------------------------------------------------------------------------

    def _kept(self, kind: str) -> dict[str, Any] | None:
        try:
            kept: dict[str, Any] = json.loads((self.folder / f"{kind}.json").read_bytes())
            return kept
        except FileNotFoundError:
            return None

    def _keep(self, question: Question, sums: SumsAndMoments | None, entry: Mapping[str, Any]) -> None:
        content: dict[str, Any] = {"question": [question.model, question.asked], "summed": None, "entry": entry}
        if sums is not None:
            moments = {
                name: {"mean": each.mean.tolist(), "variance": each.variance.tolist(), "patients": each.patients}
                for name, each in sums[1].items()
            }
            content |= {"summed": sums[0].model_dump(mode="json"), "moments": moments}
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durably(self.folder / f"{question.kind}.json", json.dumps(content).encode())


def _to_sums(found: AnswerSum) -> SumsAndMoments:
    summed = Summed(
        sites=found.sites, patients=found.patients, counts=found.counts, means=found.means, known=found.known
    )
    moments = {
        name: Moments(mean.astype(np.float32), variance.astype(np.float32), found.patients)
        for name, (mean, variance) in found.moments.items()
    }
    return summed, moments


def _sums_of(kept: Mapping[str, Any]) -> SumsAndMoments | None:
    """Return the sums that were kept; None if they were lost."""
    if kept["summed"] is None:
        return None
    moments = {
        name: Moments(np.array(each["mean"], np.float32), np.array(each["variance"], np.float32), each["patients"])
        for name, each in kept["moments"].items()
    }
    return Summed.model_validate(kept["summed"]), moments
